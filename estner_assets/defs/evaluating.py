"""Scores of predicted spans as rows."""

from collections.abc import Callable, Sequence

from estner_assets.ner import metrics
from estner_assets.ner.notebook_protocol import fixed_pieces, notebook_subword
from estner_assets.ner.significance import bootstrap_f1
from estner_assets.ner.spans import Document, Span
from estner_assets.settings import EvaluationSettings
from estner_assets.tables import Row

ALL = "ALL"
"""The entity name of scores over all entities together."""

Spans = Sequence[Sequence[Span]]
_PROTOCOLS: dict[str, Callable[[Spans, Spans, str | None], metrics.Score]] = {
    "strict": metrics.strict,
    "partial": metrics.partial,
    "type_only": metrics.type_only,
    "character": metrics.character,
}


def evaluation_rows(
    system: str,
    documents: Sequence[Document],
    predicted: Spans,
    labels: Sequence[str],
    settings: EvaluationSettings,
) -> list[Row]:
    """Return one row per entity and way of scoring, strict ones with a bootstrap interval."""
    gold = [document.spans for document in documents]
    texts = [document.text for document in documents]
    rows: list[Row] = []
    for entity in (*labels, ALL):
        label = None if entity == ALL else entity
        interval = bootstrap_f1(
            gold, predicted, label, settings.bootstrap_samples, settings.confidence_level, settings.seed
        )
        scores = {name: score(gold, predicted, label) for name, score in _PROTOCOLS.items()}
        scores["notebook_subword"] = notebook_subword(gold, predicted, texts, fixed_pieces, label)
        rows += [
            _row(system, entity, name, score, interval if name == "strict" else (None, None))
            for name, score in scores.items()
        ]
    return rows


def _row(
    system: str,
    entity: str,
    protocol: str,
    score: metrics.Score,
    interval: tuple[float | None, float | None],
) -> Row:
    return {
        "system": system,
        "entity": entity,
        "protocol": protocol,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "f1_low": interval[0],
        "f1_high": interval[1],
        "support": score.support,
        "predicted": score.predicted,
        "correct": score.correct,
    }
