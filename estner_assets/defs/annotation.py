"""Annotation: each cell's annotator reads vetted notes, and what it answers is grounded as character spans."""

from collections.abc import Mapping

import dagster as dg

from estner_assets.defs.annotating import annotate, grounding_counts
from estner_assets.defs.reading import documents_by_cell
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset
from estner_assets.ner.consensus import Consensus, ConsensusDocument, fit_consensus
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.reporting import markdown_table
from estner_assets.resources.records import text_hash
from estner_assets.settings import ConsensusAnnotator
from estner_assets.tables import Row


@table_asset
def annotations(step: Step) -> Made:
    """One row per note that the cell's annotator was given."""
    rows = annotate(step)
    failed = sum(row["status"] != "annotated" for row in rows)
    step.progress(f"{len(rows)} notes, {failed} not annotated")
    return Made(rows, {"not_annotated": failed, **grounding_counts(rows)})


@table_asset
def consensus(step: Step) -> Made:
    """One row per note that at least one of the consensus' members annotated."""
    annotator = step.declarations.annotators[step.cell.annotator]
    assert isinstance(annotator, ConsensusAnnotator)
    votes = documents_by_cell(step)
    if len(votes) < annotator.least_voters:
        there = ", ".join(votes) or "none"
        wanted = f"{annotator.method} needs {annotator.least_voters} annotated cells"
        raise dg.Failure(f"{step.cell}: {wanted}, there are {there}; make the others first", allow_retries=False)
    agreed = fit_consensus(votes, step.declarations.labels, annotator.method, annotator.min_confidence)
    spans = sum(len(document.spans) for document in agreed.documents)
    step.progress(f"{len(votes)} cells agree on {spans} mentions in {len(agreed.documents)} notes")
    return Made([_agreed_row(document) for document in agreed.documents], _qualities(agreed))


def _agreed_row(document: ConsensusDocument) -> Row:
    mentions = [
        {
            "label": span.label,
            "start_char": span.start,
            "end_char": span.end,
            "text": document.text[span.start : span.end],
            "confidence": span.confidence,
            "votes": span.votes,
            "exact_votes": span.exact_votes,
        }
        for span in document.spans
    ]
    return {
        "note_id": document.document_id,
        "source": "vetted_notes",
        "text_sha256": text_hash(document.text),
        "status": str(AnswerStatus.ANNOTATED),
        "voters": document.annotators,
        "mentions": mentions,
    }


def _qualities(agreed: Consensus) -> dict[str, object]:
    """Return what the consensus makes of its members: no gold was seen, so these are estimates."""
    rows = [
        {
            "member": quality.annotator,
            "weight": quality.weight,
            "f1": quality.f1,
            "sensitivity": _shares(quality.sensitivity),
            "false_positive_rate": _shares(quality.false_positive_rate),
        }
        for quality in agreed.annotators
    ]
    return {"iterations": agreed.iterations, "members": markdown_table(rows)}


def _shares(by_label: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {share:.2f}" for label, share in by_label.items())
