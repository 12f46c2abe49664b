"""Learning curves are drawn from random subsets."""

from estner_assets.defs.evaluation import random_subset
from estner_assets.ner.spans import Document

DOCUMENTS = [Document(str(number), f"note {number}") for number in range(100)]


def ids(size: int, seed: int) -> list[str]:
    return [document.document_id for document in random_subset(DOCUMENTS, size, seed)]


def test_trap_22_subsets_are_random_and_repeatable() -> None:
    """The same seed gives the same subset, another seed another, and none is a prefix of the corpus."""
    assert ids(10, seed=1) == ids(10, seed=1)
    assert set(ids(10, seed=1)) != set(ids(10, seed=2))
    assert len(set(ids(50, seed=3))) == 50
    assert set(ids(10, seed=1)) != {str(number) for number in range(10)}
    assert not set(ids(10, seed=1)) <= set(ids(50, seed=2))
