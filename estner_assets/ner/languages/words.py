"""Words as morphology sees them: whole, with inner hyphens and digits, folded for comparison, offsets kept.

They are coarser than ``tokens``: a word takes in whole tokens, never a part of one. Only the copy that is
compared is folded, so that a change of length (``İ``, ligatures, soft hyphens) cannot move an offset.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from estner_assets.ner.tokens import JOINER, LETTER

_NUMBER = r"\d++(?:[.,:]\d++)*+"
# KT07.05.2019 and Enap10mg are two words each, B12 and HER2 one
_GLUED_NUMBER = r"(?<=[^\W\d_][^\W\d_])\d+(?:[.,:/]\d|(?:mg|mcg|g|ml|tk|x)\b)"
_RUN = rf"(?:{LETTER}|{_NUMBER})(?:{LETTER}|(?!{_GLUED_NUMBER}){_NUMBER})*+"
_WORD = re.compile(rf"{_RUN}(?:(?:{JOINER}|\+){_RUN})*+")
_FOLDED = str.maketrans({"\u00ad": None, "\u2010": "-", "\u2011": "-", "\u2019": "'", "\u02bc": "'"})

_AND = frozenset({"ja", "või", "ning", "ega", "ehk", "and", "or", "&"})
_BETWEEN_MEMBERS = _AND | {"," + word for word in _AND} | {",", "/"}
_HYPHENS = "-\u2010\u2011"


@dataclass(frozen=True, slots=True)
class Word:
    """Half-open characters of a text and their folded form (lower case, plain hyphens and apostrophes)."""

    start: int
    end: int
    folded: str


def fold(text: str) -> str:
    """Return the text as it is compared: case-folded, composed, without soft hyphens."""
    return unicodedata.normalize("NFC", text.casefold().translate(_FOLDED))


def words(text: str) -> list[Word]:
    """Return the words in order. Linear in the text.

    A full stop between letters ends a word (``raviga.Allergia``), one between digits does not.
    """
    return [Word(match.start(), match.end(), fold(match.group())) for match in _WORD.finditer(text)]


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A shortened word and the word that carries its tail: ``keemia-`` and ``kiiritusravi``.

    ``index`` is the shortened word's place in the list of words, ``end`` lies behind its hyphen.
    """

    index: int
    end: int
    carrier: str


def coordinates(text: str, found: Sequence[Word]) -> list[Coordinate]:
    """Return the shortened words of ``a-, b- ja cd``; ``found`` are the words of the text. Linear."""
    result: list[Coordinate] = []
    carrier = ""
    for index in range(len(found) - 2, -1, -1):
        end = found[index].end
        if text[end : end + 1] not in _HYPHENS or end >= len(text):
            carrier = ""
            continue
        after = _after_conjunction(text, found, index)
        if after is None:
            carrier = ""
            continue
        # the last word carries the tail for every shortened word before it
        carrier = carrier if carrier and after == index + 1 else found[after].folded
        result.append(Coordinate(index, end + 1, carrier))
    return result[::-1]


def _after_conjunction(text: str, found: Sequence[Word], index: int) -> int | None:
    """Return the place of the next member behind ``, / ja``, or None where the hyphen is only a dash."""
    gap_start = found[index].end + 1
    for after in (index + 1, index + 2):
        if after < len(found):
            gap = "".join(text[gap_start : found[after].start].split())
            if gap.casefold() in _BETWEEN_MEMBERS:
                return after
    return None
