"""Which words of a note the mode ``tag_words`` asks about, and how the answers become spans."""

import re
from collections.abc import Mapping, Sequence

from estner_assets.ner.parsing import OTHER, Mention
from estner_assets.ner.spans import Span

# A hyphen joins what it stands between and stays with what it follows: `herceptin-ravi`, `keemia- ja ...`
_WORD = re.compile(r"(?<!\w)[^\W\d_]\w*(?:[-'’]\w+)*-?")

_words = re.compile(r"\w+").findall
FUNCTION_WORDS = frozenset(
    _words("""
    aasta aastal aastat aga ainult alates all alla edasi eelnevalt ees ega ehk ei eile enam enne ent et
    ette ga hetkel hiljem hommikul ja jah jne juba järel järgi järgmine ka kaasa kas kaudu kelle kes
    kohal kohta koos kord korda korral kui kuid kuna kuni kus kuu kuud käis küll la läbi ma me mida miks
    millal mille mis mitte mõne mõni nad neid nende ni ning nn nt nädala nädalat nüüd ole oleks olema oli
    olid olnud oma on peal peale pole poolt praegu päeva päevas pärast saab sai samas samuti seda see
    seejärel sel selle seni seoses sest siin siis sisse ta tal talle teda tema temal tuleb tuli tundi
    täna vahel vaid vastu veel väga välja või ära õhtul üks üldse üle
    """)
)
"""Estonian words (in lower case) that no entity consists of; an entity of these alone would not be found."""

UNITS = frozenset(_words("cm g h iu kg kpl l lk mcg mg min ml mm mmhg mmol mol ng nr p pg sek tab tbl tk tl tü ug"))


def askable_words(note: str) -> list[tuple[int, int]]:
    """Return the ranges (characters) of the words worth asking about, in order.

    Numbers, punctuation, single letters, ``UNITS`` and ``FUNCTION_WORDS`` are ``other`` by rule, without a
    question.
    """
    return [
        match.span()
        for match in _WORD.finditer(note)
        if len(match[0].rstrip("-")) > 1 and match[0].lower() not in FUNCTION_WORDS | UNITS
    ]


def word_spans(note: str, labels: Mapping[tuple[int, int], str]) -> tuple[Span, ...]:
    """Return the spans of labelled words; words of one label that only blanks keep apart are one span.

    ``labels`` maps ranges of the note to a label or ``other``.
    """
    spans: list[Span] = []
    for (start, end), label in sorted(labels.items()):
        if label == OTHER:
            continue
        last = spans[-1] if spans else None
        if last and last.label == label and re.fullmatch(r"[ \t]+", note[last.end : start]):
            spans[-1] = Span(last.start, end, label)
        else:
            spans.append(Span(start, end, label))
    return tuple(spans)


def mentions_of(note: str, spans: Sequence[Span]) -> tuple[Mention, ...]:
    """Return the spans as mentions, so that both modes can be compared."""
    return tuple(Mention(span.label, span.text_in(note)) for span in spans)
