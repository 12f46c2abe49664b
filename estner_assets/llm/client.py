"""Asking many questions: a few at once, each stored as soon as it is answered, none asked twice."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

from estner_assets.llm.endpoints import Endpoint
from estner_assets.llm.requests import Request, Response, now
from estner_assets.llm.sending import send
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import LlmAnnotator

FAILURES_IN_A_ROW = 25
"""After so many failures without one answer between them the rest is not asked: the server is down."""
_CLAIM_POLL_S = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``done`` counts requests with an outcome, ``cached`` those that the store had."""

    done: int
    cached: int
    failed: int
    total: int
    prompt_tokens: int
    completion_tokens: int
    elapsed_s: float


def answer(
    requests: Sequence[Request],
    endpoint: Endpoint,
    annotator: LlmAnnotator,
    store: ResponseStore,
    wall: Wall,
    progress: Callable[[Progress], None],
) -> list[Response]:
    """Return one response per request, in their order, from the store where it has them.

    ``requests`` is read by index and may render lazily; equal keys are asked once. Final responses are stored
    before this goes on; failures and time-outs are not, so that the next run asks again.

    Raises ``EgressRefused`` before anything is sent, ``EndpointError`` when no request can succeed.
    """
    run = _Run(requests, endpoint, annotator, store, wall, progress)
    try:
        endpoint.run(run.all())
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        store.retire(run.owner)
    return [run.outcomes[key] for key in run.keys]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Run:
    """The state of one call of ``answer``; everything here happens on the endpoint's one event loop."""

    def __init__(
        self,
        requests: Sequence[Request],
        endpoint: Endpoint,
        annotator: LlmAnnotator,
        store: ResponseStore,
        wall: Wall,
        progress: Callable[[Progress], None],
    ) -> None:
        self._requests, self._endpoint, self._annotator = requests, endpoint, annotator
        self._store, self._wall, self._progress = store, wall, progress
        self.owner, self._began = uuid4().hex, time.monotonic()
        self._failures_in_a_row = 0
        self._prompt_tokens = self._completion_tokens = 0
        self.keys: list[str] = []
        for request in requests:
            wall.check(request, endpoint)
            self.keys.append(request.key)
        self.outcomes = store.get_many(self.keys)
        self._cached = sum(key in self.outcomes for key in self.keys)
        self._done, self._failed = self._cached, 0

    async def all(self) -> None:
        """Answer what is missing, with as many workers as the annotator allows."""
        self._report()
        missing = {key: index for index, key in enumerate(self.keys) if key not in self.outcomes}
        self._askers = {key: 0 for key in missing}
        for key in self.keys:
            if key in self._askers:
                self._askers[key] += 1
        # one iterator for all workers: what is not yet asked takes no memory
        indexes = iter(missing.values())
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._annotator.concurrency, len(missing))):
                workers.create_task(self._work(indexes))

    async def _work(self, indexes: Iterator[int]) -> None:
        for index in indexes:
            request = self._requests[index]
            if self._failures_in_a_row >= FAILURES_IN_A_ROW:
                reason = f"not asked: {self._failures_in_a_row} requests before it failed in a row"
                self._settle(Response(request.key, AnswerStatus.NOT_ASKED, reason=reason, created_at=now()))
            else:
                self._settle(await self._claimed(request))

    async def _claimed(self, request: Request) -> Response:
        """Answer a request that nobody else is asking; while another process asks it, wait for its answer."""
        # not in a thread: a thread would go on after a cancellation, and claim for a run that is over
        while not self._store.claim(request.key, self.owner):
            await asyncio.sleep(_CLAIM_POLL_S)
        try:
            # looked up under the claim: another process may have answered since the run began
            stored = self._store.get_many([request.key]).get(request.key)
            return stored or await self._asked(request)
        finally:
            self._store.release(request.key, self.owner)

    async def _asked(self, request: Request) -> Response:
        self._wall.check(request, self._endpoint)
        response, body = await send(request, self._endpoint, self._annotator.retries, self._annotator.timeout_s)
        if response.is_final:
            await asyncio.to_thread(self._store.put, response, body)
        self._prompt_tokens += response.prompt_tokens
        self._completion_tokens += response.completion_tokens
        return response

    def _settle(self, response: Response) -> None:
        self.outcomes[response.key] = response
        askers = self._askers[response.key]
        self._done += askers
        if not response.is_final:
            self._failed += askers
            self._failures_in_a_row += response.status is not AnswerStatus.NOT_ASKED
        else:
            self._failures_in_a_row = 0
        self._report()

    def _report(self) -> None:
        self._progress(
            Progress(
                done=self._done,
                cached=self._cached,
                failed=self._failed,
                total=len(self.keys),
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._completion_tokens,
                elapsed_s=time.monotonic() - self._began,
            )
        )
