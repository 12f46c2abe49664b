"""How far two annotators agree on the notes that both annotated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from estner_assets.ner.metrics import strict
from estner_assets.ner.spans import Document, Span


@dataclass(frozen=True)
class PairAgreement:
    """``span_f1`` is None where neither marked a span, ``character_kappa`` where chance alone agrees."""

    notes: int
    span_f1: float | None
    character_kappa: float | None


def pair_agreement(a: Sequence[Document], b: Sequence[Document], labels: Sequence[str]) -> PairAgreement:
    """Compare two annotations of the notes with the same id; it does not matter which one is ``a``.

    ``span_f1`` is the strict micro F1 of one against the other (Hripcsak & Rothschild 2005),
    ``character_kappa`` Cohen's kappa of the labels of all characters, outside being a label too. Spans of
    other labels than ``labels`` do not count. Raises ``ValueError`` for an id that is given twice or that
    stands for two texts.
    """
    left, right = _by_id(a), _by_id(b)
    shared = sorted(left.keys() & right.keys())
    for document_id in shared:
        if left[document_id].text != right[document_id].text:
            raise ValueError(f"document {document_id!r} has two texts: annotate the same stored text on both sides")
    spans_left = [_labelled(left[document_id], labels) for document_id in shared]
    spans_right = [_labelled(right[document_id], labels) for document_id in shared]
    confusion = np.zeros((len(labels) + 1, len(labels) + 1), dtype=np.int64)
    for document_id, one, other in zip(shared, spans_left, spans_right, strict=True):
        size = len(left[document_id].text)
        np.add.at(confusion, (_codes(size, one, labels), _codes(size, other, labels)), 1)
    score = strict(spans_left, spans_right, None)
    return PairAgreement(
        notes=len(shared),
        span_f1=score.f1 if score.support + score.predicted else None,
        character_kappa=cohen_kappa(confusion),
    )


def cohen_kappa(confusion: npt.NDArray[np.int64]) -> float | None:
    """Return Cohen's kappa of a square table of counts; None where it is 0/0 (empty, or a single class)."""
    total = int(confusion.sum())
    if total == 0:
        return None
    # Whole numbers as long as possible, so that "chance agreement is certain" is an exact comparison.
    expected = int(confusion.sum(axis=0) @ confusion.sum(axis=1))
    if expected == total * total:
        return None
    observed = int(np.trace(confusion)) * total
    return (observed - expected) / (total * total - expected)


def _by_id(documents: Sequence[Document]) -> dict[str, Document]:
    found = {document.document_id: document for document in documents}
    if len(found) != len(documents):
        ids = [document.document_id for document in documents]
        twice = sorted({document_id for document_id in ids if ids.count(document_id) > 1})
        raise ValueError(f"document ids given twice: {', '.join(twice[:5])}; give every annotated note once")
    return found


def _labelled(document: Document, labels: Sequence[str]) -> tuple[Span, ...]:
    return tuple(span for span in document.spans if span.label in labels)


def _codes(size: int, spans: Sequence[Span], labels: Sequence[str]) -> npt.NDArray[np.int64]:
    codes = np.zeros(size, dtype=np.int64)
    for span in spans:
        codes[span.start : span.end] = 1 + labels.index(span.label)
    return codes
