"""Asking by OpenAI's Batch API: half the price, answers within a day, and nothing is lost by a restart."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from estner_assets.llm.batch_api import BatchApi
from estner_assets.llm.batch_collecting import Collector
from estner_assets.llm.batch_parts import Reservations
from estner_assets.llm.batch_session import Outcomes, Session
from estner_assets.llm.batch_store import BatchStore
from estner_assets.llm.batch_submitting import BatchLimits, Submitter
from estner_assets.llm.budget import Budget
from estner_assets.llm.client import FAILURES_IN_A_ROW, Progress
from estner_assets.llm.endpoints import Endpoint
from estner_assets.llm.requests import Request, Response
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import LlmAnnotator

__all__ = ["LIMITS", "BatchLimits", "ask_in_batches"]

LIMITS = BatchLimits()


def ask_in_batches(
    requests: Sequence[Request],
    endpoint: Endpoint,
    annotator: LlmAnnotator,
    store: ResponseStore,
    wall: Wall,
    budget: Budget | None,
    progress: Callable[[Progress], None],
    state_path: Path,
    limits: BatchLimits = LIMITS,
) -> dict[str, Response]:
    """Ask for what the store lacks and return, by key, the outcomes that are not in the store afterwards.

    Does what ``client.ask`` does, in batches that are noted in the file ``state_path``: what an earlier run
    submitted is collected first. Waits for ``batch_max_wait_s`` at most; what has no answer then is ``PENDING``,
    and the next call collects it. What failed in a batch of an earlier run is asked again, what fails in this run
    is not.

    Raises ``EgressRefused`` before anything is sent, ``EndpointError`` when no request can succeed (as when the
    server finds a mistake in a batch's file), ``BatchStoreError`` when the file of batches cannot be used.
    """
    outcomes = Outcomes(requests, endpoint, store, wall, progress)
    outcomes.report()
    if not outcomes.missing:
        return {}
    reservations = Reservations(budget)
    with BatchStore(state_path) as state:
        api = BatchApi(endpoint, annotator)
        session = Session(endpoint, annotator, store, state, api, reservations, outcomes)
        try:
            endpoint.run(_run(session, Submitter(session, limits), Collector(session)))
        finally:
            store.retire(session.owner)
    return outcomes.lost


async def _run(session: Session, submitter: Submitter, collector: Collector) -> None:
    """Collect what was submitted, submit the rest, and wait."""
    free = await submitter.join(session.outcomes.missing)
    free |= await collector.look(is_earlier=True)
    if free:
        await submitter.submit(free)
    await _wait(session, submitter, collector)
    _leave(session, collector)


async def _wait(session: Session, submitter: Submitter, collector: Collector) -> None:
    until = time.monotonic() + session.annotator.batch_max_wait_s
    while session.open and collector.troubles < FAILURES_IN_A_ROW and (rest_s := until - time.monotonic()) > 0:
        await asyncio.sleep(min(rest_s, session.annotator.batch_poll_s))
        await collector.look()
        if collector.put_off and collector.has_room:
            again = set(collector.put_off)
            collector.put_off, collector.has_room = {}, False
            await submitter.submit(again)


def _leave(session: Session, collector: Collector) -> None:
    """Say of what is still open that the next build collects it."""
    trouble = f" ({collector.trouble})" if collector.trouble else ""
    for batch in session.open.values():
        reason = (
            f"batch {batch.batch_id} at {session.endpoint.host} is {batch.status}{trouble}; "
            "build again later to collect its answers"
        )
        session.outcomes.lose(AnswerStatus.PENDING, dict.fromkeys(batch.keys, reason))
    full = "not asked: {}; build again later, or declare smaller `batch_requests`"
    session.outcomes.lose(AnswerStatus.PENDING, {key: full.format(said) for key, said in collector.put_off.items()})
