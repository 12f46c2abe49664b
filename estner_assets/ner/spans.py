"""Character spans of a text: the one truth that tokens, tags and scores are derived from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """A labelled half-open range of characters: ``text[start:end]`` is the mention.

    ``confidence`` is in 0..1; spans that a person or a rule made have 1.
    """

    start: int
    end: int
    label: str
    confidence: float = 1.0

    def text_in(self, text: str) -> str:
        """Return the mention's own characters."""
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its id and its spans, sorted by start and without overlaps."""

    document_id: str
    text: str
    spans: tuple[Span, ...] = ()


class SpanError(ValueError):
    """A span that cannot belong to its text."""


def check_spans(text: str, spans: Iterable[Span], labels: Sequence[str] | None = None) -> tuple[Span, ...]:
    """Return the spans sorted by start, or raise ``SpanError`` that names the first wrong one.

    Wrong is: outside the text, empty, white space at an edge, an unknown label, or an overlap.
    """
    ordered = tuple(sorted(spans))
    previous: Span | None = None
    for span in ordered:
        mention = _check_range(text, span)
        if labels is not None and span.label not in labels:
            raise SpanError(f"unknown label {span.label!r} at {span.start}; allowed: {', '.join(labels)}")
        if previous is not None and span.start < previous.end:
            raise SpanError(
                f"span {span.start}-{span.end} ({mention!r}) overlaps span {previous.start}-{previous.end} "
                f"({previous.text_in(text)!r}); keep one of them"
            )
        previous = span
    return ordered


def _check_range(text: str, span: Span) -> str:
    if not 0 <= span.start < span.end <= len(text):
        raise SpanError(
            f"span {span.start}-{span.end} ({span.label}) does not lie in its text of {len(text)} characters"
        )
    mention = span.text_in(text)
    if mention != mention.strip():
        raise SpanError(f"span {span.start}-{span.end} ({mention!r}) has white space at an edge")
    return mention
