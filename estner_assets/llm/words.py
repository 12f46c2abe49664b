"""Which words of a note the mode ``tag_words`` asks about, and how the answers become spans."""

import re
from collections.abc import Mapping, Sequence

from estner_assets.ner.languages import Language
from estner_assets.ner.parsing import OTHER, Mention
from estner_assets.ner.spans import Span

# A hyphen joins what it stands between and stays with what it follows: `herceptin-ravi`, `keemia- ja ...`
_WORD = re.compile(r"(?<!\w)[^\W\d_]\w*(?:[-'’]\w+)*-?")


def askable_words(note: str, language: Language) -> list[tuple[int, int]]:
    """Return the ranges (characters) of the words worth asking about, in order.

    Numbers, punctuation, single letters, and the language's units and function words are ``other`` by rule,
    without a question.
    """
    not_asked = language.function_words | language.units
    return [
        match.span()
        for match in _WORD.finditer(note)
        if len(match[0].rstrip("-")) > 1 and match[0].lower() not in not_asked
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
