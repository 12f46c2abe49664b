"""What the character-based tagger sees of a word: its letters, its casing and, if it is frequent, itself."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from estner_assets.ner.tokens import tokenize

PADDING, UNKNOWN, WORD_START, WORD_END = range(4)
SPECIAL_CHARACTERS = 4
UNKNOWN_WORD = 1

HEAD_CHARACTERS, TAIL_CHARACTERS = 8, 16
"""Of a longer word the middle is left out: in Estonian the end tells most, then the beginning."""


class Casing(IntEnum):
    """How a word is written; the letters themselves are read in lower case."""

    PADDING = 0
    LOWER = 1
    UPPER = 2
    TITLE = 3
    MIXED = 4
    NUMBER = 5
    PUNCTUATION = 6


def casing(word: str) -> Casing:
    """Return the word's casing class. A single capital is a title, for it says nothing of the rest."""
    if not any(character.isalpha() for character in word):
        return Casing.NUMBER if any(character.isdigit() for character in word) else Casing.PUNCTUATION
    if word == word.lower():
        return Casing.LOWER
    if word[:1].isupper() and word[1:] == word[1:].lower():
        return Casing.TITLE
    return Casing.UPPER if word == word.upper() else Casing.MIXED


def normal_form(word: str) -> str:
    """Return the word in lower case with every digit a 0, so that ``20`` and ``50`` are one word."""
    return "".join("0" if character.isdigit() else character for character in word.lower())


def words_of(text: str) -> list[str]:
    """Return the tokens' strings."""
    return [text[token.start : token.end] for token in tokenize(text)]


@dataclass(frozen=True)
class Vocabulary:
    """Frequent words and all characters of the training texts, sorted; ids follow the special ones."""

    words: tuple[str, ...]
    characters: tuple[str, ...]

    @classmethod
    def learn(cls, texts: Iterable[Sequence[str]], min_count: int) -> "Vocabulary":
        """Return the tokenised texts' vocabulary; words rarer than ``min_count`` keep their letters only."""
        counts = Counter(normal_form(word) for words in texts for word in words)
        frequent = tuple(sorted(word for word, count in counts.items() if count >= min_count))
        return cls(frequent, tuple(sorted({character for word in counts for character in word})))


@dataclass(frozen=True)
class Batch:
    """Texts as tensors: ``words``, ``casings`` and ``rows`` (texts, steps) int64, ``mask`` the same in bool.

    ``letters`` is (distinct words, characters) int64: each distinct word is read once, and ``rows`` says
    where.
    """

    words: Tensor
    casings: Tensor
    rows: Tensor
    letters: Tensor
    mask: Tensor


class Encoder:
    """Tokenised texts to tensors, by a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = {word: index + UNKNOWN_WORD + 1 for index, word in enumerate(vocabulary.words)}
        self._characters = {
            character: index + SPECIAL_CHARACTERS for index, character in enumerate(vocabulary.characters)
        }

    def encode(self, texts: Sequence[Sequence[str]]) -> Batch:
        """Return the batch of texts that have at least one token each."""
        forms = [[normal_form(word) for word in words] for words in texts]
        distinct = {form: row for row, form in enumerate(dict.fromkeys(f for words in forms for f in words))}
        return Batch(
            words=_padded([[self._words.get(form, UNKNOWN_WORD) for form in words] for words in forms]),
            casings=_padded([[int(casing(word)) for word in words] for words in texts]),
            rows=_padded([[distinct[form] for form in words] for words in forms]),
            letters=_padded([self._letters(form) for form in distinct]),
            mask=_padded([[1] * len(words) for words in texts]).bool(),
        )

    def _letters(self, form: str) -> list[int]:
        if len(form) > HEAD_CHARACTERS + TAIL_CHARACTERS:
            form = form[:HEAD_CHARACTERS] + form[-TAIL_CHARACTERS:]
        return [WORD_START, *(self._characters.get(character, UNKNOWN) for character in form), WORD_END]


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
