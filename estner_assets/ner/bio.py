"""Spans to BIO tags (IOB2) of tokens and back."""

from collections.abc import Iterator, Sequence

from estner_assets.ner.spans import Span
from estner_assets.ner.tokens import Token

OUTSIDE = "O"


def label_names(entities: Sequence[str]) -> list[str]:
    """Return ``O, B-X, I-X, ...`` in the entities' order: the one label map, whatever a data set holds.

    Raises ``ValueError`` for an entity that is named twice.
    """
    if len(set(entities)) != len(entities):
        raise ValueError(f"an entity is named twice in {', '.join(entities)}; name each once")
    return [OUTSIDE, *(f"{prefix}-{entity}" for entity in entities for prefix in "BI")]


def to_bio(tokens: Sequence[Token], spans: Sequence[Span]) -> list[str]:
    """Return a tag per token: a token that overlaps a span takes its tag, the first such token ``B-``.

    Two spans that share a token: the earlier one has it. Linear in tokens and spans.
    """
    tags = [OUTSIDE] * len(tokens)
    index = 0
    for span in sorted(spans):
        while index < len(tokens) and tokens[index].end <= span.start:
            index += 1
        prefix = "B"
        while index < len(tokens) and tokens[index].start < span.end:
            tags[index] = f"{prefix}-{span.label}"
            prefix = "I"
            index += 1
    return tags


def from_bio(
    text: str, tokens: Sequence[Token], tags: Sequence[str], confidences: Sequence[float] | None = None
) -> tuple[Span, ...]:
    """Return the spans of the tags, from the first token's start to the last token's end.

    An ``I-`` that continues nothing starts a span, as in conlleval. A span's confidence is the lowest of its
    tokens': one wrong token makes a span wrong. Raises ``ValueError`` for unequal lengths, an unknown tag or
    tokens that do not lie in the text.
    """
    certain = [1.0] * len(tokens) if confidences is None else confidences
    if not len(tokens) == len(tags) == len(certain):
        raise ValueError(f"{len(tokens)} tokens, {len(tags)} tags, {len(certain)} confidences: give one per token")
    if tokens and tokens[-1].end > len(text):
        raise ValueError(f"token ends at {tokens[-1].end} in a text of {len(text)}: tokenise this very text")
    return tuple(
        Span(tokens[first].start, tokens[stop - 1].end, label, min(1.0, max(0.0, min(certain[first:stop]))))
        for first, stop, label in chunks(tags)
    )


def chunks(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield each chunk's first index, the index after its last and its label: conlleval's lenient reading."""
    first, current = 0, ""
    for index, tag in enumerate(tags):
        prefix, label = _parts(tag)
        if current and (prefix != "I" or label != current):
            yield first, index, current
            current = ""
        if label and not current:
            first, current = index, label
    if current:
        yield first, len(tags), current


def _parts(tag: str) -> tuple[str, str]:
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    if prefix not in {"B", "I"} or not dash or not label:
        raise ValueError(f"tag {tag!r} is not O, B-<label> or I-<label>")
    return prefix, label
