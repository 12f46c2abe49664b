"""Laws of agreement of all annotators at once."""

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from estner_assets.ner.reliability import Reliability, fleiss_kappa, krippendorff_alpha, reliability
from estner_assets.ner.spans import Document, Span

LABELS = ["DRUG", "PROCEDURE"]
TEXT = "Sai aspiriini ja KT. Hiljem MRT."

KRIPPENDORFF_2011 = """
123321412...
1233224125.3
.333234225 1.
123324412 51.
""".replace(" ", "").split()
"""Krippendorff 2011, Computing Krippendorff's alpha-reliability, section C: four observers, twelve units."""

FLEISS_1971 = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
"""Fleiss 1971, table 1: thirty patients, six psychiatrists, five diagnoses."""

TEXTBOOK = """
0 0 0 0 14  0 2 6 4 2  0 0 3 5 6  0 3 9 2 0  2 2 8 1 1  7 7 0 0 0  3 2 6 3 0  2 5 3 2 2  6 5 2 1 0  0 2 2 3 7
"""
"""The worked example of most textbooks: ten subjects, fourteen raters, five categories, kappa 0.210."""


def once(counts: np.ndarray) -> np.ndarray:
    return np.ones(len(counts), dtype=np.int64)


def counted(columns: list[str], values: str) -> np.ndarray:
    return np.array([[column.count(value) for value in values] for column in columns])


def test_alpha_is_that_of_the_published_example() -> None:
    """Krippendorff's data with missing ratings have the nominal alpha 1 - 39·8/(40² - 384) = 0.743."""
    counts = counted(["".join(unit) for unit in zip(*KRIPPENDORFF_2011, strict=True)], "12345")
    assert (counts.sum(), len(counts)) == (41, 12)
    alpha = krippendorff_alpha(counts, once(counts))
    assert alpha == pytest.approx(1 - 39 * 8 / (1600 - 384)) and round(alpha or 0, 3) == 0.743


def test_fleiss_kappa_is_that_of_the_published_examples() -> None:
    """Fleiss' thirty patients have kappa 0.430, the textbooks' ten subjects 0.210."""
    patients = np.array([[int(n) for n in row] for row in FLEISS_1971.split()])
    subjects = np.array(TEXTBOOK.split(), dtype=np.int64).reshape(10, 5)
    assert [patients.sum(axis=0).tolist(), subjects.sum(axis=0).tolist()] == [
        [26, 26, 30, 55, 43],
        [20, 28, 39, 21, 32],
    ]
    assert round(fleiss_kappa(patients, once(patients)) or 0, 3) == 0.43
    assert round(fleiss_kappa(subjects, once(subjects)) or 0, 3) == 0.21


def test_repeated_units_are_units() -> None:
    """A row that stands for three units is three rows."""
    counts, repeated = np.array([[2, 1, 0], [0, 3, 0], [1, 1, 1], [0, 0, 3]]), np.array([3, 1, 2, 5])
    rows = np.repeat(counts, repeated, axis=0)
    assert krippendorff_alpha(counts, repeated) == pytest.approx(krippendorff_alpha(rows, once(rows)))
    assert fleiss_kappa(counts, repeated) == pytest.approx(fleiss_kappa(rows, once(rows)))


def test_what_cannot_be_compared_is_none() -> None:
    """One rating a unit, or the same value everywhere, has no agreement beyond chance; unequal units raise."""
    single, same = np.array([[1, 0], [0, 1]]), np.array([[3, 0], [3, 0]])
    assert [f(c, once(c)) for f in (krippendorff_alpha, fleiss_kappa) for c in (single, same)] == [None] * 4
    assert fleiss_kappa(np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)) is None
    with pytest.raises(ValueError, match=r"\[2, 3\] ratings"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]), np.array([1, 1]))
    assert reliability({}, LABELS) == Reliability(0, 0, 0, 0, None, None, None, None)


