"""Words of clinical text, which tags are put on. Spans stay characters; tokens are derived.

Boundaries are finer rather than coarser, because a mention can take several tokens but never a part of one:
the English Treebank rules glue ``raviga.Allergia`` into one token, and no mention that ends at ``raviga``
survives that.
"""

import re
from dataclasses import dataclass

LETTER = r"[^\W\d_][\u0300-\u036f\u00ad]*"
"""A letter with what may be written on it: combining marks, soft hyphen."""

JOINER = "[-\u2010\u2011'\u2019\u02bc]"
"""Hyphens and apostrophes: they hold a word together between two letters and are tokens elsewhere."""

TOKEN = re.compile(rf"(?:{LETTER})+(?:{JOINER}(?:{LETTER})+)*|\d+(?:[.,:]\d+)*|[^\s\w]|_")


@dataclass(frozen=True, slots=True)
class Token:
    """Half-open characters of a text, never empty, never with white space in it."""

    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the tokens in order; every character but white space is in exactly one. Linear in the text.

    ``herceptin-ravi`` and ``COVID'i`` are one token, ``keemia-`` is a word and a hyphen, ``raviga.Allergia``
    three tokens, ``5mg`` a number and a unit, ``RR140/90`` four, ``4,2`` and ``12.05.2019`` one.
    """
    return [Token(match.start(), match.end()) for match in TOKEN.finditer(text)]
