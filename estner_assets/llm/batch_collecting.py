"""Collecting what batches have answered. Doing it again, also after a crash in its midst, changes nothing."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from estner_assets.llm.batch_api import Missing, RemoteBatch, Unreachable
from estner_assets.llm.batch_lines import read_line
from estner_assets.llm.batch_parts import REQUESTS_AT_ONCE
from estner_assets.llm.batch_session import OpenBatch, Session
from estner_assets.llm.batch_submitting import give_up
from estner_assets.llm.completions import BrokenBody
from estner_assets.llm.endpoints import EndpointError
from estner_assets.llm.requests import Response
from estner_assets.ner.parsing import AnswerStatus

TOKEN_LIMIT = "token_limit_exceeded"
"""The code of a batch that failed because the tokens of all waiting batches are limited."""


@dataclass
class Collector:
    """Looks at open batches and collects those that have ended."""

    session: Session
    put_off: dict[str, str] = field(default_factory=dict)
    """The keys, each with a reason, of batches that found the provider's queue full."""
    has_room: bool = False
    """Whether a batch has left the queue since this was last said to be false."""
    trouble: str = ""
    troubles: int = 0
    """Why, and how often in a row, a look failed."""

    async def look(self, is_earlier: bool = False) -> set[str]:
        """Look once at each open batch. What ends without an answer is lost.

        ``is_earlier``: the batches are of an earlier run; then such keys are returned, to be asked again. Raises
        ``EndpointError`` for a batch of this run that the server found wrong.
        """
        unanswered: set[str] = set()
        for tag, batch in list(self.session.open.items()):
            try:
                ended = await self._looked_at(tag, batch, is_earlier)
            except Unreachable as error:
                self.trouble, self.troubles = str(error), self.troubles + 1
                continue
            self.trouble, self.troubles = "", 0
            if ended and is_earlier:
                unanswered |= batch.keys
            elif ended:
                reasons = {key: batch.reasons.get(key, ended) for key in batch.keys - self.put_off.keys()}
                self.session.outcomes.lose(AnswerStatus.FAILED, reasons)
        self.session.outcomes.report()
        return unanswered

    async def _looked_at(self, tag: str, batch: OpenBatch, is_earlier: bool) -> str:
        """Return ``""`` while the batch goes on, else why a request may have got no answer in it."""
        session = self.session
        try:
            remote = await session.api.retrieve(batch.batch_id)
        except Missing:
            give_up(session, session.state.batch(tag))
            del session.open[tag]
            return f"{session.endpoint.host} does not know batch {batch.batch_id} any more; build again to ask again"
        if remote.status != batch.status:
            batch.status = remote.status
            session.state.note(tag, remote.id, remote.status)
        if not remote.has_ended:
            return ""
        await self._collect(tag, batch, remote)
        self._end(tag, batch, remote)
        if remote.status == "failed":
            self._put_off_or_raise(batch, remote, is_earlier)
        else:
            self.has_room = True
        return f"batch {remote.id} is {remote.status} and has no line for this request; build again to ask again"

    def _end(self, tag: str, batch: OpenBatch, remote: RemoteBatch) -> None:
        session = self.session
        session.reservations.flush()
        held = batch.keys.union(session.state.held(tag))
        session.reservations.release(held - session.store.known(list(held)))
        # last, for a crash before this has the batch collected once more
        session.state.end(tag, remote.status)
        del session.open[tag]

    def _put_off_or_raise(self, batch: OpenBatch, remote: RemoteBatch, is_earlier: bool) -> None:
        if is_earlier:
            return
        said = self.session.endpoint.redacted(remote.errors)
        if remote.error_code == TOKEN_LIMIT:
            self.put_off |= dict.fromkeys(batch.keys, said)
            return
        host = self.session.endpoint.host
        raise EndpointError(f"{host} refused batch {remote.id}: {said}. Change what it names, then build again")

    async def _collect(self, tag: str, batch: OpenBatch, remote: RemoteBatch) -> None:
        """Read a batch's files, of answers and of errors, and store what is final, some lines at a time."""
        for file_id in remote.file_ids:
            try:
                await self._read(file_id, tag, batch)
            except Missing:
                gone = f"the results of batch {remote.id} are not on the server any more; build again to ask again"
                batch.reasons |= dict.fromkeys(batch.keys, gone)

    async def _read(self, file_id: str, tag: str, batch: OpenBatch) -> None:
        some: list[tuple[Response, str]] = []
        readable = unreadable = 0
        async with aclosing(self.session.api.lines(file_id)) as lines:
            async for line in lines:
                try:
                    some.append(read_line(line, self.session.endpoint.redacted))
                    readable += 1
                except BrokenBody:
                    unreadable += 1  # its request has no line, then
                if len(some) == REQUESTS_AT_ONCE:
                    self._keep(tag, batch, some)
                    some = []
        self._keep(tag, batch, some)
        if unreadable and not readable:
            # a proxy's page, not the file: to believe it would mean to pay twice
            raise Unreachable(f"unreadable results from {self.session.endpoint.host}")

    def _keep(self, tag: str, batch: OpenBatch, results: Sequence[tuple[Response, str]]) -> None:
        """Store final responses to what was submitted in this batch; an answer in the store is never replaced."""
        session = self.session
        holders = session.state.holders(response.key for response, _ in results)
        answers: dict[str, tuple[Response, str]] = {}
        for response, line in results:
            if holders.get(response.key) != tag and response.key not in batch.keys:
                continue
            if response.is_final:
                answers.setdefault(response.key, (response, line))
            else:
                batch.reasons[response.key] = response.reason
        stored = session.store.known(list(answers))
        session.store.commit(session.owner, [answers[key] for key in answers if key not in stored], [], [])
        session.reservations.settle([response for response, _ in answers.values()])
        for key in batch.keys.intersection(answers):
            session.outcomes.answered(answers[key][0])
            batch.keys.remove(key)
        session.outcomes.report()
