"""Reads local notes from files. A wrong row stops the reading with its file, its line and what is wrong."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from estner_assets.settings import RECORD_COLUMNS, RecordsSource
from estner_assets.tables import Row


class SourceError(ValueError):
    """A file of records or of gold notes that cannot be used as it is."""


def read_records(paths: Sequence[Path], source: RecordsSource) -> list[Row]:
    """Return all records of all files, checked; raise ``SourceError`` with file and line of the first fault."""
    seen: dict[str, str] = {}
    rows: list[Row] = []
    for path in paths:
        for line, raw in _raw_rows(path, source):
            row = _record(raw, source.columns, f"{path}, line {line}")
            if row["record_id"] in seen:
                raise SourceError(
                    f"{path}, line {line}: record_id {row['record_id']!r} stands already in {seen[row['record_id']]}"
                )
            seen[row["record_id"]] = f"{path.name}, line {line}"
            rows.append(row)
    if not rows:
        raise SourceError(f"no record in {', '.join(map(str, paths))}")
    return rows


def check_text(text: str, where: str) -> str:
    """Return the text, or raise ``SourceError`` where it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: half a surrogate pair at character {error.start}; mend the file") from error
    return text


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(path: Path, encoding: str) -> str:
    """Return a file's text; raise ``SourceError`` where it cannot be read or is in another encoding."""
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check `paths` in the profile") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise SourceError(
            f"{path}, line {line}: not {encoding}; save the file as {encoding} or declare its encoding"
        ) from error


def parse_date(value: Any, where: str) -> date:
    """Return a date, which stands as YYYY-MM-DD."""
    try:
        return value if isinstance(value, date) else date.fromisoformat(str(value)[:10])
    except ValueError:
        raise SourceError(f"{where}: date {value!r} is not YYYY-MM-DD") from None


def _raw_rows(path: Path, source: RecordsSource) -> Iterator[tuple[int, Mapping[str, Any]]]:
    match source.format:
        case "csv":
            yield from _separated(path, source, ",")
        case "tsv":
            yield from _separated(path, source, "\t")
        case "jsonl":
            yield from json_lines(path, source.encoding)
        case "parquet":
            yield from _parquet(path)


def _separated(path: Path, source: RecordsSource, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = read_text(path, source.encoding)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    # newline="" leaves line breaks inside quoted fields as they are; strict refuses a stray quote (RFC 4180).
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(reader, None)
        _check_columns(header or [], source.columns, path)
        assert header is not None
        for values in _with_position(reader, path):
            start, fields = values
            if len(fields) != len(header):
                raise SourceError(f"{path}, line {start}: {len(fields)} fields where the header has {len(header)}")
            yield start, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num}: {error}; quote fields as RFC 4180 says") from error


def _with_position(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    while True:
        start = reader.line_num + 1
        fields = next(reader, None)
        if fields is None:
            return
        if fields:
            yield start, fields


def json_lines(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the line number and the object of each line that is not empty."""
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(value, dict):
            raise SourceError(f"{path}, line {number}: not a JSON object")
        yield number, value


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)  # type: ignore[no-untyped-call]
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
    yield from enumerate(table.to_pylist(), start=1)


def _check_columns(header: Sequence[str], columns: Mapping[Any, str], path: Path) -> None:
    wanted = {columns.get(name, name) for name in RECORD_COLUMNS}
    missing = sorted(wanted - set(header))
    if missing:
        raise SourceError(
            f"{path}, line 1: no column {', '.join(missing)}; the file has {', '.join(header) or 'none'}. "
            "Map them under records.columns in the profile, as `text: name_in_your_file`; every record needs "
            f"{', '.join(RECORD_COLUMNS)}"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SourceError(f"{path}, line 1: column {', '.join(twice)} twice")


def _record(raw: Mapping[str, Any], columns: Mapping[Any, str], where: str) -> Row:
    row: Row = {}
    for name in RECORD_COLUMNS:
        column = columns.get(name, name)
        if column not in raw:
            raise SourceError(f"{where}: no column {column}; map it under records.columns in the profile")
        value = raw[column]
        if value is None or not str(value).strip():
            raise SourceError(f"{where}: {name} is empty; every record needs one")
        row[name] = value if name == "date" else check_text(str(value), where)
    row["date"] = parse_date(row["date"], where)
    row["text_sha256"] = text_hash(row["text"])
    return row
