"""The calls of OpenAI's Batch API, each of which answers, cannot be made, or may be made again.

https://platform.openai.com/docs/api-reference/batch and ``/files``; Azure OpenAI has the same calls.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, TypeVar

import httpx2
import openai

from estner_assets.llm.completions import read_failure
from estner_assets.llm.endpoints import Endpoint, EndpointError
from estner_assets.llm.sending import MAX_BACKOFF_S, RETRIED
from estner_assets.settings import AzureAnnotator, LlmAnnotator

COMPLETION_WINDOW: Literal["24h"] = "24h"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
TAG = "estner"
"""The metadata under which a batch carries our name of it."""
UPLOAD_BYTES_PER_S = 50_000
"""An upload may take the declared time-out, and a second for each of so many bytes."""
PAGE = 100
CLOCK_SKEW_S = 3600.0
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
T = TypeVar("T")


class Unreachable(RuntimeError):
    """A call that may be made again. ``may_have_worked`` unless the server surely did nothing."""

    def __init__(self, message: str, may_have_worked: bool = True, after_s: float | None = None) -> None:
        super().__init__(message)
        self.may_have_worked, self.after_s = may_have_worked, after_s


class Missing(RuntimeError):
    """The server knows no such batch or file."""


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the server describes it; ``errors`` says, for one that failed, what was wrong with its file."""

    id: str
    status: str
    created_at: float
    tag: str | None
    file_ids: tuple[str, ...]
    error_code: str
    errors: str

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


