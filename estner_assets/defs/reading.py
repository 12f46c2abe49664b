"""What assets read, as the domain's objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from estner_assets.declarations import Cell
from estner_assets.defs.step import Step
from estner_assets.ner.conditions import Condition, ConditionedNote
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.ner.spans import Document, Span, check_spans
from estner_assets.settings import ConsensusAnnotator
from estner_assets.tables import Row


def condition(row: Mapping[str, Any]) -> Condition:
    """Return what a note was, or is to be, written for."""
    return Condition(row["genre"], row["age_group"], row["sex"], row["diagnosis"])


def conditioned_notes(step: Step) -> list[ConditionedNote]:
    """Return the records as the generator learns from them."""
    return [
        ConditionedNote(row["record_id"], row["patient_id"], condition(row), row["text"])
        for row in step.rows("records", "order by record_id")
    ]


def gold(step: Step) -> list[Document]:
    """Return the gold notes with the spans of the enabled entities, ordered by id."""
    spans: dict[str, list[Span]] = {}
    for row in step.rows("gold_spans"):
        if row["label"] in step.declarations.labels:
            spans.setdefault(row["document_id"], []).append(Span(row["start_char"], row["end_char"], row["label"]))
    return [
        Document(row["document_id"], row["text"], check_spans(row["text"], spans.get(row["document_id"], ())))
        for row in step.rows("gold_documents", "order by document_id")
    ]


def annotated_documents(step: Step) -> tuple[list[Document], int]:
    """Return the cell's notes that were annotated, and how many were not: those never count as empty."""
    is_consensus = isinstance(step.declarations.annotators[step.cell.annotator], ConsensusAnnotator)
    rows = step.rows("consensus" if is_consensus else "annotations", "order by note_id")
    usable = [row for row in rows if row["status"] == AnswerStatus.ANNOTATED]
    return as_documents(step, usable), len(rows) - len(usable)


def documents_by_cell(step: Step) -> dict[str, list[Document]]:
    """Return, by cell, the notes that it annotated; ``step`` reads the annotations of several cells."""
    rows: dict[Cell, list[Row]] = {}
    for row in step.rows("annotations", "order by annotator, prompt, note_id"):
        if row["status"] == AnswerStatus.ANNOTATED:
            rows.setdefault(Cell(row["annotator"], row["prompt"]), []).append(row)
    return {str(cell): as_documents(step, _of_this_corpus(step, annotated)) for cell, annotated in sorted(rows.items())}


def _of_this_corpus(step: Step, annotated: Sequence[Row]) -> list[Row]:
    """Leave out notes that are gone since: a cell that is stale may have annotated an earlier corpus."""
    there = _stored_texts(step, annotated)
    kept = [row for row in annotated if row["note_id"] in there]
    if len(kept) < len(annotated):
        cell = f"{annotated[0]['annotator']}/{annotated[0]['prompt']}"
        step.progress(f"{len(annotated) - len(kept)} notes of {cell} are of an earlier corpus and left out")
    return kept


def as_documents(step: Step, annotated: Sequence[Row]) -> list[Document]:
    """Return annotated notes of one source with their spans."""
    texts = _texts(step, annotated)
    return [
        Document(row["note_id"], texts[row["note_id"]], grounded_spans(texts[row["note_id"]], row["mentions"]))
        for row in annotated
    ]


def grounded_spans(text: str, mentions: Sequence[Row]) -> tuple[Span, ...]:
    """Return the spans of the mentions that were grounded and kept."""
    return check_spans(
        text,
        [Span(one["start_char"], one["end_char"], one["label"]) for one in mentions if one["start_char"] is not None],
    )


def _texts(step: Step, annotated: Sequence[Row]) -> dict[str, str]:
    """Return the texts that were annotated; raise where one is gone."""
    found = _stored_texts(step, annotated)
    if len(found) < len(annotated):
        raise dg.Failure(
            f"{len(annotated) - len(found)} notes that {step.partition} is made from are no longer in "
            f"{annotated[0]['source']} as they were annotated; materialise the annotations first"
        )
    return found


def _stored_texts(step: Step, annotated: Sequence[Row]) -> dict[str, str]:
    """Return those of the annotated texts that are still there, by note, known by the hash of the annotation."""
    if not annotated:
        return {}
    source = annotated[0]["source"]
    key = "record_id" if source == "records" else "note_id"
    wanted = {row["note_id"]: row["text_sha256"] for row in annotated}
    return {
        row["note_id"]: row["text"]
        for row in step.project.warehouse.query(
            f"select {key} as note_id, text, text_sha256 from {source} where list_contains(?, {key})", [list(wanted)]
        )
        if row["text_sha256"] == wanted[row["note_id"]]
    }
