"""Finding the words of a mention among the words of a note, each in whichever form it stands there."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from estner_assets.ner.languages import Language
from estner_assets.ner.languages.misspelling import similarity
from estner_assets.ner.languages.words import Word, coordinates, words


class Rank(IntEnum):
    """How a mention stands in the note; a smaller rank is surer."""

    LITERAL = 0
    FOLDED = 1
    INFLECTED = 2
    COMPOUND = 3
    FUZZY = 4


@dataclass(frozen=True, slots=True)
class Match:
    """A place of a note where a mention may stand; ``similarity`` is below 1 only for misspellings."""

    start: int
    end: int
    rank: Rank
    folded: tuple[str, ...]
    similarity: float = 1.0

    @property
    def words(self) -> int:
        return len(self.folded)


@dataclass(frozen=True, slots=True)
class Query:
    """A mention as it is looked for: without outer punctuation, as words, and what stands between them."""

    literal: str
    words: tuple[str, ...]
    gaps: tuple[str, ...]


_WORD_GAP = re.compile(r"[\s\-\u2010\u2011/]*")
_MARK = re.compile("[-+]")
_SPACE = re.compile(r"\s+")
_SHORTEST_TAIL = 3


class Note:
    """A text, its words, and the places of the words that can be part of something else."""

    def __init__(self, text: str, language: Language) -> None:
        self.text = text
        self.words = words(text)
        self.coordinates = coordinates(text, self.words)
        self.by_letter: dict[str, list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for index, word in enumerate(self.words):
            self.by_letter.setdefault(word.folded[0], []).append(index)
            for stem in language.stems(word.folded):
                self.by_stem.setdefault(stem, []).append(index)
        self.marked = [index for index, word in enumerate(self.words) if _MARK.search(word.folded)]

    def starts(self, wanted: Sequence[str], language: Language) -> set[int]:
        """Return where a mention can start: at a form of its first word, or at a compound with it."""
        found = {index for stem in language.stems(wanted[0]) for index in self.by_stem.get(stem, ())}
        if len(wanted) == 1:
            found.update(self.by_letter.get(wanted[0][0], ()), self.marked)
        return found

    def gaps_fit(self, first: int, gaps: Sequence[str]) -> bool:
        """Tell whether nothing but white space or what the mention itself has stands between the words."""
        for index, gap in enumerate(gaps, first):
            between = self.text[self.words[index].end : self.words[index + 1].start]
            if not _WORD_GAP.fullmatch(between) and _SPACE.sub("", between) != _SPACE.sub("", gap):
                return False
        return True


def query(text: str) -> Query:
    """Return the mention to look for; without words where it is empty or all punctuation."""
    found = words(text)
    gaps = tuple(text[one.end : other.start] for one, other in pairwise(found))
    literal = text[found[0].start : found[-1].end] if found else ""
    return Query(literal, tuple(word.folded for word in found), gaps)


def find(note: Note, wanted: Query, language: Language) -> list[Match]:
    """Return every place where the mention may stand, by position; misspelled only if there is no other."""
    if not wanted.words:
        return []
    places = {(match.start, match.end): match for match in _inflected(note, wanted, language)}
    others = [*_coordinated(note, wanted, language), *([] if places else _joined(note, wanted, language))]
    for match in others:
        places.setdefault((match.start, match.end), match)
    found = sorted(places.values(), key=lambda match: (match.start, match.end))
    return found or _closest(list(_misspelled(note, wanted, language)))


def _inflected(note: Note, wanted: Query, language: Language) -> Iterator[Match]:
    """Word for word: as it stands, in another form, or as the head of a compound."""
    length = len(wanted.words)
    for first in note.starts(wanted.words, language):
        if first + length > len(note.words):
            continue
        here = note.words[first : first + length]
        rank = _rank(wanted.words, here, language)
        if rank is not None and note.gaps_fit(first, wanted.gaps):
            yield _match(note, wanted, here, rank)


def _match(note: Note, wanted: Query, here: Sequence[Word], rank: Rank, similarity: float = 1.0) -> Match:
    start, end = here[0].start, here[-1].end
    if rank is Rank.FOLDED and note.text[start:end] == wanted.literal:
        rank = Rank.LITERAL
    return Match(start, end, rank, tuple(word.folded for word in here), similarity)


def _rank(wanted: Sequence[str], here: Sequence[Word], language: Language) -> Rank | None:
    worst = Rank.FOLDED
    for place, (answered, word) in enumerate(zip(wanted, here, strict=True), 1):
        rank = _word_rank(answered, word.folded, place == len(wanted), language)
        if rank is None:
            return None
        worst = max(worst, rank)
    return worst


def _word_rank(answered: str, word: str, is_last: bool, language: Language) -> Rank | None:
    if answered == word:
        return Rank.FOLDED
    if language.same_word(answered, word):
        return Rank.INFLECTED
    if is_last and (language.compound_head(answered, word) or _is_marked_part(answered, word, language)):
        return Rank.COMPOUND
    return None


def _is_marked_part(answered: str, word: str, language: Language) -> bool:
    """``EKG`` in ``koormus-EKG``, both drugs in ``perindopriil+amlodipiin``."""
    _, mark, last = word.replace("+", "-").rpartition("-")
    return bool(mark) and bool(last) and language.same_word(answered, last)


def _coordinated(note: Note, wanted: Query, language: Language) -> Iterator[Match]:
    """``keemiaravi`` in ``keemia- ja kiiritusravi``: the hyphen stands for the tail of the last member."""
    whole = "".join(wanted.words)
    for coordinate in note.coordinates:
        word = note.words[coordinate.index]
        tail = whole.removeprefix(word.folded)
        if _SHORTEST_TAIL <= len(tail) < len(whole) and carries(coordinate.carrier, tail, language):
            yield Match(word.start, coordinate.end, Rank.COMPOUND, (whole,))


def carries(carrier: str, tail: str, language: Language) -> bool:
    """Tell whether a word ends in some form of ``tail``."""
    at = carrier.find(tail[:_SHORTEST_TAIL], 1)
    while at > 0:
        if language.same_word(tail, carrier[at:]):
            return True
        at = carrier.find(tail[:_SHORTEST_TAIL], at + 1)
    return False


def _joined(note: Note, wanted: Query, language: Language) -> Iterator[Match]:
    """Written solid here and in two words there: ``maksa biopsia``, ``maksabiopsiat``."""
    whole = "".join(wanted.words)
    for length in (len(wanted.words) - 1, len(wanted.words) + 1):
        for first in note.by_letter.get(whole[0], ()):
            here = note.words[first : first + length]
            if len(here) != length or not here or not note.gaps_fit(first, ("",) * (length - 1)):
                continue
            if language.same_word(whole, "".join(word.folded for word in here)):
                yield _match(note, wanted, here, Rank.INFLECTED)


def _misspelled(note: Note, wanted: Query, language: Language) -> Iterator[Match]:
    """At most one word in six letters wrong, and every other word of the mention right."""
    length = len(wanted.words)
    for first in range(len(note.words) - length + 1):
        here = note.words[first : first + length]
        pairs = zip(wanted.words, here, strict=True)
        alike = min(similarity(answered, word.folded, language) for answered, word in pairs)
        if alike > 0 and note.gaps_fit(first, wanted.gaps):
            yield _match(note, wanted, here, Rank.FUZZY, alike)


def _closest(matches: list[Match]) -> list[Match]:
    best = max((match.similarity for match in matches), default=0.0)
    return [match for match in matches if match.similarity == best]
