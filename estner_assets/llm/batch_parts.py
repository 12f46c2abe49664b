"""Cutting requests into files that a batch may hold, and the money that is reserved for them."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import IO
from uuid import uuid4

from estner_assets.llm.batch_store import BatchStore
from estner_assets.llm.budget import Budget, OverBudget
from estner_assets.llm.requests import Request, Response
from estner_assets.llm.store import ResponseStore

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""OpenAI's limits of one batch, as of 2026: requests, and bytes of their file."""
REQUESTS_AT_ONCE = 500
"""Requests that are rendered, reserved and written together, and results that are stored together."""
FOREIGN_AT_ONCE = 5_000


@dataclass
class Part:
    """The file of one batch while it is written: anonymous, so that it is gone however the process ends."""

    file: IO[bytes]
    tag: str = field(default_factory=lambda: uuid4().hex)
    keys: list[str] = field(default_factory=list)
    size: int = 0

    def has_room(self, size: int, line: bytes, max_requests: int, max_bytes: int) -> bool:
        """Whether a line still fits when ``size`` requests of ``line``'s kind wait to be written."""
        return len(self.keys) + size < max_requests and self.size + len(line) <= max_bytes


class Reservations:
    """What this process reserved and has not settled; what others left behind is settled by their keys.

    A request is paid for once it is answered. One that ended without an answer costs nothing.
    """

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget
        self._own: set[str] = set()
        self._foreign: dict[str, Response] = {}

    def reserve(self, requests: Sequence[Request]) -> list[OverBudget | None]:
        """Reserve the worst case of each request, or say why it may not be sent."""
        if self._budget is None:
            return [None] * len(requests)
        verdicts = self._budget.reserve_many(requests)
        self._own.update(request.key for request, over in zip(requests, verdicts, strict=True) if over is None)
        return verdicts

    def settle(self, responses: Sequence[Response]) -> None:
        """Say what stored answers came to."""
        if self._budget is None:
            return
        self._budget.settle(*(response for response in responses if response.key in self._own))
        # the text is not needed, and a batch may have 50,000 of them
        self._foreign |= {one.key: replace(one, text="") for one in responses if one.key not in self._own}
        self._own.difference_update(response.key for response in responses)
        if len(self._foreign) >= FOREIGN_AT_ONCE:
            self.flush()

    def release(self, keys: Iterable[str]) -> None:
        """Take back what was reserved for requests that were not sent, or not answered."""
        if self._budget is None:
            return
        nothing: dict[str, int | None] = {}
        for key in keys:
            if key in self._own:
                self._own.remove(key)
                self._budget.release(key)
            else:
                nothing[key] = 0
        if nothing:
            self._budget.ledger.recover(nothing)

    def flush(self) -> None:
        """Settle what dead processes reserved for the answers that were collected here."""
        if self._budget is not None and self._foreign:
            self._budget.recover(self._foreign)
        self._foreign = {}


@dataclass(frozen=True)
class PartWriter:
    """Writes requests into parts. What is written is noted as taken and reserved before."""

    line: Callable[[Request], bytes]
    """The line of a request, once the wall has let it through."""
    take: Callable[[str, Sequence[str]], None]
    refuse: Callable[[str, str, OverBudget | None], None]
    reservations: Reservations
    state: BatchStore
    store: ResponseStore
    max_requests: int
    max_bytes: int

    def parts(self, requests: Iterator[Request]) -> Iterator[Part]:
        """Yield files that are to be uploaded at once; each is gone when the next one is asked for."""
        part = self._part()
        try:
            while some := list(islice(requests, REQUESTS_AT_ONCE)):
                waiting: list[tuple[Request, bytes]] = []
                for request in some:
                    line = self.line(request)
                    if not self._fits(part, waiting, line):
                        self._write(part, waiting)
                        waiting = []
        finally:
            part.file.close()
