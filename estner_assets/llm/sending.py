"""One request to one endpoint: what is sent, what is tried again, and when to give up for good."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import httpx2
import openai

from estner_assets.llm.budget import Budget
from estner_assets.llm.completions import BrokenBody, Failure, read_completion, read_failure
from estner_assets.llm.endpoints import Endpoint, EndpointError, StructuredOutput
from estner_assets.llm.requests import Request, Response, now
from estner_assets.ner.parsing import AnswerStatus

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FATAL = frozenset({401, 403, 404})
OVERLOADED = frozenset({429, 503, 529})
"""Statuses after which fewer requests are sent at once; time-outs count with them."""
REFUSED = frozenset({429, 529})
MAX_BACKOFF_S = 60.0
_WEAKER: Mapping[StructuredOutput, StructuredOutput] = {"json_schema": "json_object", "json_object": "none"}


@dataclass(frozen=True)
class _Retry:
    """A failure that another try may heal."""

    status: AnswerStatus
    reason: str
    after_s: float | None = None
    is_overload: bool = False
    is_refusal: bool = False
    """The server told us to come later, which is no fault of the request."""
    is_unreachable: bool = False
    may_cost: bool = False
    """The server may have worked on it, so its worst case stays counted."""


Answer: TypeAlias = tuple[Response, str]
"""A response and the server's body."""


def never() -> bool:
    """Say that a run goes on."""
    return False


async def send(
    request: Request,
    endpoint: Endpoint,
    retries: int,
    timeout_s: float,
    is_over: Callable[[], bool] = never,
    budget: Budget | None = None,
) -> Answer:
    """Return what became of the request and the raw body (``""`` where there is none).

    Each try waits for its turn by the endpoint's limits. Tries again after rate limits, server errors, broken
    connections, time-outs and broken bodies, with exponential backoff and jitter or, with all other requests, as
    ``Retry-After`` says. A try that the server puts off (429, 529) does not count while it answers others. What
    has its turn when ``is_over()`` is not asked any more. ``timeout_s`` bounds each try, in seconds. Each try
    reserves its worst case of the ``budget``; who stores the answer settles it. Raises
    ``EndpointError`` for what no other request would survive: a wrong key, no permission, an unknown model, an
    empty account.
    """
    if not endpoint.is_settled:
        # The first request goes alone: it finds out which format the server takes, and whether the key is good
        async with endpoint.settling:
            if not endpoint.is_settled:
                result = await _send(request, endpoint, retries, timeout_s, is_over, budget)
                endpoint.is_settled = endpoint.is_settled or result[0].is_final
                return result
    return await _send(request, endpoint, retries, timeout_s, is_over, budget)


async def _send(
    request: Request,
    endpoint: Endpoint,
    retries: int,
    timeout_s: float,
    is_over: Callable[[], bool],
    budget: Budget | None,
) -> Answer:
    limits = endpoint.limits
    tries = counted = 0
    while True:
        answers = limits.answers
        outcome = await _negotiated(request, endpoint, timeout_s, is_over, budget)
        if not isinstance(outcome, _Retry):
            return outcome
        tries += 1
        # ends all the same: each try that does not count is paid with another request's answer
        counted += not (outcome.is_refusal and limits.answers > answers)
        if counted > retries and outcome.is_unreachable and not endpoint.is_settled:
            raise EndpointError(f"{outcome.reason} in {tries} tries; is the server running, and its address right?")
        if counted > retries:
            reason = f"{outcome.reason} (after {tries} tries)"
            return Response(request.key, outcome.status, reason=reason, created_at=now()), ""
        await asyncio.sleep(_pause_s(tries, outcome, endpoint.backoff_s))


def _size(request: Request) -> tuple[int, int]:
    """Return the characters of a request, and the tokens that its answer may have."""
    answer_tokens = request.parameters.get("max_tokens")
    characters = sum(len(message.content) for message in request.messages)
    return characters, answer_tokens if isinstance(answer_tokens, int) else 0


def _pause_s(attempt: int, retry: _Retry, backoff_s: float) -> float:
    if retry.after_s is not None:
        # a pause for all, this one too: it stands in the limits
        return 0.0 if retry.is_overload else retry.after_s
    # the jitter keeps workers that failed together from coming back together
    exponential = backoff_s * 2.0 ** (attempt - 1)
    return min(MAX_BACKOFF_S, exponential) * random.uniform(0.5, 1.5)


async def _negotiated(
    request: Request, endpoint: Endpoint, timeout_s: float, is_over: Callable[[], bool], budget: Budget | None
) -> Answer | _Retry:
    """Try the endpoint's output format, then weaker ones; keep for the endpoint the first that it takes."""
    form: StructuredOutput | None = endpoint.structured_output
    refused: Failure | None = None
    while form is not None:
        outcome = await _in_turn(request, endpoint, form, timeout_s, is_over, budget)
        if not isinstance(outcome, Failure):
            if refused and not isinstance(outcome, _Retry) and outcome[0].is_final:
                endpoint.structured_output = form
            return outcome
        refused = refused or outcome
        form = _WEAKER.get(form) if "response_format" in request.parameters else None
    assert refused is not None
    reason = f"the server refused the request ({refused.status_code}): {endpoint.redacted(refused.message)}"
    return Response(request.key, AnswerStatus.FAILED, reason=reason), ""


