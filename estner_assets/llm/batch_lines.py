"""The lines of a batch's files: a request for the upload, and what became of one in the results.

Format: https://platform.openai.com/docs/api-reference/batch/request-input and ``/request-output``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from estner_assets.llm.completions import BrokenBody, read_completion, read_failure
from estner_assets.llm.endpoints import StructuredOutput
from estner_assets.llm.requests import Request, Response, now
from estner_assets.ner.parsing import AnswerStatus

EXPIRED = "batch_expired"


def request_line(request: Request, model: str, form: StructuredOutput, url: str) -> bytes:
    """Return the line that asks for this request, with its end; ``form`` is the weakest format that is asked for."""
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, object] = {"model": model, "messages": messages, **request.parameters}
    if form == "none":
        body.pop("response_format", None)
    elif form == "json_object" and "response_format" in body:
        body["response_format"] = {"type": "json_object"}
    line = {"custom_id": request.key, "method": "POST", "url": url, "body": body}
    # ASCII: a lone surrogate has no UTF-8, and U+2028 is the end of a line to some
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_line(line: bytes, redacted: Callable[[str], str]) -> tuple[Response, str]:
    """Return what a line of the results says about a request, and the line to the letter.

    The response is final or has failed. Raises ``BrokenBody`` for what does not even say which request it is
    about; such a request has no line.
    """
    text = line.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        key = value["custom_id"]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise BrokenBody("the line is no result of a batch") from error
    response, said = _judged(Response(str(key), AnswerStatus.FAILED, created_at=now()), value, redacted)
    return replace(response, reason=redacted(said)) if said else response, text


def _judged(empty: Response, value: Mapping[str, Any], redacted: Callable[[str], str]) -> tuple[Response, str]:
    """Return the response and a reason that is not redacted yet, or ``""``."""
    error, answer = value.get("error"), value.get("response")
    if error or not isinstance(answer, Mapping):
        return empty, _refusal(error)
    body = json.dumps(answer.get("body"), ensure_ascii=False)
    status_code = answer.get("status_code")
    if status_code == 200:
        try:
            return read_completion(body, empty), ""
        except BrokenBody as broken:
            return empty, f"unreadable answer: {broken}"
    failure = read_failure(status_code if isinstance(status_code, int) else 0, {}, body)
    if failure.code == "content_filter":
        return replace(empty, status=AnswerStatus.FILTERED), failure.message
    return empty, f"status {status_code}: {failure.message}{_remedy(failure.message)}"


def _refusal(error: object) -> str:
    if not isinstance(error, Mapping):
        return f"the batch holds neither an answer nor an error for this request: {error!r}"
    if error.get("code") == EXPIRED:
        return "the batch expired before this request was answered; build again to ask again"
    message = str(error.get("message") or json.dumps(error))
    return f"the batch did not ask: {message[:500]}{_remedy(message)}"


def _remedy(message: str) -> str:
    if "response_format" in message or "json_schema" in message:
        return "; declare another `structured_output` for the annotator, for a batch cannot try a weaker one"
    return ""
