"""The rule-based annotator: a list of terms, found in whichever form they stand in a note."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from estner_assets.ner.languages import Language
from estner_assets.ner.languages.matching import Note, Query, query
from estner_assets.ner.languages.words import Word
from estner_assets.ner.spans import Span

_HEADER = ("label", "term")
_LONGEST_ABBREVIATION = 4
_SHORTEST_ROOT = 2
_SHORTEST_TAIL = 3
_LONGEST_TAIL = 40
_MOST_LETTERS_LOST = 2


@dataclass(frozen=True, slots=True)
class Term:
    """A name in its dictionary form and the label that it gets."""

    label: str
    text: str


class LexiconError(ValueError):
    """A term list that cannot be read; the message names file and line."""


@dataclass(frozen=True, slots=True)
class _Entry:
    label: str
    query: Query

    @property
    def words(self) -> tuple[str, ...]:
        return self.query.words

    @property
    def is_abbreviation(self) -> bool:
        return len(self.query.literal) <= _LONGEST_ABBREVIATION and self.query.literal.isupper()


class Lexicon:
    """Terms, indexed by the stems of their first word: a note costs the same however long the list is."""

    def __init__(self, terms: Iterable[Term], language: Language) -> None:
        self._language = language
        self._by_stem: dict[str, list[_Entry]] = {}
        self._by_root: dict[str, list[_Entry]] = {}
        self._longest_root = 0
        for term in terms:
            self._add(_Entry(term.label, query(term.text)))

    @classmethod
    def read(cls, path: Path, language: Language) -> "Lexicon":
        """Read UTF-8 TSV with the header ``label<tab>term``; raise ``LexiconError`` for a wrong line."""
        return cls(_read_terms(path), language)

    def annotate(self, text: str) -> tuple[Span, ...]:
        """Return the terms of a text as sorted spans without overlaps; the longest wins, then the first.

        Linear in the text: every word looks up its own stems and beginnings, whatever the number of terms.
        """
        note = Note(text, self._language)
        found = [*self._terms(note), *self._coordinated(note)]
        return _longest(found)

    def _add(self, entry: _Entry) -> None:
        if not entry.words:
            raise LexiconError("a term without any letter or digit cannot be found; remove it")
        first = entry.words[0]
        for stem in self._language.stems(first):
            self._by_stem.setdefault(stem, []).append(entry)
        if len(entry.words) == 1:
            root = _root(first)
            self._by_root.setdefault(root, []).append(entry)
            self._longest_root = max(self._longest_root, len(root))

    def _terms(self, note: Note) -> Iterator[Span]:
        for index, word in enumerate(note.words):
            for entry in self._starting_with(word.folded):
                here = note.words[index : index + len(entry.words)]
                if self._fits(entry, here, note) and note.gaps_fit(index, entry.query.gaps):
                    yield Span(here[0].start, here[-1].end, entry.label)
            for entry in self._heading(word.folded):
                if not entry.is_abbreviation or _cased_like_abbreviation(entry, word, note.text):
                    yield Span(word.start, word.end, entry.label)

    def _starting_with(self, word: str) -> Iterator[_Entry]:
        for stem in self._language.stems(word):
            yield from self._by_stem.get(stem, ())

    def _fits(self, entry: _Entry, here: Sequence[Word], note: Note) -> bool:
        if len(here) != len(entry.words):
            return False
        if entry.is_abbreviation and not _cased_like_abbreviation(entry, here[0], note.text):
            return False
        *most, last = zip(entry.words, (word.folded for word in here), strict=True)
        return all(self._is_form(*pair) for pair in most) and (
            # kõhu UH-uuringul; compounds with a single word are looked up by their beginning
            self._is_form(*last) or (bool(most) and self._language.compound_head(*last))
        )

    def _heading(self, word: str) -> Iterator[_Entry]:
        """Yield the terms that a compound starts with, or that are one of its hyphenated parts."""
        for end in range(_SHORTEST_ROOT, min(len(word), self._longest_root + 1)):
            for entry in self._by_root.get(word[:end], ()):
                if self._language.compound_head(entry.words[0], word):
                    yield entry
        parts = word.replace("+", "-").split("-")
        for part in parts[1:]:
            for entry in self._starting_with(part):
                if entry.words == (part,) or (not entry.is_abbreviation and self._is_form_of(entry, part)):
                    yield entry

    def _is_form_of(self, entry: _Entry, word: str) -> bool:
        return len(entry.words) == 1 and self._is_form(entry.words[0], word)

    def _is_form(self, term: str, word: str) -> bool:
        """Hardly any form is shorter than the dictionary's: ``koormus`` is none of ``koormustest``."""
        return len(word) >= len(term) - _MOST_LETTERS_LOST and self._language.same_word(term, word)

    def _coordinated(self, note: Note) -> Iterator[Span]:
        """Yield ``keemia-`` of ``keemia- ja kiiritusravi`` where ``keemiaravi`` is a term."""
        for coordinate in note.coordinates:
            word, carrier = note.words[coordinate.index], coordinate.carrier
            for at in range(max(1, len(carrier) - _LONGEST_TAIL), len(carrier) - _SHORTEST_TAIL + 1):
                whole = word.folded + carrier[at:]
                for entry in self._starting_with(whole):
                    if self._is_form_of(entry, whole):
                        yield Span(word.start, coordinate.end, entry.label)


def _root(word: str) -> str:
    """Return the beginning that every compound with the word shares; its last letters may change."""
    return word[: max(_SHORTEST_ROOT, len(word) - 2)]


def _cased_like_abbreviation(entry: _Entry, word: Word, text: str) -> bool:
    """``asal`` is no form of ``ASA``; in lower case an abbreviation stands alone or with a marked ending."""
    if entry.query.literal in text[word.start : word.end]:
        return True
    return entry.words[0] in re.split("[-'+]", word.folded)


def _longest(found: Iterable[Span]) -> tuple[Span, ...]:
    kept: list[Span] = []
    taken: set[int] = set()
    for span in sorted(dict.fromkeys(found), key=lambda span: (span.start - span.end, span.start)):
        if taken.isdisjoint(range(span.start, span.end)):
            kept.append(span)
            taken.update(range(span.start, span.end))
    return tuple(sorted(kept))


def _read_terms(path: Path) -> Iterator[Term]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or tuple(lines[0].split("\t")) != _HEADER:
        raise LexiconError(f"{path}, line 1: expected the header label<tab>term")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != len(_HEADER) or not all(fields):
            raise LexiconError(f"{path}, line {number}: expected a label, a tab and a term, found {line!r}")
        if not query(fields[1]).words:
            raise LexiconError(f"{path}, line {number}: a term without any letter or digit cannot be found; remove it")
        yield Term(*fields)