async def _in_turn(
    request: Request,
    endpoint: Endpoint,
    form: StructuredOutput,
    timeout_s: float,
    is_over: Callable[[], bool],
    budget: Budget | None,
) -> Answer | _Retry | Failure:
    """Wait for a turn, send once, and let the limits learn from it."""
    limits = endpoint.limits
    turn = await limits.turn(*_size(request))
    try:
        if is_over():
            reason = "not asked: too many requests before it failed in a row"
            return Response(request.key, AnswerStatus.PENDING, reason=reason, created_at=now()), ""
        began = time.monotonic()
        outcome = await _paid(request, endpoint, form, timeout_s, budget)
        if isinstance(outcome, _Retry) and outcome.is_overload:
            limits.overloaded(turn, outcome.after_s)
        if isinstance(outcome, _Retry | Failure):
            return outcome
        response, body = outcome
        if response.status is AnswerStatus.OVER_BUDGET:
            return outcome
        limits.answered(turn, response.prompt_tokens, response.completion_tokens)
        return replace(response, latency_s=round(time.monotonic() - began, 3), created_at=now()), body
    finally:
        limits.end(turn)


async def _paid(
    request: Request, endpoint: Endpoint, form: StructuredOutput, timeout_s: float, budget: Budget | None
) -> Answer | _Retry | Failure:
    """Send once, within the budget; take the reservation back for what the server did not work on."""
    if budget is None:
        return await _once(request, endpoint, form, timeout_s)
    if over := budget.reserve(request):
        return Response(request.key, AnswerStatus.OVER_BUDGET, reason=str(over), created_at=now()), ""
    try:
        outcome = await _once(request, endpoint, form, timeout_s)
    except EndpointError:
        budget.release(request.key)
        raise
    if isinstance(outcome, Failure) or (isinstance(outcome, _Retry) and not outcome.may_cost):
        budget.release(request.key)
    return outcome


async def _once(
    request: Request, endpoint: Endpoint, form: StructuredOutput, timeout_s: float
) -> Answer | _Retry | Failure:
    """Send once. ``Failure`` means that the server takes this request for wrong."""
    empty = Response(request.key, AnswerStatus.FAILED)
    try:
        # httpx counts each read anew; this bounds the whole answer, also of a server that trickles
        async with asyncio.timeout(timeout_s):
            answer = await endpoint.post(_body(request, endpoint, form))
    except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError):
        return _Retry(AnswerStatus.TIMED_OUT, f"no answer within {timeout_s:g} s", is_overload=True, may_cost=True)
    except (openai.APIConnectionError, httpx2.RequestError) as error:
        cause = error.__cause__ or error if isinstance(error, openai.APIConnectionError) else error
        may_cost = not isinstance(cause, httpx2.ConnectError)
        reason = f"no connection to {endpoint.host} ({type(cause).__name__})"
        return _Retry(AnswerStatus.FAILED, reason, is_unreachable=not may_cost, may_cost=may_cost)
    endpoint.limits.learn(answer.headers.raw)
    if not answer.is_success:
        return _judged(read_failure(answer.status_code, answer.headers, answer.text), endpoint, empty)
    try:
        return read_completion(answer.text, empty), answer.text
    except BrokenBody as error:
        return _Retry(AnswerStatus.FAILED, endpoint.redacted(f"unreadable answer: {error}"), may_cost=True)


def _judged(failure: Failure, endpoint: Endpoint, empty: Response) -> Answer | _Retry | Failure:
    if failure.code == "insufficient_quota" or failure.status_code in FATAL:
        raise EndpointError(_fatal_message(failure, endpoint))
    if failure.code == "content_filter":
        reason = endpoint.redacted(failure.message)
        return replace(empty, status=AnswerStatus.FILTERED, reason=reason), failure.message
    if failure.status_code in RETRIED or failure.status_code >= 500:
        reason = f"status {failure.status_code}: {endpoint.redacted(failure.message)}"
        is_overload, is_refusal = failure.status_code in OVERLOADED, failure.status_code in REFUSED
        # a gateway that gives up does not stop the server behind it
        may_cost = not (is_overload or is_refusal)
        return _Retry(AnswerStatus.FAILED, reason, failure.retry_after_s, is_overload, is_refusal, may_cost=may_cost)
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


def _body(request: Request, endpoint: Endpoint, form: StructuredOutput) -> dict[str, object]:
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, object] = {"model": endpoint.model, "messages": messages, **request.parameters}
    if form == "none":
        body.pop("response_format", None)
    elif form == "json_object" and "response_format" in body:
        body["response_format"] = {"type": "json_object"}
    return body
