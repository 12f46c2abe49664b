"""The demo corpus: what the grammar beside it writes is deterministic, well-formed and rich."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"
SCRIPT = DEMO / "grammar" / "write_records.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_records", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_records"] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


@pytest.fixture(scope="module")
def drawn(script: ModuleType) -> list[Any]:
    return script.build()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (DEMO / "records" / "records.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def labels() -> list[dict[str, Any]]:
    lines = (DEMO / "records" / "spans.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["records.csv", "spans.jsonl"])
def test_files_regenerate(script: ModuleType, drawn: list[Any], tmp_path: Path, name: str) -> None:
    """The stored files are byte for byte what the grammar writes."""
    script.write(drawn, tmp_path)
    assert (tmp_path / name).read_bytes() == (DEMO / "records" / name).read_bytes()


def test_size(rows: list[dict[str, str]]) -> None:
    """At least 4,000 notes, of patients with one to eight notes each, of 15 to 80 words each."""
    per_patient = Counter(row["patient_id"] for row in rows)
    assert len(rows) >= 4000
    assert 1400 <= len(per_patient) <= 1600 and max(per_patient.values()) <= 8
    lengths = [len(row["text"].split()) for row in rows]
    assert min(lengths) >= 15 and max(lengths) <= 80
    assert 30 <= sum(lengths) / len(lengths) <= 45


@pytest.mark.parametrize("field", ["record_id", "text"])
def test_uniqueness(rows: list[dict[str, str]], field: str) -> None:
    """No two notes share an id or a text."""
    assert len({row[field] for row in rows}) == len(rows)


def test_spans_are_words(rows: list[dict[str, str]], labels: list[dict[str, Any]]) -> None:
    """Every span is a non-empty slice of the stored text that neither begins nor ends inside a word."""
    assert [line["id"] for line in labels] == [row["record_id"] for row in rows]
    count = 0
    for row, line in zip(rows, labels, strict=True):
        text = row["text"]
        assert line["text"] == text
        for start, end, kind in line["label"]:
            count += 1
            assert text[:start][-1:] != "-" != text[end:][:1]  # a compound is one word
            inside = text[start:end]
            assert kind in {"DRUG", "PROCEDURE"} and inside and inside == inside.strip()
            assert not text[:start][-1:].isalnum() and not text[end:][:1].isalnum(), (
                row["record_id"],
                inside,
            )
    assert count > 2 * len(rows)


def test_spans_are_sorted_and_apart(labels: list[dict[str, Any]]) -> None:
    """The spans of a note come in order and never overlap."""
    for line in labels:
        flat = [offset for start, end, _ in line["label"] for offset in (start, end)]
        assert flat == sorted(flat)


def test_values(rows: list[dict[str, str]]) -> None:
    """Genre, sex and age group hold their values; a patient keeps one sex and never grows younger."""
    assert {row["genre"] for row in rows} == {"anamnees", "protseduur"}
    assert {row["sex"] for row in rows} == {"naine", "mees"}
    assert {row["age_group"] for row in rows} <= set("0123456789")
    by_patient = defaultdict(list)
    for row in rows:
        by_patient[row["patient_id"]].append(row)
    for notes in by_patient.values():
        assert len({note["sex"] for note in notes}) == 1
        groups = [int(note["age_group"]) for note in sorted(notes, key=lambda note: note["date"])]
        assert groups == sorted(groups)


def test_diagnoses_fit_patients(script: ModuleType, rows: list[dict[str, str]]) -> None:
    """A diagnosis of one sex is never given to the other, and each is given to several patients."""
    diagnoses = script.Loader(script.GRAMMAR).load().diagnoses
    patients = defaultdict(set)
    for row in rows:
        assert diagnoses[row["diagnosis"]].sex in ("", row["sex"])
        patients[row["diagnosis"]].add(row["patient_id"])
    assert patients.keys() == diagnoses.keys()
    assert min(map(len, patients.values())) >= 8
    assert sum(len(ids) >= 20 for ids in patients.values()) >= 40


def test_lemmas(script: ModuleType, drawn: list[Any]) -> None:
    """At least 150 drugs and 120 procedures occur, and what is held out does not."""
    counts = script.lemma_counts(drawn)
    assert len(counts["DRUG"]) >= 150 and len(counts["PROCEDURE"]) >= 120
    held_out = script.Loader(script.GRAMMAR).held_out
    assert not {(kind, name) for kind, names in counts.items() for name in names} & held_out


def test_fragments(script: ModuleType) -> None:
    """The notes are put together from at least 600 distinct templates."""
    assert len(script.Loader(script.GRAMMAR).load().fragments) >= 600


def test_no_seams(rows: list[dict[str, str]]) -> None:
    """No sentence of more than eight words recurs in over 80 notes."""
    sentences = Counter(
        sentence for row in rows for sentence in set(row["text"].split(". ")) if len(sentence.split()) > 8
    )
    assert len(sentences) > len(rows)
    assert max(sentences.values()) <= 80


@pytest.mark.parametrize(
    ("drug", "diagnoses"),
    [
        ("letrosool", {"C50"}),
        ("latanoprost", {"H40"}),
        ("salbutamool", {"J18", "J44", "J45"}),
        ("levetiratsetaam", {"G40"}),
        ("oksaliplatiin", {"C18"}),
    ],
)
def test_drugs_depend_on_the_diagnosis(drawn: list[Any], drug: str, diagnoses: set[str]) -> None:
    """A drug with one use is named in the notes of that use and in no others."""
    named = {
        record.fields["diagnosis"]
        for record in drawn
        if any(entry.kind == "DRUG" and entry.nominative == drug for entry in record.entries)
    }
    assert named and named <= diagnoses


def test_held_out_names_disappear(script: ModuleType, drawn: list[Any], tmp_path: Path) -> None:
    """An entry put on the held-out list is named in no note, not even by the template that spells it."""
    (tmp_path / "specialities").mkdir()
    for path in script.GRAMMAR.rglob("*.yaml"):
        (tmp_path / path.relative_to(script.GRAMMAR)).write_bytes(path.read_bytes())
    (tmp_path / "held_out.yaml").write_text("drugs: [lidokaiin, letrosool]\nprocedures: [EKG]\n", "utf-8")
    names = {"lidokaiin", "letrosool", "EKG"}

    def found(records: list[Any]) -> set[str]:
        return {entry.nominative for record in records for entry in record.entries} & names

    assert found(drawn) == names
    assert not found(script.build(tmp_path))


@pytest.mark.parametrize(
    ("kind", "spec", "forms"),
    [
        (
            "DRUG",
            "tamoksifeen+i 20 mg 1x1",
            ("tamoksifeeni", "tamoksifeeni", "tamoksifeeniga", "tamoksifeenist"),
        ),
        ("DRUG", "Concor+it", ("Concori", "Concorit", "Concoriga", "Concorist")),
        ("DRUG", "Xarelto+", ("Xarelto", "Xareltot", "Xareltoga", "Xareltost")),
        ("PROCEDURE", "KT-d", ("KT", "KT-d", "KT-ga", "KT-st")),
        ("PROCEDURE", "kiiritus+e", ("kiirituse", "kiiritust", "kiiritusega", "kiiritusest")),
        ("PROCEDURE", "stentimine", ("stentimise", "stentimist", "stentimisega", "stentimisest")),
    ],
)
def test_inflection(script: ModuleType, kind: str, spec: str, forms: tuple[str, ...]) -> None:
    """The genitive, partitive, comitative and elative follow from the short spec."""
    entry = script.read_entry(kind, spec)
    assert tuple(entry.form(case) for case in ("gen", "par", "kom", "ela")) == forms