def random_cells(rng: random.Random, missing: bool) -> dict[str, list[Document]]:
    cells: dict[str, list[Document]] = {}
    for name in "abcd":
        cells[name] = []
        for note_id in rng.sample("12345", k=4 if missing else 5):
            cuts = sorted(rng.sample(range(0, len(TEXT), 3), k=rng.choice([2, 4, 6])))
            spans = [Span(a, b, rng.choice(LABELS)) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
            rng.shuffle(spans)
            cells[name].append(Document(note_id, TEXT, tuple(spans)))
    return cells


def values_of_units(cells: dict[str, list[Document]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the values of every character and of every marked range, one list of values a unit."""
    characters: dict[tuple[str, int], list[str]] = {}
    spans: dict[tuple[str, int, int], list[str]] = {}
    notes = [document for documents in cells.values() for document in documents]
    for document in notes:
        for span in document.spans:
            spans[document.document_id, span.start, span.end] = []
    for document in notes:
        for position in range(len(TEXT)):
            label = [s.label for s in document.spans if s.start <= position < s.end] or ["-"]
            characters.setdefault((document.document_id, position), []).append(label[0])
        for (note_id, start, end), values in spans.items():
            if note_id == document.document_id:
                label = [s.label for s in document.spans if (s.start, s.end) == (start, end)] or ["-"]
                values.append(label[0])
    return list(characters.values()), list(spans.values())


def alpha_by_coincidences(units: list[list[str]]) -> float:
    """The published way: build the coincidence matrix pair by pair."""
    coincidences: Counter[tuple[str, str]] = Counter()
    for values in units:
        for pair in permutations(values, 2):
            coincidences[pair] += 1 / (len(values) - 1)  # type: ignore[assignment]
    totals: Counter[str] = Counter()
    for (value, _), count in coincidences.items():
        totals[value] += count
    total = sum(totals.values())
    observed = sum(count for (one, other), count in coincidences.items() if one != other)
    return 1 - (total - 1) * observed / (total**2 - sum(count**2 for count in totals.values()))


def test_runs_of_characters_are_characters() -> None:
    """On random notes, some missing, both alphas are those of the coincidence matrix of single units."""
    rng = random.Random(3)
    for _ in range(20):
        cells = random_cells(rng, missing=True)
        characters, spans = values_of_units(cells)
        result = reliability(cells, LABELS)
        assert result.character_alpha == pytest.approx(alpha_by_coincidences(characters))
        assert result.span_alpha == pytest.approx(alpha_by_coincidences(spans))
        assert result.spans == sum(len(values) >= 2 for values in spans)


def test_fleiss_counts_complete_notes_only() -> None:
    """A note that one annotator lacks changes no kappa; order of annotators, notes and spans changes nothing."""
    rng = random.Random(4)
    cells = random_cells(rng, missing=False)
    characters, spans = values_of_units(cells)
    whole = reliability(cells, LABELS)
    for kappa, units in ((whole.character_fleiss_kappa, characters), (whole.span_fleiss_kappa, spans)):
        counts = np.array([[values.count(value) for value in ("-", *LABELS)] for values in units])
        assert kappa == pytest.approx(fleiss_kappa(counts, once(counts)))
    turned = {
        name: [replace(document, spans=document.spans[::-1]) for document in reversed(cells[name])] for name in "cdab"
    }
    assert reliability(turned, LABELS) == whole
    more = cells | {
        "a": [*cells["a"], Document("9", TEXT)],
        "b": [*cells["b"], Document("9", TEXT, (Span(0, 3, "DRUG"),))],
    }
    result = reliability(more, LABELS)
    assert (result.compared_notes, result.complete_notes) == (6, 5)
    assert result.character_fleiss_kappa == whole.character_fleiss_kappa
    assert result.character_alpha != whole.character_alpha


def test_many_annotators_are_fast() -> None:
    """Twenty annotators of a thousand notes of 500 characters take less than 2 s."""
    rng = random.Random(5)
    text = "x" * 500
    cells = {
        f"a{index}": [
            Document(
                str(note), text, tuple(Span(s, s + rng.randint(5, 20), rng.choice(LABELS)) for s in range(0, 480, 48))
            )
            for note in range(1000)
        ]
        for index in range(20)
    }
    began = time.process_time()
    result = reliability(cells, LABELS)
    assert time.process_time() - began < 2
    assert (result.annotators, result.complete_notes) == (20, 1000)
