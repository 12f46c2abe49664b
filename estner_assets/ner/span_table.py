"""The spans of many annotators of the same notes as columns of numbers; no order of the input shows in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from estner_assets.ner.spans import Document

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int16]

MISSING = -1
"""The code of what an annotator did not annotate, which is not the same as OUTSIDE."""

OUTSIDE = 0
"""The code of what an annotator saw and left unmarked; a label's code is 1 + its place in the labels."""


@dataclass(frozen=True)
class SpanTable:
    """One row per span, sorted by annotator and start.

    All notes lie on one axis of characters, in the order of their ids: note ``n`` takes ``offsets[n]`` up to
    ``offsets[n + 1]``. ``annotated`` is (annotators, notes); ``annotator``, ``start``, ``end`` and ``code`` are
    (spans,), positions being those of the axis.
    """

    annotators: tuple[str, ...]
    note_ids: tuple[str, ...]
    texts: tuple[str, ...]
    annotated: Flags
    offsets: Ints
    annotator: Ints
    start: Ints
    end: Ints
    code: Ints

    def note_at(self, position: Ints) -> Ints:
        """Return the note that holds each character of the axis."""
        notes: Ints = np.searchsorted(self.offsets, position, side="right") - 1
        return notes


@dataclass(frozen=True)
class Ratings:
    """What every annotator said of every unit.

    ``codes`` is (annotators, units); ``start`` and ``end`` are (units,), the unit's characters on the table's
    axis; ``count`` (units,) is how many equal units the column stands for.
    """

    codes: Codes
    start: Ints
    end: Ints
    count: Ints


def span_table(annotations: Mapping[str, Sequence[Document]], labels: Sequence[str]) -> SpanTable:
    """Return the spans of ``labels`` by annotator; notes are matched by id.

    Raises ``ValueError`` for an id that one annotator has twice or that stands for two texts, and for spans of
    one annotator that overlap or lie outside their text.
    """
    texts = _texts(annotations)
    annotators, note_ids = tuple(sorted(annotations)), tuple(sorted(texts))
    place = {note_id: index for index, note_id in enumerate(note_ids)}
    codes = {label: 1 + index for index, label in enumerate(labels)}
    annotated = np.zeros((len(annotators), len(note_ids)), dtype=np.bool_)
    rows: list[tuple[int, int, int, int, int]] = []
    for index, annotator in enumerate(annotators):
        for document in annotations[annotator]:
            note = place[document.document_id]
            annotated[index, note] = True
            rows += [(index, note, s.start, s.end, codes[s.label]) for s in document.spans if s.label in codes]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
    columns = columns[np.lexsort(columns.T[[3, 2, 1, 0]])]
    sizes = np.array([len(texts[note_id]) for note_id in note_ids], dtype=np.int64)
    _check_ranges(columns, sizes, annotators, note_ids)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
    annotator_column, note_column, start, end, code = columns.T
    return SpanTable(
        annotators=annotators,
        note_ids=note_ids,
        texts=tuple(texts[note_id] for note_id in note_ids),
        annotated=annotated,
        offsets=offsets,
        annotator=annotator_column,
        start=offsets[note_column] + start,
        end=offsets[note_column] + end,
        code=code,
    )


def character_ratings(table: SpanTable) -> Ratings:
    """Return one unit per run of characters over which no annotator changes the label; linear in the spans."""
    edges = np.unique(np.concatenate([table.offsets, table.start, table.end]))
    starts = edges[:-1]
    # A span adds its code where it begins and takes it away where it ends, so that running sums are the codes.
    change = np.zeros((len(table.annotators), len(edges)), dtype=np.int16)
    change[table.annotator, np.searchsorted(edges, table.start)] += table.code.astype(np.int16)
    change[table.annotator, np.searchsorted(edges, table.end)] -= table.code.astype(np.int16)
    codes = np.cumsum(change[:, :-1], axis=1, dtype=np.int16)
    codes[~table.annotated[:, table.note_at(starts)]] = MISSING
    return Ratings(codes, starts, edges[1:], np.diff(edges))


def span_ratings(table: SpanTable) -> Ratings:
    """Return one unit per distinct range of characters that anyone marked; other ranges are OUTSIDE."""
    ranges, unit = np.unique(np.stack([table.start, table.end], axis=1), axis=0, return_inverse=True)
    codes = np.full((len(table.annotators), len(ranges)), OUTSIDE, dtype=np.int16)
    codes[~table.annotated[:, table.note_at(ranges[:, 0])]] = MISSING
    codes[table.annotator, unit.reshape(-1)] = table.code
    return Ratings(codes, ranges[:, 0], ranges[:, 1], np.ones(len(ranges), dtype=np.int64))


def _texts(annotations: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for documents in annotations.values():
        ids = [document.document_id for document in documents]
        if len(set(ids)) != len(ids):
            twice = sorted({note_id for note_id in ids if ids.count(note_id) > 1})
            raise ValueError(f"document ids given twice: {', '.join(twice[:5])}; give every annotated note once")
        for document in documents:
            if texts.setdefault(document.document_id, document.text) != document.text:
                raise ValueError(
                    f"document {document.document_id!r} has two texts: annotate the same stored text on all sides"
                )
    return texts


def _check_ranges(columns: Ints, sizes: Ints, annotators: Sequence[str], note_ids: Sequence[str]) -> None:
    annotator, note, start, end, _ = columns.T
    wrong = (start < 0) | (end <= start) | (end > sizes[note])
    same = (annotator[1:] == annotator[:-1]) & (note[1:] == note[:-1])
    wrong[1:] |= same & (start[1:] < end[:-1])
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"span {start[first]}-{end[first]} of {annotators[annotator[first]]!r} in document "
            f"{note_ids[note[first]]!r} overlaps another or lies outside the text: pass the spans through check_spans"
        )
