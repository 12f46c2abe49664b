"""Asking again about notes that an annotator failed on."""

from collections.abc import Collection
from dataclasses import dataclass

from estner_assets.llm.store import ResponseStore
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition

UNANSWERED = tuple(status for status in AnswerStatus if not status.is_answer)
"""Notes that were not answered: no answer of theirs is stored, so making the cell anew asks about them."""


@dataclass(frozen=True)
class Retry:
    """The cells to make anew, how many of their notes failed, and the stored answers that stand in the way."""

    cells: frozenset[Partition]
    notes: int
    answers: tuple[str, ...]


def failed_notes(
    project: Project, statuses: Collection[AnswerStatus], annotator: str | None = None, prompt: str | None = None
) -> Retry:
    """Return what is to be asked again; nothing is changed."""
    rows = project.warehouse.query(
        "select annotator, prompt, status, request_keys from annotations where list_contains(?, status) "
        "and annotator = coalesce(?, annotator) and prompt = coalesce(?, prompt)",
        [[str(status) for status in statuses], annotator, prompt],
    )
    declared = {(cell.annotator, cell.prompt) for cell in project.declarations.cells}
    rows = [row for row in rows if (row["annotator"], row["prompt"]) in declared]
    return Retry(
        cells=frozenset(Partition("annotations", row["annotator"], row["prompt"]) for row in rows),
        notes=len(rows),
        answers=tuple(key for row in rows if AnswerStatus(row["status"]).is_answer for key in row["request_keys"]),
    )


def set_answers_aside(project: Project, retry: Retry) -> int:
    """Move the stored answers out of the way, so that the next build asks again; return how many there were."""
    if not retry.answers:
        return 0
    with ResponseStore(project.responses_path) as store:
        return store.set_aside(retry.answers)
