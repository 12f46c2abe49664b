"""Reads gold notes in doccano's JSONL: ``{"id", "text", "label": [[start, end, label], …]}`` a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estner_assets.ner.spans import Span, SpanError, check_spans
from estner_assets.resources.records import SourceError, check_text, json_lines, parse_date, text_hash
from estner_assets.tables import Row

_OPTIONAL = ("patient_id", "genre", "age_group", "sex", "diagnosis")


@dataclass(frozen=True, slots=True)
class AnnotatedText:
    """A line of the file: the note and the spans in it."""

    document: Row
    spans: tuple[Span, ...]


def read_doccano(paths: Sequence[Path], labels: Sequence[str]) -> list[AnnotatedText]:
    """Return all notes of all files, checked; raise ``SourceError`` with file and line of the first fault."""
    seen: dict[str, str] = {}
    found: list[AnnotatedText] = []
    for path in paths:
        for line, raw in json_lines(path, "utf-8"):
            where = f"{path}, line {line}"
            one = _annotated_text(raw, labels, where)
            key = one.document["document_id"]
            if key in seen:
                raise SourceError(f"{where}: id {key!r} stands already in {seen[key]}")
            seen[key] = where
            found.append(one)
    if not found:
        raise SourceError(f"no annotated note in {', '.join(map(str, paths))}")
    return found


def _annotated_text(raw: Mapping[str, Any], labels: Sequence[str], where: str) -> AnnotatedText:
    text, key = raw.get("text"), raw.get("id")
    if not isinstance(text, str) or not text.strip():
        raise SourceError(f"{where}: `text` is empty or no string")
    check_text(text, where)
    if key is None or not str(key).strip():
        raise SourceError(f"{where}: `id` is missing")
    document = {
        "document_id": str(key),
        "date": parse_date(raw["date"], where) if raw.get("date") else None,
        "text": text,
        "text_sha256": text_hash(text),
        **{name: str(raw[name]) if raw.get(name) is not None else None for name in _OPTIONAL},
    }
    return AnnotatedText(document, _spans(raw, text, labels, where))


def _spans(raw: Mapping[str, Any], text: str, labels: Sequence[str], where: str) -> tuple[Span, ...]:
    triples = raw.get("label")
    if not isinstance(triples, list):
        raise SourceError(f"{where}: `label` must be a list of [start, end, label]; an empty list for no entity")
    spans: list[Span] = []
    for triple in triples:
        match triple:
            case [int(start), int(end), str(label)]:
                spans.append(Span(start, end, label))
            case _:
                raise SourceError(f"{where}: {triple!r} is not [start, end, label]")
    try:
        return check_spans(text, spans, labels)
    except SpanError as error:
        raise SourceError(f"{where}: {error}") from error
