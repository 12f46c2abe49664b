"""Evaluation: what each cell's tagger finds in the gold notes, and how right it is."""

import random
from collections.abc import Sequence

from estner_assets.defs.annotating import annotate_gold
from estner_assets.defs.evaluating import ALL, evaluation_rows
from estner_assets.defs.reading import annotated_documents, gold
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset
from estner_assets.ner import metrics
from estner_assets.ner.spans import Document, Span
from estner_assets.tables import Row
from estner_assets.versions import systems_of


@table_asset
def predictions(step: Step) -> Made:
    """One row per span that a cell's system predicted in a gold note."""
    from estner_assets.modeling.taggers import load_tagger

    notes = step.rows("gold_documents", "order by document_id")
    tagger = load_tagger(step.project.models.folder(step.rows("ner_models")[0]["model_id"]))
    found = {"tagger": tagger.predict([note["text"] for note in notes])}
    if "annotator" in systems_of(step.declarations, step.cell):
        found["annotator"] = annotate_gold(step, notes)
    rows = [
        {
            "system": system,
            "document_id": note["document_id"],
            "start_char": span.start,
            "end_char": span.end,
            "label": span.label,
            "text": span.text_in(note["text"]),
            "confidence": span.confidence,
        }
        for system, predicted in found.items()
        for note, spans in zip(notes, predicted, strict=True)
        for span in spans
    ]
    return Made(rows, {"systems": len(found)})


@table_asset
def evaluation(step: Step) -> Made:
    """One row per system, entity and way of scoring."""
    documents = gold(step)
    predicted = step.rows("predictions")
    rows: list[Row] = []
    for system in systems_of(step.declarations, step.cell):
        spans = _spans_by_document(documents, [row for row in predicted if row["system"] == system])
        rows += evaluation_rows(system, documents, spans, step.declarations.labels, step.profile.evaluation)
    strict = {
        f"{row['entity']}_f1": row["f1"] for row in rows if (row["system"], row["protocol"]) == ("tagger", "strict")
    }
    step.progress(", ".join(f"{name} {value:.3f}" for name, value in strict.items()))
    return Made(rows, strict)


def _spans_by_document(documents: Sequence[Document], rows: Sequence[Row]) -> list[list[Span]]:
    spans: dict[str, list[Span]] = {document.document_id: [] for document in documents}
    for row in rows:
        spans[row["document_id"]].append(Span(row["start_char"], row["end_char"], row["label"], row["confidence"]))
    return list(spans.values())


@table_asset
def learning_curves(step: Step) -> Made:
    """One row per size, random subset and entity."""
    settings = step.profile.learning_curves
    documents, _ = annotated_documents(step)
    test = gold(step)
    rows: list[Row] = []
    for size in sorted({min(size, len(documents)) for size in settings.sizes}):
        for subset in range(settings.subsets):
            rows += _point(step, documents, test, size, subset)
    return Made(rows)


def random_subset(documents: Sequence[Document], size: int, seed: int) -> list[Document]:
    """Return ``size`` documents, drawn anew for each seed: no subset is the beginning of a larger one."""
    return random.Random(seed).sample(list(documents), size)


def _point(step: Step, documents: Sequence[Document], test: Sequence[Document], size: int, subset: int) -> list[Row]:
    """Train on one random subset and score it."""
    from estner_assets.modeling.taggers import load_tagger, train_tagger

    settings = step.profile.learning_curves
    seed = settings.seed + 1000 * subset + size
    chosen = random_subset(documents, size, seed)
    tagger_settings = step.profile.tagger.model_copy(update={"seed": seed})
    with step.project.models.incoming() as folder:
        train_tagger(
            chosen, step.declarations.labels, tagger_settings, folder, lambda message: None, max_steps=settings.steps
        )
        predicted = load_tagger(folder).predict([document.text for document in test])
    gold_spans = [document.spans for document in test]
    scores = {
        entity: metrics.strict(gold_spans, predicted, None if entity == ALL else entity)
        for entity in (*step.declarations.labels, ALL)
    }
    step.progress(f"{size} notes, subset {subset}: F1 {scores[ALL].f1:.3f}")
    return [
        {
            "notes": size,
            "subset": subset,
            "seed": seed,
            "steps": settings.steps,
            "entity": entity,
            "precision": score.precision,
            "recall": score.recall,
            "f1": score.f1,
        }
        for entity, score in scores.items()
    ]
