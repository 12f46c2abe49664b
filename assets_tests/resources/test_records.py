"""Local notes come in exactly as they are, or not at all."""

from datetime import date
from pathlib import Path

import pytest

from estner_assets.resources.records import SourceError, read_records
from estner_assets.settings import RecordsSource

HEADER = "record_id,patient_id,date,genre,age_group,sex,diagnosis,text"
FIRST = "r1,p1,2020-01-31,anamnees,7,naine,C50,"


def read(tmp_path: Path, content: bytes, **source: object) -> list[dict[str, object]]:
    path = tmp_path / "records.csv"
    path.write_bytes(content)
    settings = {"paths": ["records.csv"], "format": "csv"} | source
    return read_records([path], RecordsSource.model_validate(settings))


def text_file(*rows: str) -> bytes:
    return "\n".join((HEADER, *rows, "")).encode()


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    """Every field arrives as it stands in the file."""
    rows = read(tmp_path, text_file(FIRST + '"Võtab ""Enap"", 5 mg"'))
    assert [{name: row[name] for name in row if name != "text_sha256"} for row in rows] == [
        {
            "record_id": "r1",
            "patient_id": "p1",
            "date": date(2020, 1, 31),
            "genre": "anamnees",
            "age_group": "7",
            "sex": "naine",
            "diagnosis": "C50",
            "text": 'Võtab "Enap", 5 mg',
        }
    ]


def test_trap_18_quotes_and_line_breaks_swallow_nothing(tmp_path: Path) -> None:
    """Line breaks in quoted fields stay, the last row needs no blank line after it, tokens such as SEP stay."""
    content = text_file(FIRST + '"esimene\r\nSEP\nteine"', "r2,p1,2020-01-31,anamnees,7,naine,C50,viimane")
    assert [row["text"] for row in read(tmp_path, content.rstrip(b"\n"))] == ["esimene\r\nSEP\nteine", "viimane"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text_file(FIRST + '"lahtine jutumärk'), "line 2"),
        (text_file(FIRST + '"kinni" ja edasi'), "line 2"),
        (text_file(FIRST + "tekst,liigne"), "line 2: 9 fields where the header has 8"),
        (text_file(FIRST + "tekst", FIRST + "teine"), "line 3: record_id 'r1' stands already in records.csv, line 2"),
        (text_file(FIRST + '"  "'), "line 2: text is empty"),
        (text_file("r1,p1,31.01.2020,anamnees,7,naine,C50,tekst"), "line 2: date '31.01.2020' is not YYYY-MM-DD"),
        (text_file(), "no record in"),
        (b"", "line 1: no column"),
        (b"record_id,text\nr1,tekst\n", "line 1: no column age_group, date, diagnosis"),
        (text_file(FIRST + "s\u00fcda").replace("ü".encode(), b"\xfc"), "line 2: not utf-8"),
    ],
)
def test_a_fault_names_its_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    """A file with a fault is refused whole, with the place and the remedy."""
    with pytest.raises(SourceError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert "records.csv" in str(caught.value)


def test_columns_and_encoding_are_declared(tmp_path: Path) -> None:
    """A file with other column names and another encoding is read as declared."""
    content = text_file(FIRST + "süda").decode().replace("text", "sisu").encode("cp1257")
    assert read(tmp_path, content, columns={"text": "sisu"}, encoding="cp1257")[0]["text"] == "süda"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere says so."""
    with pytest.raises(SourceError, match=r"nowhere\.csv cannot be read: No such file"):
        read_records([tmp_path / "nowhere.csv"], RecordsSource(paths=["nowhere.csv"], format="csv"))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_other_formats_give_the_same_record(tmp_path: Path, form: str) -> None:
    """JSONL and Parquet files hold the same records as CSV."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = read(tmp_path, text_file(FIRST + "tekst"))
    record = dict(zip(HEADER.split(","), (FIRST + "tekst").split(","), strict=True))
    path = tmp_path / f"records.{form}"
    if form == "jsonl":
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([record]), path)
    assert read_records([path], RecordsSource(paths=[path.name], format=form)) == expected
