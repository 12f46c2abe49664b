"""How far any number of annotators agree, beyond chance, in one figure.

The figures are of characters and of spans. Characters are mostly outside all mentions, and near agreement on
boundaries counts for nearly all; span figures take a boundary that differs by one character as two different
spans. So the two are read side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from estner_assets.ner.span_table import OUTSIDE, Codes, Ints, Ratings, character_ratings, span_ratings, span_table
from estner_assets.ner.spans import Document


@dataclass(frozen=True)
class Reliability:
    """Krippendorff's alpha over what at least two annotated, Fleiss' kappa over the notes that all annotated.

    ``compared_notes`` have at least two annotators, ``complete_notes`` all of them; ``spans`` counts the
    distinct ranges that anyone marked in a compared note. A figure is None where it is 0/0: nothing to compare,
    or one single value in all of it.
    """

    annotators: int
    compared_notes: int
    complete_notes: int
    spans: int
    character_alpha: float | None
    span_alpha: float | None
    character_fleiss_kappa: float | None
    span_fleiss_kappa: float | None


def reliability(annotations: Mapping[str, Sequence[Document]], labels: Sequence[str]) -> Reliability:
    """Return the agreement of all annotators at once on notes with the same id; their order does not matter.

    The value of a character is its label or outside, the value of a span the label that the annotator gave to
    exactly this range of characters, or outside. A span that nobody marked is no unit, so chance is reckoned
    among the marked ones only, and two annotators without a common span are below 0. Raises ``ValueError`` as
    ``span_table``.
    """
    table = span_table(annotations, labels)
    characters, spans = character_ratings(table), span_ratings(table)
    seen = table.annotated.sum(axis=0)
    complete = seen == len(table.annotators)
    alphas, kappas = [], []
    for ratings in (characters, spans):
        counts = value_counts(ratings.codes, len(labels) + 1)
        chosen = complete[table.note_at(ratings.start)]
        alphas.append(krippendorff_alpha(counts, ratings.count))
        kappas.append(fleiss_kappa(counts[chosen], ratings.count[chosen]))
    return Reliability(
        annotators=len(table.annotators),
        compared_notes=int(np.count_nonzero(seen >= 2)),
        complete_notes=int(np.count_nonzero(complete)) if len(table.annotators) >= 2 else 0,
        spans=_compared(spans),
        character_alpha=alphas[0],
        span_alpha=alphas[1],
        character_fleiss_kappa=kappas[0],
        span_fleiss_kappa=kappas[1],
    )


def value_counts(codes: Codes, values: int) -> Ints:
    """Return how many annotators gave each unit each value, (units, values), of codes (annotators, units).

    Codes below 0 are missing and not counted.
    """
    return np.stack([np.count_nonzero(codes == value, axis=0) for value in range(values)], axis=1).astype(np.int64)


def krippendorff_alpha(counts: Ints, repeated: Ints) -> float | None:
    """Return Krippendorff's alpha for nominal values (Krippendorff 2011, Computing Krippendorff's alpha).

    ``counts`` is (units, values); row ``u`` stands for ``repeated[u]`` equal units. Units with fewer than two
    ratings are left out, as the method says. None where no value is comparable or all are the same.
    """
    ratings = counts.sum(axis=1)
    paired = ratings >= 2
    counts, repeated, ratings = counts[paired], repeated[paired], ratings[paired]
    totals = repeated @ counts
    total = int(totals.sum())
    # In whole numbers, so that "all values are the same" is an exact comparison.
    unlike = total * total - int(totals @ totals)
    if unlike == 0:
        return None
    # A unit's entries of the coincidence matrix off its diagonal are the pairs of unlike ratings / (ratings - 1).
    differing = ratings * ratings - (counts * counts).sum(axis=1)
    observed = float((repeated * differing / (ratings - 1)).sum())
    return 1.0 - (total - 1) * observed / unlike


def fleiss_kappa(counts: Ints, repeated: Ints) -> float | None:
    """Return Fleiss' kappa (Fleiss 1971, Psychological Bulletin 76:378) of (units, values) counts.

    Row ``u`` stands for ``repeated[u]`` equal units. None without units, with one annotator, or where all values
    are the same. Raises ``ValueError`` when units differ in their number of ratings: that is what alpha is for.
    """
    ratings = np.unique(counts.sum(axis=1))
    if len(ratings) > 1:
        raise ValueError(f"units have {ratings.tolist()} ratings: Fleiss' kappa needs the same number of each")
    if len(ratings) == 0 or ratings[0] < 2:
        return None
    totals = repeated @ counts
    total, each = int(totals.sum()), int(ratings[0])
    chance = int(totals @ totals)
    if chance == total * total:
        return None
    agreeing = int(repeated @ (counts * (counts - 1)).sum(axis=1))
    expected = chance / (total * total)
    return (agreeing / (total * (each - 1)) - expected) / (1 - expected)


def _compared(ratings: Ratings) -> int:
    return int(np.count_nonzero(np.count_nonzero(ratings.codes >= OUTSIDE, axis=0) >= 2))
