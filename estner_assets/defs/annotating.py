"""Runs an annotator of any kind over notes, and turns what it says into rows with grounded mentions."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import dagster as dg

from estner_assets.defs.step import Step
from estner_assets.llm.prices import cost, price_of
from estner_assets.ner.grounding import Answered, Grounding, ground, spans_of
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import AnswerStatus, Mention
from estner_assets.ner.spans import Span
from estner_assets.resources.gold import read_doccano
from estner_assets.resources.records import SourceError
from estner_assets.settings import LexiconAnnotator, LlmAnnotator, Price, ReferenceAnnotator
from estner_assets.shares import share_of
from estner_assets.tables import Row

if TYPE_CHECKING:
    from estner_assets.llm.annotate import NoteAnswer

OVERLAPPING = "overlapping"
"""Grounding of a mention that stands inside a longer one, which is kept instead."""


def annotate(step: Step) -> list[Row]:
    """Return one row per note of the cell."""
    annotator = step.declarations.annotators[step.cell.annotator]
    if isinstance(annotator, ReferenceAnnotator):
        notes = _chosen(step, step.rows("records"), "record_id")
        return _reference_rows(step, annotator, notes)
    notes = _chosen(step, step.rows("vetted_notes"), "note_id")
    if isinstance(annotator, LexiconAnnotator):
        spans = _lexicon_spans(step, annotator, [note["text"] for note in notes])
        return [_ruled_row(note, "vetted_notes", found) for note, found in zip(notes, spans, strict=True)]
    assert isinstance(annotator, LlmAnnotator)
    return _llm_rows(step, annotator, notes, "vetted_notes")


def annotate_gold(step: Step, notes: Sequence[Row]) -> list[tuple[Span, ...]]:
    """Return the annotator's own spans in gold notes; only annotators on this machine are ever asked."""
    annotator = step.declarations.annotators[step.cell.annotator]
    texts = [note["text"] for note in notes]
    if isinstance(annotator, LexiconAnnotator):
        return _lexicon_spans(step, annotator, texts)
    assert isinstance(annotator, LlmAnnotator)
    asked = [{"note_id": note["document_id"], **note} for note in notes]
    rows = _llm_rows(step, annotator, asked, "gold_documents")
    lost = sum(row["status"] != AnswerStatus.ANNOTATED for row in rows)
    step.progress(f"{lost} of {len(rows)} gold notes could not be read from the annotator's answer and count as missed")
    return [_spans_of_row(row) for row in rows]


def grounding_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return how many mentions were grounded in which way."""
    return dict(Counter(f"mentions_{mention['grounding']}" for row in rows for mention in row["mentions"]))


def _chosen(step: Step, notes: Sequence[Row], key: str) -> list[Row]:
    """Return the cell's share of the notes, each with its ``note_id``."""
    by_id = {note[key]: note for note in notes}
    return [by_id[note_id] | {"note_id": note_id} for note_id in share_of(step.declarations, step.cell, by_id)]


# --- rules ------------------------------------------------------------------------------------------


def _lexicon_spans(step: Step, annotator: LexiconAnnotator, texts: Sequence[str]) -> list[tuple[Span, ...]]:
    from estner_assets.ner.lexicon import Lexicon

    lexicon = Lexicon.read(step.declarations.path(annotator.terms), language(annotator.language))
    labels = step.declarations.labels
    return [tuple(span for span in lexicon.annotate(text) if span.label in labels) for text in texts]


def _reference_rows(step: Step, annotator: ReferenceAnnotator, notes: Sequence[Row]) -> list[Row]:
    """Return the spans that came with the records; they must belong to the very texts."""
    path = step.declarations.path(annotator.spans)
    labels = [entity.name for entity in step.declarations.entities]
    try:
        known = {one.document["document_id"]: one for one in read_doccano([path], labels)}
    except SourceError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    rows: list[Row] = []
    for note in notes:
        reference = known.get(note["note_id"])
        if reference is None or reference.document["text"] != note["text"]:
            what = "no spans" if reference is None else "spans of another text"
            raise dg.Failure(f"{path} has {what} for record {note['note_id']}; write both files together")
        spans = tuple(span for span in reference.spans if span.label in step.declarations.labels)
        rows.append(_ruled_row(note, "records", spans))
    return rows


def _ruled_row(note: Row, source: str, spans: Sequence[Span]) -> Row:
    return _row(note, source, AnswerStatus.ANNOTATED, _marked(note["text"], spans))


def _marked(text: str, spans: Sequence[Span]) -> list[Row]:
    """Return mentions whose place needs no grounding, because the annotator marked the words themselves."""
    return [_mention(span.label, span.text_in(text), "exact", 1.0, span, text) for span in spans]


