"""Conditions of synthetic notes: tuples of genre, age group, sex and diagnosis, and how they are drawn.

The prefix is the one of Šuvalov et al. (J Med Internet Res 2025;27:e66279): ``anamnees, vanusegrupp 7, naine,
C50,``.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, order=True)
class Condition:
    """One tuple of metadata; the values are the records' own strings."""

    genre: str
    age_group: str
    sex: str
    diagnosis: str

    @property
    def prefix(self) -> str:
        """The words that stand before the note, without the space that follows them."""
        return f"{self.genre}, vanusegrupp {self.age_group}, {self.sex}, {self.diagnosis},"


DIMENSIONS = tuple(field.name for field in fields(Condition))


@dataclass(frozen=True)
class ConditionedNote:
    """A real note with what it is conditioned on; ``note_id`` is the record's id."""

    note_id: str
    patient_id: str
    condition: Condition
    text: str


def split_patients(patient_ids: Sequence[str], holdout_fraction: float, seed: int) -> frozenset[str]:
    """Return the holdout's patients: those with the lowest seeded hashes, at least one and never all.

    Depends on which patients there are, not on their order or on how often each is named.
    Empty for fewer than two patients.
    """
    if not 0 < holdout_fraction < 1:
        raise ValueError(f"holdout_fraction is {holdout_fraction}; choose a share of patients between 0 and 1")
    patients = sorted(set(patient_ids), key=lambda patient: (_seeded_digest(patient, seed), patient))
    if len(patients) < 2:
        return frozenset()
    size = min(max(round(len(patients) * holdout_fraction), 1), len(patients) - 1)
    return frozenset(patients[:size])


def _seeded_digest(patient_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient_id}".encode()).digest()


def sample_conditions(notes: Sequence[ConditionedNote], count: int, min_patients: int, seed: int) -> list[Condition]:
    """Draw ``count`` tuples from the notes' joint distribution, in proportion to each tuple's notes.

    Tuples of fewer than ``min_patients`` distinct patients are never drawn (k-anonymity). The order of the
    notes does not matter. Raises ``ValueError`` when no tuple is left.
    """
    patients: defaultdict[Condition, set[str]] = defaultdict(set)
    for note in notes:
        patients[note.condition].add(note.patient_id)
    allowed = sorted(condition for condition, members in patients.items() if len(members) >= min_patients)
    if not allowed:
        largest = max(map(len, patients.values()), default=0)
        raise ValueError(
            f"no condition tuple has {min_patients} patients (the largest has {largest}): lower "
            "sampling.min_patients, or make the records' age groups or diagnoses coarser"
        )
    frequency = Counter(note.condition for note in notes)
    weights = np.array([frequency[condition] for condition in allowed], dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(len(allowed), size=count, p=weights / weights.sum())
    return [allowed[index] for index in drawn]


def marginal_drift(notes: Sequence[ConditionedNote], sampled: Sequence[Condition]) -> dict[str, float]:
    """Return the total variation distance (0..1) between records and sample, by dimension.

    Raises ``ValueError`` when one side is empty, for then there is no distribution to compare.
    """
    if not notes or not sampled:
        raise ValueError("marginal drift needs at least one record and one sampled condition")
    return {
        dimension: _total_variation(
            Counter(getattr(note.condition, dimension) for note in notes),
            Counter(getattr(condition, dimension) for condition in sampled),
        )
        for dimension in DIMENSIONS
    }


def _total_variation(left: Counter[str], right: Counter[str]) -> float:
    values: Iterable[str] = sorted(left.keys() | right.keys())
    left_total, right_total = left.total(), right.total()
    return sum(abs(left[value] / left_total - right[value] / right_total) for value in values) / 2
