"""Reading the body of a chat completion, and what an error response means."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from estner_assets.llm.requests import Response
from estner_assets.ner.parsing import AnswerStatus

MAX_RETRY_AFTER_S = 600.0


class BrokenBody(ValueError):
    """A body with the status 200 that is no chat completion: cut off, HTML, or an error in disguise."""


@dataclass(frozen=True)
class Failure:
    """An error response, reduced to what decides the next step."""

    status_code: int
    code: str
    message: str
    retry_after_s: float | None


def read_completion(body: str, response: Response) -> Response:
    """Return ``response`` with what the body says; raise ``BrokenBody`` when it is no chat completion."""
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BrokenBody(f"the body is no JSON: {error}") from error
    try:
        choice = value["choices"][0]
        message = choice["message"]
        usage = value.get("usage") or {}
        text, refusal = message.get("content"), message.get("refusal")
        read = replace(
            response,
            text=str(text or ""),
            finish_reason=choice.get("finish_reason"),
            model_version=_model_version(value),
            prompt_tokens=max(0, int(usage.get("prompt_tokens") or 0)),
            completion_tokens=max(0, int(usage.get("completion_tokens") or 0)),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise BrokenBody(f"the body holds no chat completion: {body[:200]!r}") from error
    return _judged(read, str(refusal or ""))


def _model_version(value: Mapping[str, Any]) -> str | None:
    """Return the served model, with the backend's fingerprint where the server gives one."""
    names = [str(name) for name in (value.get("model"), value.get("system_fingerprint")) if name]
    return " ".join(names) or None


def _judged(response: Response, refusal: str) -> Response:
    if refusal:
        return replace(response, status=AnswerStatus.REFUSED, text=response.text or refusal, reason=refusal)
    if response.finish_reason == "content_filter":
        return replace(response, status=AnswerStatus.FILTERED, reason="the server's content filter stopped it")
    if response.finish_reason == "length":
        reason = f"the answer was cut at {response.completion_tokens} tokens; raise max_answer_tokens"
        return replace(response, status=AnswerStatus.TRUNCATED, reason=reason)
    return replace(response, status=AnswerStatus.ANNOTATED)


def read_failure(status_code: int, headers: Mapping[str, str], text: str) -> Failure:
    """Read an error response, whose text may be JSON."""
    try:
        body: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        body = text
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(inner, Mapping):
        return Failure(status_code, "", str(inner or "")[:500], retry_after_s(headers))
    message = inner.get("message") or inner.get("detail") or json.dumps(inner)
    code = str(inner.get("code") or inner.get("type") or "")
    nested = inner.get("innererror")
    if isinstance(nested, Mapping) and "ResponsibleAIPolicyViolation" in str(nested.get("code")):
        code = "content_filter"
    return Failure(status_code, code, str(message)[:500], retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the pause that a server asks for, in seconds or as a date, at most ten minutes."""
    milliseconds, after = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds:
            pause = float(milliseconds) / 1000
        elif after and after.strip().replace(".", "", 1).isdigit():
            pause = float(after)
        elif after:
            pause = parsedate_to_datetime(after).timestamp() - time()
        else:
            return None
    except ValueError:
        return None
    return min(max(pause, 0.0), MAX_RETRY_AFTER_S)
