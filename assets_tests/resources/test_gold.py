"""Gold notes come in with spans that belong to their texts, or not at all."""

import json
from pathlib import Path

import pytest

from estner_assets.ner.spans import Span
from estner_assets.resources.gold import read_doccano
from estner_assets.resources.records import SourceError

LABELS = ("DRUG", "PROCEDURE")


def read(tmp_path: Path, *lines: object) -> list[tuple[str, tuple[Span, ...]]]:
    path = tmp_path / "gold.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return [(one.document["text"], one.spans) for one in read_doccano([path], LABELS)]


def test_spans_are_characters_of_the_text(tmp_path: Path) -> None:
    """Spans come sorted and point at the stored text."""
    found = read(tmp_path, {"id": 1, "text": "Enap ja EKG", "label": [[8, 11, "PROCEDURE"], [0, 4, "DRUG"]]})
    assert found == [("Enap ja EKG", (Span(0, 4, "DRUG"), Span(8, 11, "PROCEDURE")))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": 1, "text": "Enap", "label": [[0, 5, "DRUG"]]}], "line 1: span 0-5 (DRUG) does not lie in its text"),
        ([{"id": 1, "text": "Enap", "label": [[2, 2, "DRUG"]]}], "line 1: span 2-2"),
        ([{"id": 1, "text": "Enap Enap", "label": [[0, 9, "DRUG"], [5, 9, "DRUG"]]}], "overlaps"),
        (
            [{"id": 1, "text": "Enap", "label": [[0, 4, "RAVIM"]]}],
            "unknown label 'RAVIM' at 0; allowed: DRUG, PROCEDURE",
        ),
        ([{"id": 1, "text": "Enap ", "label": [[0, 5, "DRUG"]]}], "white space"),
        ([{"id": 1, "text": "Enap", "label": [[0, "4", "DRUG"]]}], "is not [start, end, label]"),
        ([{"id": 1, "text": "Enap"}], "`label` must be a list"),
        ([{"id": 1, "text": " ", "label": []}], "`text` is empty"),
        ([{"text": "Enap", "label": []}], "`id` is missing"),
        ([{"id": 1, "text": "a", "label": []}, {"id": 1, "text": "b", "label": []}], "line 2: id '1' stands already"),
        (['{"id": 1,'], "line 1: not JSON"),
        ([""], "no annotated note"),
    ],
)
def test_a_fault_names_its_file_and_line(tmp_path: Path, lines: list[object], message: str) -> None:
    """A file with a fault is refused whole, with the place and what is wrong."""
    with pytest.raises(SourceError) as caught:
        read(tmp_path, *lines)
    assert message in str(caught.value)
    assert "gold.jsonl" in str(caught.value)
