"""Laws of resampling."""

from itertools import product

import numpy as np
import pytest

from estner_assets.ner.metrics import strict
from estner_assets.ner.significance import bootstrap_f1, paired_randomisation
from estner_assets.ner.spans import Span

GOLD = [[Span(0, 3, "DRUG"), Span(5, 8, "DRUG")], [Span(0, 3, "DRUG")], [], [Span(1, 2, "PROCEDURE")]] * 5
GOOD = [[Span(0, 3, "DRUG"), Span(5, 8, "DRUG")], [Span(0, 3, "DRUG")], [], []] * 5
WORSE = [[Span(0, 3, "DRUG")], [Span(0, 2, "DRUG")], [Span(4, 6, "DRUG")], [Span(1, 2, "PROCEDURE")]] * 5


def test_interval_is_that_of_documents_drawn_with_replacement() -> None:
    """The vectorised interval is that of a plain loop over resampled documents, within sampling error."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(1500):
        drawn = rng.integers(0, len(GOLD), size=len(GOLD))
        draws.append(strict([GOLD[i] for i in drawn], [WORSE[i] for i in drawn], None).f1)
    expected = tuple(np.quantile(draws, [0.05, 0.95]))
    assert bootstrap_f1(GOLD, WORSE, None, 4000, 0.9, seed=5) == pytest.approx(expected, abs=0.03)


def test_interval_repeats_with_its_seed_and_does_not_hang_on_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same seed gives the same interval, also where memory forces small blocks."""
    whole = bootstrap_f1(GOLD, WORSE, "DRUG", 500, 0.95, seed=1)
    assert whole != bootstrap_f1(GOLD, WORSE, "DRUG", 500, 0.95, seed=2)
    monkeypatch.setattr("estner_assets.ner.significance.BLOCK_CELLS", 7 * len(GOLD))
    assert bootstrap_f1(GOLD, WORSE, "DRUG", 500, 0.95, seed=1) == whole


def test_interval_of_a_perfect_and_of_an_absent_label() -> None:
    """Perfect predictions have no spread; a label that nobody uses scores 0."""
    perfect = GOLD[:2] * 3
    assert bootstrap_f1(perfect, perfect, "DRUG", 200, 0.95, seed=0) == (1.0, 1.0)
    assert bootstrap_f1(GOLD, GOLD, "OTHER", 200, 0.95, seed=0) == (0.0, 0.0)


def test_p_value_is_the_share_of_all_swaps_that_differ_as_much() -> None:
    """With few documents the sampled p value is near that of all 2^n swaps."""
    gold, a, b = GOLD[:8], GOOD[:8], WORSE[:8]
    observed = abs(strict(gold, a, None).f1 - strict(gold, b, None).f1)
    extreme = 0
    for swaps in product([False, True], repeat=len(gold)):
        left = [y if swap else x for x, y, swap in zip(a, b, swaps, strict=True)]
        right = [x if swap else y for x, y, swap in zip(a, b, swaps, strict=True)]
        extreme += abs(strict(gold, left, None).f1 - strict(gold, right, None).f1) >= observed - 1e-12
    expected = extreme / 2 ** len(gold)
    assert paired_randomisation(gold, a, b, None, 4000, seed=3) == pytest.approx(expected, abs=0.03)


def test_p_value_of_a_system_against_itself_is_one_and_is_symmetric() -> None:
    """Equal outputs never differ; which system is called a does not matter."""
    assert paired_randomisation(GOLD, WORSE, WORSE, None, 300, seed=0) == 1.0
    forth = paired_randomisation(GOLD, GOOD, WORSE, "DRUG", 300, seed=0)
    assert forth == paired_randomisation(GOLD, WORSE, GOOD, "DRUG", 300, seed=0)
    assert forth == 1 / 301


def test_resampling_nothing_raises() -> None:
    """Neither no documents nor no samples give a number."""
    with pytest.raises(ValueError, match="0 documents"):
        bootstrap_f1([], [], None, 100, 0.95, seed=0)
    with pytest.raises(ValueError, match="0 samples"):
        paired_randomisation(GOLD, GOOD, WORSE, None, 0, seed=0)
    with pytest.raises(ValueError, match="share between"):
        bootstrap_f1(GOLD, GOOD, None, 10, 95, seed=0)
