"""Cutting requests into files that a batch may hold, and the money that is reserved for them."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO
from uuid import uuid4

from estner_assets.llm.budget import Budget, OverBudget
from estner_assets.llm.requests import Request, Response

REQUESTS_AT_ONCE = 500
"""Requests that are rendered, reserved and written together, and results that are stored together."""
FOREIGN_AT_ONCE = 5_000


@dataclass
class Part:
    """The file of one batch. It has no name, so that it is gone however the process ends."""

    file: IO[bytes]
    tag: str = field(default_factory=lambda: uuid4().hex)
    keys: list[str] = field(default_factory=list)
    size: int = 0
    planned: int = 0
    planned_size: int = 0

    def write(self, request: Request, line: bytes) -> None:
        """Add the line of a request, which was planned."""
        self.file.write(line)
        self.keys.append(request.key)
        self.size += len(line)


@dataclass(frozen=True)
class PartWriter:
    """Writes requests into as few parts as their limits allow.

    ``admit`` is given a part's tag and some requests just before they are written, and says for each whether it
    is to be written. Nothing but files of admitted requests reaches the disk, in ``folder``.
    """

    folder: Path
    line: Callable[[Request], bytes]
    admit: Callable[[str, Sequence[Request]], Sequence[bool]]
    max_requests: int
    max_bytes: int

    def parts(self, requests: Iterable[Request]) -> Iterator[Part]:
        """Yield parts that hold a request at least; the file of each is gone when the next one is asked for."""
        part = self._new()
        waiting: list[tuple[Request, bytes]] = []
        try:
            for request in requests:
                line = self.line(request)
                if len(waiting) == REQUESTS_AT_ONCE or not self._fits(part, line):
                    self._write(part, waiting)
                    waiting = []
                if not self._fits(part, line):
                    if part.keys:
                        yield part
                    part.file.close()
                    part = self._new()
                part.planned += 1
                part.planned_size += len(line)
                waiting.append((request, line))
            self._write(part, waiting)
            if part.keys:
                yield part
        finally:
            part.file.close()

    def _new(self) -> Part:
        return Part(tempfile.TemporaryFile(dir=self.folder, prefix="batch-"))

    def _fits(self, part: Part, line: bytes) -> bool:
        is_room = part.planned < self.max_requests and part.planned_size + len(line) <= self.max_bytes
        # a line that is too long for any file goes alone: the server says so better than we
        return is_room or not part.planned

    def _write(self, part: Part, waiting: Sequence[tuple[Request, bytes]]) -> None:
        admitted = self.admit(part.tag, [request for request, _ in waiting]) if waiting else []
        for (request, line), is_admitted in zip(waiting, admitted, strict=True):
            if is_admitted:
                part.write(request, line)
        part.file.flush()


class Reservations:
    """What this run reserved and has not settled; what dead processes left behind is settled by key.

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
        own = {response.key: response for response in responses if response.key in self._own}
        self._budget.settle(*own.values())
        self._own.difference_update(own)
        # the text is not needed, and a batch may have 50,000 of them
        self._foreign |= {one.key: replace(one, text="") for one in responses if one.key not in own}
        if len(self._foreign) >= FOREIGN_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Settle what dead processes reserved for the answers that were collected here."""
        if self._budget is not None and self._foreign:
            self._budget.recover(self._foreign)
        self._foreign = {}

    def release(self, keys: Iterable[str]) -> None:
        """Take back what was reserved for requests that were not sent, or ended without an answer."""
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
