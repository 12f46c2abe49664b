"""What many annotators may have meant: their spans, put together where they overlap, one vote per candidate."""

from dataclasses import dataclass

import numpy as np

from estner_assets.ner.span_table import Codes, Flags, Floats, Ints, SpanTable, span_ratings

VOTE_TIE = 0.25
"""A difference of less than about this part of one vote is a tie: nearly equal copies share a little more than
one vote, and that must not decide what is even without them."""

WORTH_TIE = 1e-9
"""The same where votes differ in worth, so that only the last bits of sums are to be ignored."""


@dataclass(frozen=True)
class Mentions:
    """The distinct labelled spans, sorted by label and start, of annotators that all differ.

    ``start``, ``end``, ``label`` (its place in the labels) and ``note`` are (spans,), on the table's axis.
    ``marked`` is (annotators, spans), ``annotated`` (annotators, notes). ``members`` are, for each row, the
    places in the table's annotators of those with exactly this output.
    """

    start: Ints
    end: Ints
    label: Ints
    note: Ints
    marked: Flags
    annotated: Flags
    members: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Candidates:
    """Spans of one label that overlap, as one candidate each; the boundaries are those of span ``best``.

    ``marked`` is (annotators, candidates): who marked any span of the candidate, ``exact`` who marked the best.
    ``boundary_share`` (candidates,) is the best span's part in the votes of all who marked the candidate.
    """

    best: Ints
    marked: Flags
    exact: Flags
    boundary_share: Floats


def mentions_of(table: SpanTable, labels: int, merge: bool) -> Mentions:
    """Return the distinct labelled spans; with ``merge``, annotators of equal notes and spans become one row."""
    ratings = span_ratings(table)
    members = _members(table, ratings.codes, merge)
    chosen = np.array([same[0] for same in members], dtype=np.int64)
    of_label = ratings.codes[chosen][None] == np.arange(1, labels + 1)[:, None, None]
    label, span = np.nonzero(of_label.any(axis=1))
    return Mentions(
        start=ratings.start[span],
        end=ratings.end[span],
        label=label,
        note=table.note_at(ratings.start[span]),
        marked=of_label[label, :, span].T,
        annotated=table.annotated[chosen],
        members=members,
    )


def candidates_of(mentions: Mentions, worth: Floats, tie: float) -> Candidates:
    """Group the spans around those with the most votes; ``worth`` (annotators, spans) is what every vote counts.

    The span whose votes are worth most takes the spans of its label that overlap it, and so on with what is
    left. So a chain of overlaps is cut, every span votes once, and the boundaries are always those that someone
    marked. Of spans that differ by less than ``tie`` the longer is taken, then the first.
    """
    support = np.where(mentions.marked, worth, 0.0).sum(axis=0)
    keys = (mentions.start, mentions.start - mentions.end, -(support / tie).round())
    # Labels lie one after the other on a longer axis, so that spans of different labels do not meet.
    shift = mentions.label * int(mentions.end.max(initial=0))
    peak = peaks(mentions.start + shift, mentions.end + shift, np.lexsort(keys))
    best, candidate = np.unique(peak, return_inverse=True)
    marked = np.zeros((len(mentions.marked), len(best)), dtype=np.bool_)
    annotator, span = np.nonzero(mentions.marked)
    marked[annotator, candidate[span]] = True
    everyone = np.where(marked, worth[:, best], 0.0).sum(axis=0)
    share = np.divide(support[best], everyone, out=np.ones(len(best)), where=everyone > 0)
    return Candidates(best, marked, mentions.marked[:, best], share)


def peaks(start: Ints, end: Ints, order: Ints) -> Ints:
    """Return for each interval the one that takes it: itself, or the first in ``order`` that overlaps it.

    Those that take themselves never overlap. ``order`` lists the intervals from the best on; intervals are
    half-open. Every round finds the best left in every run of overlapping intervals.
    """
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    run = _runs(start, end)
    peak = np.full(len(start), -1, dtype=np.int64)
    left = np.arange(len(start))
    while len(left):
        left = left[np.lexsort((rank[left], run[left]))]
        first = np.concatenate([[True], run[left][1:] != run[left][:-1]])
        best = left[first][np.cumsum(first) - 1]
        taken = (start[left] < end[best]) & (start[best] < end[left])
        peak[left[taken]] = best[taken]
        left = left[~taken]
    return peak


def _runs(start: Ints, end: Ints) -> Ints:
    """Number the runs of intervals that hang together by overlaps."""
    order = np.lexsort((end, start))
    reached = np.maximum.accumulate(end[order])
    run = np.zeros(len(order), dtype=np.int64)
    run[order[1:]] = np.cumsum(start[order][1:] >= reached[:-1])
    return run


def _members(table: SpanTable, codes: Codes, merge: bool) -> tuple[tuple[int, ...], ...]:
    """Group the annotators with equal notes and codes; sorted by content, so that names do not matter."""
    groups: dict[tuple[bytes, bytes, int], list[int]] = {}
    for index in range(len(table.annotators)):
        content = (table.annotated[index].tobytes(), codes[index].tobytes(), 0 if merge else index)
        groups.setdefault(content, []).append(index)
    return tuple(tuple(groups[content]) for content in sorted(groups))
