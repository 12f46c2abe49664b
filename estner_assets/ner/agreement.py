"""How far two annotators agree on the notes that both annotated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from estner_assets.ner.span_table import OUTSIDE, Codes, Ints, Ratings, character_ratings, span_ratings, span_table
from estner_assets.ner.spans import Document


@dataclass(frozen=True)
class PairAgreement:
    """Agreement on ``notes`` shared notes; a share of nothing and a kappa where chance is certain are None.

    ``span_f1`` and ``boundary_f1`` are None where neither marked a span. ``same_boundaries`` counts the spans
    that both marked, whatever the label; ``label_agreement`` is the share of them with the same label and
    ``label_kappa`` Cohen's kappa of their labels.
    """

    notes: int
    span_f1: float | None
    character_kappa: float | None
    boundary_f1: float | None
    same_boundaries: int
    label_agreement: float | None
    label_kappa: float | None


def pair_agreement(a: Sequence[Document], b: Sequence[Document], labels: Sequence[str]) -> PairAgreement:
    """Compare two annotations of the notes with the same id; it does not matter which one is ``a``.

    ``span_f1`` is the strict micro F1 of one against the other (Hripcsak & Rothschild 2005), ``boundary_f1``
    the same with the labels ignored, ``character_kappa`` Cohen's kappa (1960) of the labels of all characters,
    outside being a label too. Spans of other labels than ``labels`` do not count. Raises ``ValueError`` as
    ``span_table``.
    """
    return pair_agreements({"a": a, "b": b}, labels)["a", "b"]


def pair_agreements(
    annotations: Mapping[str, Sequence[Document]], labels: Sequence[str]
) -> dict[tuple[str, str], PairAgreement]:
    """Return ``pair_agreement`` of every two annotators, by their names in sorted order.

    The spans are read once for all pairs, so that this is many times faster than pair by pair.
    """
    table = span_table(annotations, labels)
    characters, spans = character_ratings(table), span_ratings(table)
    size = len(labels) + 1
    found = {}
    for one, other in combinations(range(len(table.annotators)), 2):
        notes = int(np.count_nonzero(table.annotated[one] & table.annotated[other]))
        on_characters = _confusion(characters, one, other, size)
        on_spans = _confusion(spans, one, other, size)
        found[table.annotators[one], table.annotators[other]] = _agreement(notes, on_characters, on_spans)
    return found


def cohen_kappa(confusion: Ints) -> float | None:
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


def _confusion(ratings: Ratings, one: int, other: int, size: int) -> Ints:
    """Return how often each code of one meets each code of the other, (size, size), where both have one."""
    left: Codes = ratings.codes[one]
    right: Codes = ratings.codes[other]
    both = (left >= OUTSIDE) & (right >= OUTSIDE)
    met = left[both].astype(np.int64) * size + right[both]
    counts = np.bincount(met, weights=ratings.count[both], minlength=size * size)
    return counts.astype(np.int64).reshape(size, size)


def _agreement(notes: int, characters: Ints, spans: Ints) -> PairAgreement:
    labels = spans[1:, 1:]
    marked = int(spans[1:].sum() + spans[:, 1:].sum())
    same_boundaries, same = int(labels.sum()), int(np.trace(labels))
    return PairAgreement(
        notes=notes,
        span_f1=2 * same / marked if marked else None,
        character_kappa=cohen_kappa(characters),
        boundary_f1=2 * same_boundaries / marked if marked else None,
        same_boundaries=same_boundaries,
        label_agreement=same / same_boundaries if same_boundaries else None,
        label_kappa=cohen_kappa(labels),
    )
