"""One request to one endpoint: what is sent, what is tried again, and when to give up for good."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import openai

from estner_assets.llm.completions import BrokenBody, Failure, read_completion, read_failure
from estner_assets.llm.endpoints import Endpoint, EndpointError, StructuredOutput
from estner_assets.llm.requests import JSON, Request, Response, now
from estner_assets.ner.parsing import AnswerStatus

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FATAL = frozenset({401, 403, 404})
MAX_BACKOFF_S = 60.0
_OWN_PARAMETERS = frozenset({"temperature", "seed", "max_tokens", "top_p", "response_format", "stop"})
_WEAKER: Mapping[StructuredOutput, StructuredOutput] = {"json_schema": "json_object", "json_object": "none"}


@dataclass(frozen=True)
class _Retry:
    """A failure that another try may heal."""

    status: AnswerStatus
    reason: str
    after_s: float | None = None


Answer: TypeAlias = tuple[Response, str]
"""A response and the server's body."""


async def send(request: Request, endpoint: Endpoint, retries: int, timeout_s: float) -> Answer:
    """Return what became of the request and the raw body (``""`` where there is none).

    Tries again after rate limits, server errors, broken connections, time-outs and broken bodies, with
    exponential backoff and jitter or as ``Retry-After`` says. Raises ``EndpointError`` for what no other
    request would survive: a wrong key, no permission, an unknown model, an empty account.
    """
    if endpoint.is_settled:
        return await _send(request, endpoint, retries, timeout_s)
    # The first request goes alone: it finds out which format the server takes, and whether the key is good
    async with endpoint.settling:
        result = await _send(request, endpoint, retries, timeout_s)
        endpoint.is_settled = endpoint.is_settled or result[0].is_final
    return result


async def _send(request: Request, endpoint: Endpoint, retries: int, timeout_s: float) -> Answer:
    began = time.monotonic()
    attempt = 0
    while isinstance(outcome := await _negotiated(request, endpoint, timeout_s), _Retry):
        attempt += 1
        if attempt > retries:
            reason = f"{outcome.reason} (after {attempt} tries)"
            return Response(request.key, outcome.status, reason=reason, created_at=now()), ""
        await asyncio.sleep(_pause_s(attempt, outcome, endpoint.backoff_s))
    response, body = outcome
    return replace(response, latency_s=round(time.monotonic() - began, 3), created_at=now()), body


def _pause_s(attempt: int, retry: _Retry, backoff_s: float) -> float:
    if retry.after_s is not None:
        return retry.after_s
    # the jitter keeps workers that failed together from coming back together
    exponential = backoff_s * 2.0 ** (attempt - 1)
    return min(MAX_BACKOFF_S, exponential) * random.uniform(0.5, 1.5)


async def _negotiated(request: Request, endpoint: Endpoint, timeout_s: float) -> Answer | _Retry:
    """Try the endpoint's output format, then weaker ones; keep for the endpoint the first that it takes."""
    form: StructuredOutput | None = endpoint.structured_output
    refused: Failure | None = None
    while form is not None:
        outcome = await _once(request, endpoint, form, timeout_s)
        if not isinstance(outcome, Failure):
            if refused and not isinstance(outcome, _Retry):
                endpoint.structured_output = form
            return outcome
        refused = refused or outcome
        form = _WEAKER.get(form) if "response_format" in request.parameters else None
    assert refused is not None
    reason = f"the server refused the request ({refused.status_code}): {endpoint.redacted(refused.message)}"
    return Response(request.key, AnswerStatus.FAILED, reason=reason), ""


async def _once(
    request: Request, endpoint: Endpoint, form: StructuredOutput, timeout_s: float
) -> Answer | _Retry | Failure:
    """Send once. ``Failure`` means that the server takes this request for wrong."""
    empty = Response(request.key, AnswerStatus.FAILED)
    try:
        # httpx counts each read anew; this bounds the whole answer, also of a server that trickles
        async with asyncio.timeout(timeout_s):
            body = await _body(request, endpoint, form)
        return read_completion(body, empty), body
    except (openai.APITimeoutError, TimeoutError):
        return _Retry(AnswerStatus.TIMED_OUT, f"no answer within {timeout_s:g} s")
    except openai.APIStatusError as error:
        failure = read_failure(error.status_code, error.response.headers, error.body or error.response.text)
        return _judged(failure, endpoint, empty)
    except openai.APIConnectionError as error:
        cause = type(error.__cause__ or error).__name__
        return _Retry(AnswerStatus.FAILED, f"no connection to {endpoint.host} ({cause})")
    except (BrokenBody, json.JSONDecodeError, openai.APIResponseValidationError) as error:
        return _Retry(AnswerStatus.FAILED, endpoint.redacted(f"unreadable answer: {error}"))


def _judged(failure: Failure, endpoint: Endpoint, empty: Response) -> Answer | _Retry | Failure:
    if failure.code == "insufficient_quota" or failure.status_code in FATAL:
        # from None at the caller's: the SDK's exception carries the request with its headers
        raise EndpointError(_fatal_message(failure, endpoint)) from None
    if failure.code == "content_filter":
        reason = endpoint.redacted(failure.message)
        return replace(empty, status=AnswerStatus.FILTERED, reason=reason), failure.message
    if failure.status_code in RETRIED or failure.status_code >= 500:
        reason = f"status {failure.status_code}: {endpoint.redacted(failure.message)}"
        return _Retry(AnswerStatus.FAILED, reason, failure.retry_after_s)
    return failure


def _fatal_message(failure: Failure, endpoint: Endpoint) -> str:
    remedies = {
        401: f"the key was not accepted; check the environment variable {endpoint.key_env or '(undeclared)'}",
        403: f"the key may not use the model {endpoint.model!r}; ask for access or declare another model",
        404: f"there is no model {endpoint.model!r} at this address; check `model` and the address",
    }
    remedy = remedies.get(failure.status_code, "the account's quota is used up; raise it, then run again")
    # a 401's message quotes parts of the key
    said = "" if failure.status_code == 401 else f" The server says: {endpoint.redacted(failure.message)}"
    return f"{endpoint.host} refused ({failure.status_code}): {remedy}.{said}"


async def _body(request: Request, endpoint: Endpoint, form: StructuredOutput) -> str:
    parameters: dict[str, JSON] = dict(request.parameters)
    if form == "none":
        parameters.pop("response_format", None)
    elif form == "json_object" and "response_format" in parameters:
        parameters["response_format"] = {"type": "json_object"}
    known: dict[str, Any] = {name: value for name, value in parameters.items() if name in _OWN_PARAMETERS}
    messages: Any = [{"role": message.role, "content": message.content} for message in request.messages]
    raw = await endpoint.client.chat.completions.with_raw_response.create(
        model=endpoint.model,
        messages=messages,
        # what the SDK does not know, such as llama.cpp's grammar
        extra_body={name: value for name, value in parameters.items() if name not in known} or None,
        **known,
    )
    return str(raw.http_response.text)
