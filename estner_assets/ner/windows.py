"""Windows: a long note is asked about in overlapping parts, and the answers are put together again.

What a merge cannot know: a mention that was not found in its window has no place, so two such answers of
neighbouring windows count as one, wherever they were meant; and a text that stands several times in the note but
was answered for one window only may later be grounded at another of its places, because an answer is words and
not a position.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from estner_assets.ner.grounding import Answered, ground
from estner_assets.ner.languages import Language
from estner_assets.ner.parsing import Mention

OVERLAP_SHARE = 4
"""The overlap is at most a window's fourth part, so that every window moves on by half of one."""

_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"[.!?][\"')\]»”]*$")

Window = tuple[int, int]
"""Half-open characters of a note."""


def windows(text: str, window_words: int, overlap_words: int) -> list[Window]:
    """Return the windows in order: together they cover every character, neighbours share ``overlap_words``.

    Words are what white space keeps apart. A window ends at the end of a sentence where one lies in its last
    fourth part, else between two words; it never has more than ``window_words``. Linear in the text. Raises
    ``ValueError`` for an overlap above a fourth of the window.
    """
    if not 0 <= overlap_words * OVERLAP_SHARE <= window_words or window_words < 1:
        raise ValueError(f"an overlap of {overlap_words} words needs a window of {overlap_words * OVERLAP_SHARE}")
    starts, ends_sentence = _words(text)
    found: list[Window] = []
    first, last = 0, 0
    while last < len(starts) or not found:
        last = _last(first, window_words, ends_sentence)
        start = starts[first] if found else 0
        found.append((start, starts[last] if last < len(starts) else len(text)))
        first = last - overlap_words
    return found


def _words(text: str) -> tuple[list[int], list[bool]]:
    """Return where each word starts, and whether a sentence ends with it."""
    matches = list(_WORD.finditer(text))
    ends: list[bool] = []
    for match, after in zip_longest(matches, matches[1:]):
        is_line_end = after is None or "\n" in text[match.end() : after.start()]
        starts_anew = after is None or not after[0][0].islower()
        ends.append(is_line_end or (starts_anew and bool(_SENTENCE_END.search(match[0]))))
    return [match.start() for match in matches], ends


def _last(first: int, window_words: int, ends_sentence: Sequence[bool]) -> int:
    """Return the index of the word behind the window that starts with the word ``first``."""
    furthest = first + window_words
    if furthest >= len(ends_sentence):
        return len(ends_sentence)
    nearest = furthest - window_words // OVERLAP_SHARE
    return next((end for end in range(furthest, nearest, -1) if ends_sentence[end - 1]), furthest)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A mention with the characters of the note where it stands; an empty range where it was not found."""

    mention: Mention
    start: int
    end: int

    @property
    def is_found(self) -> bool:
        return self.end > self.start

    def overlaps(self, other: "_Placed") -> bool:
        same_label = self.mention.label == other.mention.label
        return same_label and self.start < other.end and other.start < self.end


def merge_windows(
    text: str, ranges: Sequence[Window], answers: Sequence[Sequence[Mention]], language: Language
) -> tuple[Mention, ...]:
    """Return the mentions of the whole note, in the order of the text, from the answers about its windows.

    Each window's mentions are looked up in the window, so that a mention that stands in the overlap and was
    answered twice is one, and a text is repeated as often as different places of it were answered. Of two that
    overlap, as at the edge of a window that cuts a mention short, the longer stays. A text that its window does
    not hold is left out where other windows found theirs. One window's answer stays as it is.
    """
    if len(ranges) == 1:
        return tuple(answers[0])
    kept: list[_Placed] = []
    before: Counter[tuple[str, str]] = Counter()
    end_before = 0
    for (start, end), answer in zip(ranges, answers, strict=True):
        placed = _placed(text, (start, end), answer, language)
        _add_found([one for one in placed if one.is_found], kept)
        lost = [one for one in placed if not one.is_found]
        kept += _new(lost, before if start < end_before else Counter())
        before, end_before = Counter(map(_name, lost)), end
    named = {_name(one) for one in kept if one.is_found}
    # grounding the whole note would put it on a place that this window does not have
    ordered = (one for one in sorted(kept, key=lambda one: one.start) if one.is_found or _name(one) not in named)
    return tuple(one.mention for one in ordered)


def _placed(text: str, window: Window, answer: Sequence[Mention], language: Language) -> list[_Placed]:
    start, end = window
    found = ground(text[start:end], [Answered(one.label, one.text) for one in answer], language)
    placed: list[_Placed] = []
    # what was not found stays behind the mention that was answered before it
    behind = start
    for mention, grounding in zip(answer, found, strict=True):
        span = grounding.span
        one = _Placed(mention, start + span.start, start + span.end) if span else _Placed(mention, behind, behind)
        behind = one.start
        placed.append(one)
    return placed


def _add_found(found: Sequence[_Placed], kept: list[_Placed]) -> None:
    for one in found:
        rivals = [other for other in kept if other.overlaps(one)]
        if all(one.end - one.start > other.end - other.start for other in rivals):
            kept[:] = [*(other for other in kept if other not in rivals), one]


def _new(lost: Sequence[_Placed], before: Counter[tuple[str, str]]) -> list[_Placed]:
    """Return the mentions beyond those that the window before had as well."""
    seen: Counter[tuple[str, str]] = Counter()
    new: list[_Placed] = []
    for one in lost:
        seen[_name(one)] += 1
        if seen[_name(one)] > before[_name(one)]:
            new.append(one)
    return new


def _name(one: _Placed) -> tuple[str, str]:
    return one.mention.label, one.mention.text.casefold()
