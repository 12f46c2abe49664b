"""How sure a strict F1 is, and whether two systems differ: whole documents resampled by their counts.

Documents and not spans are drawn, because the mentions of one note depend on each other.
"""

import numpy as np
import numpy.typing as npt

from estner_assets.ner.metrics import DocumentSpans, check_documents, exact_counts

Counts = npt.NDArray[np.int64]
"""Per document: gold spans, predicted spans, exact matches; shape (documents, 3)."""

BLOCK_CELLS = 4_000_000
"""Draws are made in blocks of about this many (sample, document) cells, so that memory stays bounded."""


def bootstrap_f1(
    gold: DocumentSpans, predicted: DocumentSpans, label: str | None, samples: int, level: float, seed: int
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the strict F1 (Efron & Tibshirani 1993, ch. 13).

    ``level`` is the share of samples inside the interval, as 0.95. Raises ``ValueError`` without documents or
    samples.
    """
    counts = _counts(gold, predicted, label)
    _check_size(len(counts), samples)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a share between 0 and 1, as 0.95")
    rng = np.random.default_rng(seed)
    shares = np.full(len(counts), 1 / len(counts))
    drawn = [rng.multinomial(len(counts), shares, size=size) @ counts for size in _blocks(samples, len(counts))]
    low, high = np.quantile(_f1(np.concatenate(drawn)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_randomisation(
    gold: DocumentSpans,
    predicted_a: DocumentSpans,
    predicted_b: DocumentSpans,
    label: str | None,
    samples: int,
    seed: int,
) -> float:
    """Return the two-sided p value of the difference in strict F1 (approximate randomisation, Noreen 1989).

    Under the null hypothesis the two systems' outputs for a document could change places. The value is (1 +
    samples at least as different) / (1 + samples), never 0. Raises ``ValueError`` without documents or
    samples.
    """
    a, b = _counts(gold, predicted_a, label), _counts(gold, predicted_b, label)
    _check_size(len(a), samples)
    rng = np.random.default_rng(seed)
    observed = abs(float(_f1(a.sum(axis=0)) - _f1(b.sum(axis=0))))
    extreme = 0
    for size in _blocks(samples, len(a)):
        swapped = rng.integers(0, 2, size=(size, len(a)))
        moved = swapped @ (b - a)
        difference = np.abs(_f1(a.sum(axis=0) + moved) - _f1(b.sum(axis=0) - moved))
        # Equal counts can differ in the last bit; such a tie is as extreme as the observed.
        extreme += int(np.count_nonzero(difference >= observed - 1e-12))
    return (1 + extreme) / (1 + samples)


def _counts(gold: DocumentSpans, predicted: DocumentSpans, label: str | None) -> Counts:
    check_documents(gold, predicted)
    rows = [exact_counts(one, other, label) for one, other in zip(gold, predicted, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _f1(counts: Counts) -> npt.NDArray[np.float64]:
    """Return the F1 of every (..., 3) row; 0 where there is nothing to find and nothing found."""
    units = counts[..., 0] + counts[..., 1]
    shares: npt.NDArray[np.float64] = 2 * counts[..., 2] / np.maximum(units, 1)
    return shares


def _blocks(samples: int, documents: int) -> list[int]:
    size = max(1, BLOCK_CELLS // documents)
    return [min(size, samples - start) for start in range(0, samples, size)]


def _check_size(documents: int, samples: int) -> None:
    if documents < 1 or samples < 1:
        raise ValueError(f"{documents} documents, {samples} samples: resampling needs at least one of each")
