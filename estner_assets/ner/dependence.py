"""Copies share one vote: how dependent annotators are, and what weight that leaves to each.

Two annotators that err together say less than two that err apart. Dependence is what two of them have in
common beyond the truth, so it hangs on an estimate of the truth, and that on the weights; the two are estimated
in turn.
"""

import numpy as np

from estner_assets.ner.dawid_skene import DawidSkene, VotePatterns, fit
from estner_assets.ner.span_table import Floats

ROUNDS = 5
"""How often truth and dependence are estimated in turn, at most."""

SETTLED = 1e-3
"""They are done when no similarity moved by more than this."""

NEAR_COPY = 0.9
"""The F1 of one against the other above which two annotators are copies, whatever the truth. Votes cannot tell
copies from two that are nearly perfect; below this, errors can."""

NOISE_ERRORS = 3.0
"""A correlation of errors counts from this many standard errors of an independent pair (1 / sqrt(candidates)) on."""

NEARLY_ONE = 1 - 1e-6
"""The largest similarity of two annotators that differ, so that no conductance is infinite."""


def dependence(patterns: VotePatterns, labels: int) -> Floats:
    """Return how much every two annotators vote as one, (annotators, annotators), 0 to 1, 1 on the diagonal.

    It is the greater of two: how nearly their outputs are the same, and how far their errors are. The first
    comes before any truth: else a crowd of copies would make its own errors the truth and look independent.
    """
    copies = np.maximum(marked_alike(patterns) - NEAR_COPY, 0.0) / (1 - NEAR_COPY)
    similarity = copies
    for _ in range(ROUNDS):
        weights = shared_votes(similarity, patterns.annotated)
        before, similarity = similarity, np.maximum(copies, errors_alike(patterns, fit(patterns, weights, labels)))
        if np.abs(similarity - before).max(initial=0.0) <= SETTLED:
            break
    return similarity


def marked_alike(patterns: VotePatterns) -> Floats:
    """Return the F1 of every two annotators against each other, on the candidates of notes that both annotated."""
    counted = patterns.marked * patterns.count[:, None]
    both = counted.T @ patterns.marked
    marked = counted.T @ patterns.annotated
    return _symmetric(2 * both / np.maximum(marked + marked.T, 1))


def errors_alike(patterns: VotePatterns, fitted: DawidSkene) -> Floats:
    """Return the correlation of what the model leaves unexplained of two annotators' votes, above its noise.

    It is 1 where they are identical, and 0 where they are independent once the truth is known (Yen 1984, Applied
    Psychological Measurement 8:125: Q3, here within the classes of the model).
    """
    label, annotated = patterns.label, patterns.annotated
    together, own = np.zeros((annotated.shape[1],) * 2), np.zeros((annotated.shape[1],) * 2)
    classes = (
        (fitted.posterior, fitted.rates.sensitivity),
        (1 - fitted.posterior, fitted.rates.false_positive_rate),
    )
    for probability, rate in classes:
        residual = (patterns.marked - rate.T[label]) * annotated
        weighted = residual * (patterns.count * probability)[:, None]
        together += weighted.T @ residual
        own += (weighted * residual).T @ annotated
    spread = np.sqrt(own * own.T)
    correlation = np.divide(together, spread, out=np.zeros_like(together), where=spread > 0)
    candidates = (annotated * patterns.count[:, None]).T @ annotated
    noise = np.minimum(NOISE_ERRORS / np.sqrt(np.maximum(candidates, 1)), NEARLY_ONE)
    return _symmetric(np.maximum(correlation - noise, 0.0) / (1 - noise))


def shared_votes(similarity: Floats, annotated: Floats) -> Floats:
    """Return the weight of every annotator of each row of ``annotated`` (rows, annotators), 0 where it is 0.

    For ``k`` copies it is 1/k each, and a copy more takes nothing from the others. The plain 1 / sum of
    similarities lacks the second: half-similar annotators would lose with every copy. So the similarities are
    made a tree by single linkage, and the weights are the currents through it (Thompson, Higgins & Gibson 1994,
    CABIOS 10:19), which solve similarity x weights = 1 (the weighting of Leinster 2013, The magnitude of metric
    spaces) and are never negative. Their sum is the effective number of annotators.
    """
    weights = annotated.copy()
    groups = {index: [index] for index in range(len(similarity))}
    effective = {index: annotated[:, index] for index in groups}
    root = list(groups)
    for one, other in _most_similar_first(similarity):
        left, right = root[one], root[other]
        height = min(float(similarity[one, other]), NEARLY_ONE)
        if left == right or height <= 0:
            continue
        conductances = [effective[side] / (1 - height * effective[side]) for side in (left, right)]
        total = conductances[0] + conductances[1]
        merged = total / (1 + height * total)
        for side, conductance in zip((left, right), conductances, strict=True):
            share = np.divide(conductance * merged, total, out=np.zeros_like(total), where=total > 0)
            before = effective[side]
            factor = np.divide(share, before, out=np.zeros_like(total), where=before > 0)
            weights[:, groups[side]] *= factor[:, None]
        groups[left] += groups.pop(right)
        effective[left] = merged
        for member in groups[left]:
            root[member] = left
    return weights


def _most_similar_first(similarity: Floats) -> list[tuple[int, int]]:
    one, other = np.triu_indices(len(similarity), k=1)
    order = np.argsort(-similarity[one, other], kind="stable")
    return list(zip(one[order].tolist(), other[order].tolist(), strict=True))


def _symmetric(matrix: Floats) -> Floats:
    # Sums in another order differ in the last bit; the diagonal is 1 by definition.
    even: Floats = np.clip((matrix + matrix.T) / 2, 0.0, 1.0)
    np.fill_diagonal(even, 1.0)
    return even