class BatchApi:
    """The Batch API of one endpoint.

    Every call may raise ``EndpointError`` for what no batch would survive, and ``Unreachable``.
    """

    def __init__(self, endpoint: Endpoint, annotator: LlmAnnotator) -> None:
        self._endpoint, self._client = endpoint, endpoint.client
        self._timeout_s, self._retries = annotator.timeout_s, annotator.retries
        # the SDK's types know OpenAI's addresses only
        is_azure = isinstance(annotator, AzureAnnotator)
        self.url: Any = "/chat/completions" if is_azure else "/v1/chat/completions"

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call; where it may heal again, as often as declared, with backoff as of single requests."""
        tries = 0
        while True:
            try:
                return await call()
            except Unreachable as error:
                tries += 1
                if tries > self._retries:
                    raise Unreachable(f"{error} (after {tries} tries)", error.may_have_worked) from None
                exponential = self._endpoint.backoff_s * 2.0 ** (tries - 1)
                pause_s = min(MAX_BACKOFF_S, exponential) * random.uniform(0.5, 1.5)
                await asyncio.sleep(pause_s if error.after_s is None else error.after_s)

    async def upload(self, file: IO[bytes], size: int, name: str) -> str:
        """Send a file of requests of ``size`` bytes and return its id."""
        files = self._client.files.with_raw_response
        with self._judged("an upload of requests"):
            async with asyncio.timeout(self._timeout_s + size / UPLOAD_BYTES_PER_S):
                # the open file, not its path: the SDK would read that as a whole
                answer = await files.create(file=(name, file, "application/jsonl"), purpose="batch")
            return str(json.loads(answer.text)["id"])

    async def create(self, file_id: str, tag: str) -> RemoteBatch:
        """Have the requests of an uploaded file answered."""
        batches = self._client.batches.with_raw_response
        with self._judged("a batch"):
            async with asyncio.timeout(self._timeout_s):
                answer = await batches.create(
                    input_file_id=file_id,
                    endpoint=self.url,
                    completion_window=COMPLETION_WINDOW,
                    metadata={TAG: tag},
                )
            return self._batch(json.loads(answer.text))

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return how a batch is; raise ``Missing`` when there is none."""
        batches = self._client.batches.with_raw_response
        with self._judged("the batch", may_be_missing=True):
            async with asyncio.timeout(self._timeout_s):
                answer = await batches.retrieve(batch_id)
            return self._batch(json.loads(answer.text))

    async def find(self, tag: str, since: float) -> RemoteBatch | None:
        """Return the batch with this tag, created at ``since`` (Unix time) or later, if there is one."""
        batches = self._client.batches.with_raw_response
        after: str | openai.Omit = openai.omit
        with self._judged("a list of batches"):
            while True:
                async with asyncio.timeout(self._timeout_s):
                    answer = await batches.list(limit=PAGE, after=after)
                page = json.loads(answer.text)
                listed = [self._batch(one) for one in page.get("data") or []]
                for batch in listed:
                    if batch.tag == tag:
                        return batch
                # the newest come first
                is_past = all(batch.created_at < since - CLOCK_SKEW_S for batch in listed)
                if is_past or not page.get("has_more"):
                    return None
                after = listed[-1].id

    async def lines(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a file without their ends as they arrive; raise ``Missing`` when there is none."""
        files, rest = self._client.files.with_streaming_response, b""
        with self._judged("the results", may_be_missing=True):
            async with asyncio.timeout(self._timeout_s) as patience:
                async with files.content(file_id) as answer:
                    # not iter_lines: it takes U+2028 within an answer for the end of a line
                    async for some in answer.iter_bytes():
                        # no limit while the caller works: only the server's pauses count
                        patience.reschedule(None)
                        *whole, rest = (rest + some).split(b"\n")
                        for line in filter(bytes.strip, whole):
                            yield line
                        patience.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
            if rest.strip():
                yield rest

    def _batch(self, value: Mapping[str, Any]) -> RemoteBatch:
        errors = [one for one in (value.get("errors") or {}).get("data") or [] if isinstance(one, Mapping)]
        file_ids = (value.get("output_file_id"), value.get("error_file_id"))
        return RemoteBatch(
            id=str(value["id"]),
            status=str(value["status"]),
            created_at=float(value.get("created_at") or 0),
            tag=(value.get("metadata") or {}).get(TAG),
            file_ids=tuple(str(one) for one in file_ids if one),
            error_code=str(errors[0].get("code") or "") if errors else "",
            errors="; ".join(_described(one) for one in errors[:3]) or "it does not say why",
        )

    @contextmanager
    def _judged(self, what: str, may_be_missing: bool = False) -> Iterator[None]:
        """Turn the errors of a call for ``what`` into those that are documented; no error keeps the key."""
        host = self._endpoint.host
        error: Exception | None = None
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError) as caught:
            cause = caught.__cause__ if isinstance(caught, openai.APITimeoutError) else caught
            late = f"no answer from {host} within {self._timeout_s:g} s"
            error = Unreachable(late, may_have_worked=not isinstance(cause, _NOT_SENT))
        except openai.APIStatusError as caught:
            error = self._refused(what, caught, may_be_missing)
        except (openai.APIConnectionError, httpx2.TransportError) as caught:
            cause = caught.__cause__ if isinstance(caught, openai.APIConnectionError) else caught
            gone = f"no connection to {host} ({type(cause).__name__})"
            error = Unreachable(gone, may_have_worked=not isinstance(cause, _NOT_SENT))
        except (ValueError, KeyError, TypeError, AttributeError) as caught:
            error = Unreachable(f"unreadable answer from {host}: {type(caught).__name__}")
        if error is not None:
            raise error from None

    def _refused(self, what: str, error: openai.APIStatusError, may_be_missing: bool) -> Exception:
        endpoint, status = self._endpoint, error.status_code
        failure = read_failure(status, error.response.headers, error.response.text)
        said = endpoint.redacted(failure.message)
        if status == 404 and may_be_missing:
            return Missing(said)
        is_empty_account = failure.code == "insufficient_quota"
        if not is_empty_account and (status in RETRIED or status >= 500):
            return Unreachable(f"status {status}: {said}", status != 429, failure.retry_after_s)
        remedies = {
            401: f"the key was not accepted; check the environment variable {endpoint.key_env or '(undeclared)'}",
            403: "the key may not use files and batches; ask for access or declare `mode: chat`",
            404: "there is no Batch API at this address; declare `mode: chat`",
            405: "there is no Batch API at this address; declare `mode: chat`",
            429: "the account's quota is used up; raise it, then run again",
        }
        remedy = remedies.get(status, "change what it names, or declare `mode: chat`")
        # a 401's message quotes parts of the key
        quoted = "" if status == 401 else f" The server says: {said}"
        return EndpointError(f"{endpoint.host} refused {what} ({status}): {remedy}.{quoted}")


def _described(error: Mapping[str, Any]) -> str:
    where = f"line {error['line']}: " if error.get("line") is not None else ""
    return f"{where}{str(error.get('message') or error.get('code'))[:500]}"