# --- LLMs -------------------------------------------------------------------------------------------


def _llm_rows(step: Step, annotator: LlmAnnotator, notes: Sequence[Row], source: str) -> list[Row]:
    from estner_assets.llm.annotate import Note, annotate_notes
    from estner_assets.llm.budget import BudgetError, Ledger, budget_of
    from estner_assets.llm.store import ResponseStore

    asked = [Note(note["note_id"], note["text"]) for note in notes]
    # The wall asks the warehouse and not the caller: whatever notes come here, only vetted ones may leave.
    vetted = step.project.warehouse.query("select note_id, text_sha256 from vetted_notes")
    declared = step.declarations
    is_batch = annotator.mode == "batch"
    with ResponseStore(step.project.responses_path) as store, Ledger(step.project.spending_path) as ledger:
        try:
            budget = budget_of(
                ledger, annotator, declared.prices, step.profile.budget, step.build_id, str(step.cell), is_batch
            )
        except BudgetError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        answers = annotate_notes(
            asked,
            annotator,
            declared.prompts[step.cell.prompt],
            declared.enabled_entities,
            store,
            {row["note_id"]: row["text_sha256"] for row in vetted},
            step.progress,
            step.profile.language,
            budget,
        )
    price = price_of(annotator, declared.prices)
    _check_answered(step, answers)
    rows: list[Row] = []
    for note, answer in zip(notes, answers, strict=True):
        if answer.spans is not None:
            mentions = _marked(note["text"], answer.spans)
        else:
            mentions = _grounded(note["text"], answer.mentions, step.profile.language)
        row = _row(note, source, answer.status, mentions)
        rows.append(
            row
            | {
                "reason": answer.reason or None,
                "raw_answer": answer.raw,
                "model_version": answer.model_version,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "cost": _cost(price, answer, is_batch),
                "currency": price.currency if price else None,
                "request_keys": list(answer.request_keys),
            }
        )
    return rows


def _cost(price: Price | None, answer: "NoteAnswer", is_batch: bool) -> Decimal | None:
    """Return what the stored answers to a note cost; None where no price is known, or no tokens were counted."""
    if price is None or (answer.request_keys and not answer.prompt_tokens and not price.is_free):
        return None
    return cost(price, answer.prompt_tokens, answer.completion_tokens, is_batch=is_batch)


def _check_answered(step: Step, answers: "Sequence[NoteAnswer]") -> None:
    """Fail the cell when too many notes got no answer; the answers that came are stored and not asked for again."""
    unanswered = [answer for answer in answers if not answer.status.is_answer]
    if len(unanswered) > step.profile.annotation.max_unanswered * len(answers):
        raise dg.Failure(
            f"{len(unanswered)} of {len(answers)} notes of {step.cell} got no answer: {unanswered[0].reason}; "
            "the others are stored, build again to ask for the rest",
            allow_retries=False,
        )


def _grounded(text: str, answered: Sequence[Mention], code: str) -> list[Row]:
    groundings = ground(text, [Answered(mention.label, mention.text) for mention in answered], language(code))
    kept = set(spans_of(groundings))
    mentions: list[Row] = []
    for mention, one in zip(answered, groundings, strict=True):
        status, span = _kept(one, kept)
        row = _mention(mention.label, mention.text, status, one.score, span, text)
        mentions.append(row | {"confidence": mention.confidence})
    return mentions


def _kept(one: Grounding, kept: set[Span]) -> tuple[str, Span | None]:
    """Return the mention's grounding and its span; of equal spans the first keeps it."""
    if one.span is None:
        return str(one.status), None
    if one.span not in kept:
        return OVERLAPPING, None
    kept.discard(one.span)
    return str(one.status), one.span


def _spans_of_row(row: Row) -> tuple[Span, ...]:
    found = [one for one in row["mentions"] if one["start_char"] is not None]
    return tuple(sorted(Span(one["start_char"], one["end_char"], one["label"]) for one in found))


def _mention(label: str, answered: str, grounding: str, score: float, span: Span | None, text: str) -> Row:
    return {
        "label": label,
        "answered": answered,
        "grounding": grounding,
        "score": score,
        "start_char": span.start if span else None,
        "end_char": span.end if span else None,
        "text": span.text_in(text) if span else None,
        "confidence": None,
    }


def _row(note: Row, source: str, status: AnswerStatus, mentions: list[Row]) -> Row:
    return {
        "note_id": note["note_id"],
        "source": source,
        "text_sha256": note["text_sha256"],
        "status": str(status),
        "reason": None,
        "mentions": mentions,
        "raw_answer": None,
        "model_version": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost": Decimal(0),
        "currency": "",
        "request_keys": [],
    }
