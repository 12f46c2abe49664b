"""Grounding: where in the note stands what the LLM answered, and how sure is that.

The published notebooks compiled the answer as a regular expression and labelled every place where it matched
(traps 12-16). Here answer and note are compared word by word, so that no character of an answer is special,
``op`` is never found inside ``kopsudest``, and ``tamoxifen`` is found as ``tamoxifeniga``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rapidfuzz.distance import Prefix

from estner_assets.ner.languages import Language
from estner_assets.ner.languages.matching import Match, Note, Rank, find, query
from estner_assets.ner.languages.words import fold
from estner_assets.ner.spans import Span


class GroundingStatus(StrEnum):
    """How an answered mention was found, from the surest to not at all."""

    EXACT = "exact"
    INFLECTED = "inflected"
    COMPOUND = "compound"
    FUZZY = "fuzzy"
    AMBIGUOUS = "ambiguous"
    """It could be several different words, and nothing in the answer says which."""
    ABSENT = "absent"


_STATUS = {
    Rank.LITERAL: GroundingStatus.EXACT,
    Rank.FOLDED: GroundingStatus.EXACT,
    Rank.INFLECTED: GroundingStatus.INFLECTED,
    Rank.COMPOUND: GroundingStatus.COMPOUND,
    Rank.FUZZY: GroundingStatus.FUZZY,
}
_SCORE = {Rank.LITERAL: 1.0, Rank.FOLDED: 0.98, Rank.INFLECTED: 0.9, Rank.COMPOUND: 0.8, Rank.FUZZY: 0.7}
_NOTHING = frozenset({"none", "null", "n/a"})


@dataclass(frozen=True, slots=True)
class Answered:
    """A label and the words that the LLM gave for it."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Grounding:
    """What became of one answered mention; ``score`` is in 0..1, the span is None where nothing was found."""

    answered: Answered
    status: GroundingStatus
    span: Span | None
    score: float


def ground(text: str, answered: Sequence[Answered], language: Language) -> list[Grounding]:
    """Return one grounding per answered mention, in the order of ``answered``.

    Mentions of several words choose first. A mention that stands in several places gets the first free place
    behind the mention answered before it, as long as the answer follows the text; else the first free one.
    """
    note = Note(text, language)
    places = [_matches(note, mention, language) for mention in answered]
    assignment = _Assignment(answered, places, language)
    for index in sorted(range(len(answered)), key=lambda index: -_most_words(places[index])):
        assignment.choose(index)
    return assignment.groundings()


def spans_of(groundings: Iterable[Grounding]) -> tuple[Span, ...]:
    """Return the spans found, sorted and without overlaps: the longest wins, then the first answered."""
    found = [grounding.span for grounding in groundings if grounding.span is not None]
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: span.start - span.end):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return tuple(sorted(kept))


def _matches(note: Note, mention: Answered, language: Language) -> list[Match]:
    if mention.text.strip().casefold() in _NOTHING:
        return []
    return find(note, query(mention.text), language)


def _most_words(matches: Sequence[Match]) -> int:
    return max((match.words for match in matches), default=0)


class _Assignment:
    """Which mention got which place, while they choose one after the other."""

    def __init__(self, answered: Sequence[Answered], places: list[list[Match]], language: Language) -> None:
        self.answered = answered
        self.places = places
        self.language = language
        self.chosen: dict[int, Match] = {}
        self.ambiguous: set[int] = set()
        labels = {mention.label for mention in answered}
        self.in_order = {label: self._follows_text(label) for label in labels}

    def _follows_text(self, label: str) -> bool:
        """Tell whether the mentions that stand in one place only are answered in the order of the text."""
        starts = [
            matches[0].start
            for mention, matches in zip(self.answered, self.places, strict=True)
            if mention.label == label and len(matches) == 1
        ]
        return starts == sorted(starts)

    def choose(self, index: int) -> None:
        matches = self.places[index]
        if not matches:
            return
        free = [match for match in matches if self._is_free(match)] or matches
        best = min(match.rank for match in free)
        equals = self._likeliest(index, [match for match in free if match.rank == best])
        if not equals:
            self.ambiguous.add(index)
            return
        behind = [match for match in equals if match.start >= self._cursor(index)]
        self.chosen[index] = (behind or equals)[0]

    def _is_free(self, match: Match) -> bool:
        return all(match.end <= other.start or other.end <= match.start for other in self.chosen.values())

    def _cursor(self, index: int) -> int:
        label = self.answered[index].label
        if not self.in_order[label]:
            return 0
        before = (i for i in range(index - 1, -1, -1) if self.answered[i].label == label and i in self.chosen)
        return next((self.chosen[i].end for i in before), 0)

    def _likeliest(self, index: int, equals: list[Match]) -> list[Match]:
        """Return the places of one and the same word, or nothing where it could be several words.

        Several words are no matter where the mention was answered once for each of them. Else the words that
        have more of the mention's beginning are preferred: ``koormustestil`` to ``koormuse``.
        """
        if equals[0].rank < Rank.INFLECTED or self._is_one_word(equals):
            return equals
        wanted = fold(self.answered[index].text)
        alike = [i for i, mention in enumerate(self.answered) if fold(mention.text) == wanted]
        if len([i for i in alike if i not in self.chosen]) >= len(equals):
            return equals
        shared = [Prefix.similarity(wanted, " ".join(match.folded)) for match in equals]
        closest = [match for match, length in zip(equals, shared, strict=True) if length == max(shared)]
        return closest if equals[0].rank is Rank.INFLECTED and self._is_one_word(closest) else []

    def _is_one_word(self, matches: Sequence[Match]) -> bool:
        first = matches[0].folded
        return all(
            len(first) == len(match.folded) and all(map(self.language.same_word, first, match.folded))
            for match in matches[1:]
        )

    def groundings(self) -> list[Grounding]:
        return [self._grounding(index, mention) for index, mention in enumerate(self.answered)]

    def _grounding(self, index: int, mention: Answered) -> Grounding:
        if index in self.ambiguous:
            return Grounding(mention, GroundingStatus.AMBIGUOUS, None, 0.0)
        match = self.chosen.get(index)
        if match is None:
            return Grounding(mention, GroundingStatus.ABSENT, None, 0.0)
        span = Span(match.start, match.end, mention.label)
        return Grounding(mention, _STATUS[match.rank], span, round(_SCORE[match.rank] * match.similarity, 3))
