"""Submitting batches so that none is submitted twice, wherever the process dies.

A batch is noted on disk with a tag before the server is asked for it. Whoever finds it there without an id looks
for the tag among the server's batches.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from estner_assets.llm.batch_api import RemoteBatch, Unreachable
from estner_assets.llm.batch_lines import request_line
from estner_assets.llm.batch_parts import Part, PartWriter
from estner_assets.llm.batch_session import OpenBatch, Session
from estner_assets.llm.batch_store import PREPARING, Batch
from estner_assets.llm.endpoints import EndpointError
from estner_assets.llm.requests import Request
from estner_assets.ner.parsing import AnswerStatus

LIFETIME_S = 25 * 3600.0
"""After this a batch answers nothing more: the window of a day, and an hour to write its files."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be at OpenAI, and how long a new one may take to be listed."""

    requests: int = 50_000
    bytes: int = 200_000_000
    find_s: float = 60.0
    """A batch that was asked for and is not listed so many seconds later was never made."""


class _Uncertain(RuntimeError):
    """Nobody can say at present whether the server has made a batch."""


@dataclass(frozen=True)
class Submitter:
    """Submits what no open batch holds, and joins those who wait for the others."""

    session: Session
    limits: BatchLimits

    async def join(self, keys: set[str]) -> set[str]:
        """Wait for the open batches that hold some of these keys, and return the keys that none holds."""
        with self.session.state.submitting():
            return await self._joined(keys)

    async def submit(self, keys: set[str]) -> None:
        """Submit what no batch holds and the store still lacks, in as many batches as it takes."""
        session, left = self.session, set[str]()

        def admit(tag: str, requests: Sequence[Request]) -> list[bool]:
            left.difference_update(request.key for request in requests)
            return self._admitted(tag, requests)

        most = min(session.annotator.batch_requests, self.limits.requests)
        writer = PartWriter(session.state.path.parent, self._line, admit, most, self.limits.bytes)
        with session.state.submitting():
            left |= await self._joined(keys)
            for part in writer.parts(session.outcomes.requests(set(left))):
                trouble = await self._sent(part)
                if trouble:
                    session.outcomes.lose(AnswerStatus.PENDING, dict.fromkeys(left, f"not asked: {trouble}"))
                    return

    def _line(self, request: Request) -> bytes:
        form = self.session.annotator.structured_output
        return request_line(request, self.session.endpoint.model, form, self.session.api.url)

    def _admitted(self, tag: str, requests: Sequence[Request]) -> list[bool]:
        """Note which requests go with a batch: those that the store lacks and the budget allows."""
        session = self.session
        stored = session.store.known([request.key for request in requests])
        session.outcomes.found(stored)
        wanted = [request for request in requests if request.key not in stored]
        session.state.take(tag, session.endpoint.host, session.endpoint.model, [request.key for request in wanted])
        verdicts = session.reservations.reserve(wanted)
        over = {request.key: str(why) for request, why in zip(wanted, verdicts, strict=True) if why is not None}
        session.state.drop(tag, over)
        session.outcomes.lose(AnswerStatus.OVER_BUDGET, over)
        return [request.key not in stored and request.key not in over for request in requests]

    async def _sent(self, part: Part) -> str:
        """Submit a part; return why that failed, or ``""``."""
        session, name = self.session, f"estner-{part.tag}.jsonl"
        try:
            file_id = await session.api.patiently(lambda: session.api.upload(part.file, part.size, name))
            batch = await session.api.patiently(lambda: self._created(file_id, part.tag))
        except EndpointError:
            session.unsend(part.tag, part.keys)
            raise
        except Unreachable as error:
            session.unsend(part.tag, part.keys)
            session.outcomes.lose(AnswerStatus.FAILED, dict.fromkeys(part.keys, str(error)))
            return str(error)
        except _Uncertain as error:
            session.outcomes.lose(AnswerStatus.PENDING, dict.fromkeys(part.keys, str(error)))
            return str(error)
        session.open[part.tag] = OpenBatch(batch.id, batch.status, set(part.keys))
        return ""

    async def _created(self, file_id: str, tag: str) -> RemoteBatch:
        # first on disk: from here on a batch may exist
        self.session.state.submit(tag, file_id)
        try:
            batch = await self.session.api.create(file_id, tag)
        except Unreachable as error:
            found = await self._found(tag) if error.may_have_worked else None
            if found is None:
                raise
            return found
        self.session.state.note(tag, batch.id, batch.status)
        return batch

    async def _joined(self, keys: set[str]) -> set[str]:
        """Do ``join`` under the lock, where a batch without an id was left behind by a process that died."""
        session, by_tag = self.session, dict[str, set[str]]()
        for key, tag in session.state.holders(keys).items():
            by_tag.setdefault(tag, set()).add(key)
        free = keys.difference(*by_tag.values())
        for tag, held in by_tag.items():
            try:
                batch_id = await self._healed(session.state.batch(tag))
            except _Uncertain as error:
                session.outcomes.lose(AnswerStatus.PENDING, dict.fromkeys(held, str(error)))
                continue
            if batch_id is None:
                free |= held
            elif tag in session.open:
                session.open[tag].keys |= held
            else:
                session.open[tag] = OpenBatch(batch_id, session.state.batch(tag).status, held)
        return free

    async def _healed(self, batch: Batch) -> str | None:
        """Return the batch's id; ``None`` where the server never made it."""
        if batch.batch_id is not None:
            return batch.batch_id
        if batch.status != PREPARING:
            if batch.host != self.session.endpoint.host:
                give_up(self.session, batch)
                return None
            if found := await self._found(batch.tag):
                return found.id
        self.session.unsend(batch.tag, self.session.state.held(batch.tag))
        return None

    async def _found(self, tag: str) -> RemoteBatch | None:
        """Return the batch that came of a call without an answer, if one did; note its id."""
        session = self.session
        since = session.state.batch(tag).submitted_at
        while True:
            try:
                found = await session.api.patiently(lambda: session.api.find(tag, since))
            except Unreachable as error:
                raise _Uncertain(f"{error}, so a batch may be under way or not; build again later") from None
            if found is not None:
                session.state.note(tag, found.id, found.status)
                return found
            rest_s = since + self.limits.find_s - time.time()
            if rest_s <= 0:
                return None
            await asyncio.sleep(min(rest_s, self.limits.find_s, session.annotator.batch_poll_s))


def give_up(session: Session, batch: Batch) -> None:
    """Free the keys of a batch that the server does not know.

    Raises ``EndpointError`` while it may still answer: it may belong to another account.
    """
    ends_at = batch.submitted_at + LIFETIME_S
    if time.time() >= ends_at:
        session.unsend(batch.tag, session.state.held(batch.tag))
        return
    submitted, ends = (
        datetime.fromtimestamp(at, UTC).isoformat(" ", "minutes") for at in (batch.submitted_at, ends_at)
    )
    raise EndpointError(
        f"{session.endpoint.host} does not know the batch {batch.batch_id or batch.tag}, which was submitted to "
        f"{batch.host} at {submitted} and may still answer: use the address and the key of then, or build after {ends}"
    )
