from collections import Counter

import pytest

from estner_assets.ner.conditions import (
    Condition,
    ConditionedNote,
    marginal_drift,
    sample_conditions,
    split_patients,
)

BREAST = Condition("anamnees", "7", "naine", "C50")
HEART = Condition("päevik", "8", "mees", "I10")
RARE = Condition("päevik", "2", "naine", "Q21")


def notes_of(*groups: tuple[Condition, list[str]]) -> list[ConditionedNote]:
    return [
        ConditionedNote(f"r{group}-{index}", patient, condition, "tekst")
        for group, (condition, patients) in enumerate(groups)
        for index, patient in enumerate(patients)
    ]


def test_prefix():
    """The prefix is the paper's: genre, age group, sex, diagnosis, a comma after each."""
    assert BREAST.prefix == "anamnees, vanusegrupp 7, naine, C50,"


@pytest.mark.parametrize(("patients", "size"), [(0, 0), (1, 0), (2, 1), (3, 1), (100, 10), (1000, 100)])
def test_holdout_has_its_share_of_patients(patients: int, size: int):
    """A tenth of the patients is held out, but at least one of two, and never the only one."""
    assert len(split_patients([f"p{index}" for index in range(patients)], 0.1, 0)) == size


def test_holdout_leaves_someone_to_learn_from():
    """However large the share, one patient stays."""
    assert len(split_patients(["a", "b", "c"], 0.99, 0)) == 2


def test_holdout_depends_on_patients_and_seed_only():
    """Order and repetition change nothing; another seed holds out others."""
    patients = [f"p{index}" for index in range(200)]
    holdout = split_patients(patients, 0.1, 3)
    assert split_patients([*reversed(patients), "p7", "p7"], 0.1, 3) == holdout
    assert split_patients(patients, 0.1, 4) != holdout


def test_holdout_is_stable_when_patients_are_added():
    """A new patient moves at most one other across the boundary."""
    patients = [f"p{index}" for index in range(200)]
    before = split_patients(patients, 0.1, 0)
    assert len(before - split_patients([*patients, "new"], 0.1, 0)) <= 1


def test_holdout_fraction_is_a_share():
    """A share outside 0..1 raises."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_patients(["a", "b"], 1.5, 0)


def test_conditions_of_few_patients_are_never_sampled():
    """Patients count, not notes: five notes of two patients do not make a tuple of three."""
    notes = notes_of((BREAST, ["a", "b", "c"]), (RARE, ["d", "d", "d", "e", "e"]))
    assert set(sample_conditions(notes, 500, 3, 0)) == {BREAST}


def test_conditions_are_sampled_jointly_and_in_proportion_to_notes():
    """Only tuples that occur are drawn, each by its share of notes."""
    notes = notes_of((BREAST, ["a", "b", "c"] * 30), (HEART, ["d", "e", "f"] * 10))
    drawn = Counter(sample_conditions(notes, 4000, 3, 0))
    assert set(drawn) == {BREAST, HEART}
    assert drawn[BREAST] / 4000 == pytest.approx(0.75, abs=0.03)


def test_conditions_depend_on_the_seed_and_not_on_the_order():
    """The same notes in another order give the same draw; another seed gives another."""
    notes = notes_of((BREAST, ["a", "b", "c"]), (HEART, ["d", "e", "f"]))
    drawn = sample_conditions(notes, 50, 3, 1)
    assert sample_conditions(notes[::-1], 50, 3, 1) == drawn
    assert sample_conditions(notes, 50, 3, 2) != drawn


@pytest.mark.parametrize("notes", [[], notes_of((BREAST, ["a", "b", "b"]))])
def test_no_condition_of_enough_patients(notes: list[ConditionedNote]):
    """Without any allowed tuple the message says what to change."""
    with pytest.raises(ValueError, match=r"lower sampling\.min_patients"):
        sample_conditions(notes, 1, 3, 0)


def test_drift_of_the_marginals():
    """Total variation by dimension: 0 for equal shares, 1 for disjoint values."""
    notes = notes_of((BREAST, ["a", "b"]), (Condition("anamnees", "7", "naine", "I10"), ["c", "d"]))
    sampled = [Condition("anamnees", "7", "mees", "C50")] * 3 + [Condition("päevik", "7", "mees", "I10")]
    assert marginal_drift(notes, sampled) == {"genre": 0.25, "age_group": 0.0, "sex": 1.0, "diagnosis": 0.25}


def test_drift_of_nothing():
    """There is no drift from or to an empty set."""
    with pytest.raises(ValueError, match="at least one"):
        marginal_drift(notes_of((BREAST, ["a"])), [])
