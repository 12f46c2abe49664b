"""Asking many questions: a few at once, each stored as soon as it is answered, none asked twice."""

import asyncio
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import uuid4

from estner_assets.llm.budget import Budget
from estner_assets.llm.endpoints import Endpoint
from estner_assets.llm.requests import Request, Response, now
from estner_assets.llm.sending import send
from estner_assets.llm.store import Claim, Journal, ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import LlmAnnotator

FAILURES_IN_A_ROW = 25
"""After so many failures without one answer between them the rest is not asked: the server is down."""
KEYS_AT_ONCE = 500
"""Keys that the store is asked for together."""
WORKERS_A_TURN = 2
WISHES_SHARE = 4
"""The store is written to when a quarter of the workers wait for it, or the first of them for ``LINGER_S``."""
LINGER_S = 0.02
_CLAIM_POLL_S = 0.2
_NO_FAILURES = frozenset({AnswerStatus.PENDING, AnswerStatus.OVER_BUDGET})


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


def ask(
    requests: Sequence[Request],
    endpoint: Endpoint,
    annotator: LlmAnnotator,
    store: ResponseStore,
    wall: Wall,
    progress: Callable[[Progress], None],
    budget: Budget | None = None,
) -> dict[str, Response]:
    """Ask for what the store lacks and return, by key, the outcomes that are not in the store afterwards.

    ``requests`` is read twice by index and may render lazily; of what the store has nothing is held, of the rest
    one key per request. Equal keys are asked once. Final responses are stored before their worker goes on;
    failures and time-outs are not, so that the next run asks again. What the ``budget`` does not allow is not sent.

    Raises ``EgressRefused`` before anything is sent, ``EndpointError`` when no request can succeed.
    """
    return _outcomes(_Run(requests, endpoint, annotator, store, wall, progress, budget))


def answer(
    requests: Sequence[Request],
    endpoint: Endpoint,
    annotator: LlmAnnotator,
    store: ResponseStore,
    wall: Wall,
    progress: Callable[[Progress], None],
) -> list[Response]:
    """Do ``ask`` and return one response per request, in their order; this holds all of them in memory."""
    keys: list[str] = []
    lost = _outcomes(_Run(requests, endpoint, annotator, store, wall, progress, seen=keys.extend))
    stored = store.get_many(keys)
    return [lost.get(key) or stored[key] for key in keys]


def _outcomes(run: "_Run") -> dict[str, Response]:
    try:
        run.endpoint.run(run.all())
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        run.store.retire(run.owner)
    return run.lost


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Run:
    """The state of one call of ``ask``; everything here happens on the endpoint's one event loop."""

    def __init__(
        self,
        requests: Sequence[Request],
        endpoint: Endpoint,
        annotator: LlmAnnotator,
        store: ResponseStore,
        wall: Wall,
        progress: Callable[[Progress], None],
        budget: Budget | None = None,
        seen: Callable[[Sequence[str]], object] = len,
    ) -> None:
        self._requests, self._annotator, self._wall, self._progress = requests, annotator, wall, progress
        self.endpoint, self.store, self._budget = endpoint, store, budget
        self.owner, self._began = uuid4().hex, time.monotonic()
        self.lost: dict[str, Response] = {}
        self._failures_in_a_row = self._failed = self._cached = self._total = 0
        self._prompt_tokens = self._completion_tokens = 0
        # in the same order: how many requests ask for a key, and the place of the first of them
        self._askers: dict[str, int] = {}
        self._places = array("Q")
        for keys in self._checked_keys():
            self._note(keys)
            seen(keys)
        self._done = self._cached

    def _checked_keys(self) -> Iterator[list[str]]:
        """Yield the keys of all requests, some at a time, after the wall has looked at them."""
        requests = iter(self._requests)
        while keys := [self._checked_key(request) for request in islice(requests, KEYS_AT_ONCE)]:
            yield keys

    def _checked_key(self, request: Request) -> str:
        self._wall.check(request, self.endpoint)
        return request.key

    def _note(self, keys: Sequence[str]) -> None:
        stored = self.store.known(keys)
        for key in keys:
            if key in stored:
                self._cached += 1
            elif key in self._askers:
                self._askers[key] += 1
            else:
                self._askers[key] = 1
                self._places.append(self._total)
            self._total += 1

    async def all(self) -> None:
        """Answer what is missing, with as many requests at once as the endpoint's limits allow."""
        self._report()
        # more workers than turns: while one waits for the disk, another one has its turn
        count = min(WORKERS_A_TURN * self._annotator.concurrency, len(self._places))
        journal = Journal(self.store, self.owner, max(1, count // WISHES_SHARE), LINGER_S)
        # one iterator for all workers: what is not yet asked is not rendered
        missing = zip(self._askers, self._places, strict=True)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(count):
                    workers.create_task(self._work(missing, journal))
        finally:
            journal.close()

    async def _work(self, missing: Iterator[tuple[str, int]], journal: Journal) -> None:
        for key, place in missing:
            if self._is_over():
                reason = f"not asked: {self._failures_in_a_row} requests before it failed in a row"
                self._settle(key, Response(key, AnswerStatus.PENDING, reason=reason, created_at=now()))
            else:
                self._settle(key, await self._claimed(key, place, journal))

    def _is_over(self) -> bool:
        return self._failures_in_a_row >= FAILURES_IN_A_ROW

    async def _claimed(self, key: str, place: int, journal: Journal) -> Response | None:
        """Answer a request that nobody else is asking; ``None``: another process has stored its answer."""
        while (claim := await journal.claim(key)) is Claim.TAKEN:
            await asyncio.sleep(_CLAIM_POLL_S)
        if claim is Claim.STORED:
            return None
        # a claim that a cancellation leaves behind goes when the run's owner retires
        request = self._requests[place]
        self._wall.check(request, self.endpoint)
        asked = self._annotator
        response, body = await send(request, self.endpoint, asked.retries, asked.timeout_s, self._is_over, self._budget)
        if response.is_final:
            await journal.put(response, body)
            if self._budget is not None:
                self._budget.settle(response)
        else:
            await journal.release(key)
        return response

    def _settle(self, key: str, response: Response | None) -> None:
        askers = self._askers[key]
        self._done += askers
        if response is None or response.is_final:
            self._failures_in_a_row = 0
        else:
            self.lost[key] = response
            self._failed += askers
            self._failures_in_a_row += response.status not in _NO_FAILURES
        if response is not None:
            self._prompt_tokens += response.prompt_tokens
            self._completion_tokens += response.completion_tokens
        self._report()

    def _report(self) -> None:
        self._progress(
            Progress(
                done=self._done,
                cached=self._cached,
                failed=self._failed,
                total=self._total,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._completion_tokens,
                elapsed_s=time.monotonic() - self._began,
            )
        )
