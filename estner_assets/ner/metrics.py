"""Scores of predicted spans against gold spans: four views of the same lists, one list per document.

The published evaluation had one view, seqeval's lenient one on sub-words; it is apart, in
``notebook_protocol``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from estner_assets.ner.spans import Span

DocumentSpans = Sequence[Sequence[Span]]
"""The spans of every document, in the documents' order."""

Key = tuple[int, int, str]


@dataclass(frozen=True)
class Score:
    """Shares in 0..1 and the counts behind them; a share of nothing is 0.

    ``support`` and ``predicted`` count gold and predicted units (spans, characters, sub-words), ``correct``
    is the credit for matches.
    """

    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    correct: float


def score_of(support: int, predicted: int, correct: float) -> Score:
    """Return the score that the counts make; F1 is 2·correct / (support + predicted)."""
    return Score(
        precision=correct / predicted if predicted else 0.0,
        recall=correct / support if support else 0.0,
        f1=2 * correct / (support + predicted) if support + predicted else 0.0,
        support=support,
        predicted=predicted,
        correct=float(correct),
    )


def strict(gold: DocumentSpans, predicted: DocumentSpans, label: str | None) -> Score:
    """Score exact start, end and label, as seqeval's strict mode; ``label`` None is micro over all labels.

    Raises ``ValueError`` when the two sides have different numbers of documents, as do all scores here.
    """
    return _span_score(gold, predicted, label, lambda exact, overlapping: exact)


def partial(gold: DocumentSpans, predicted: DocumentSpans, label: str | None) -> Score:
    """Score with half credit: exact counts 1, overlap with the same label 0.5 (MUC-5; SemEval-2013 task 9).

    Every span is matched at most once, so that the credit is the largest possible, whatever the order.
    """
    return _span_score(gold, predicted, label, lambda exact, overlapping: exact + 0.5 * overlapping)


def type_only(gold: DocumentSpans, predicted: DocumentSpans, label: str | None) -> Score:
    """Score any overlap with the same label as 1, every span matched at most once (SemEval-2013 task 9)."""
    return _span_score(gold, predicted, label, lambda exact, overlapping: exact + overlapping, exact_first=False)


def character(gold: DocumentSpans, predicted: DocumentSpans, label: str | None) -> Score:
    """Score characters: correct is one that has the same label on both sides."""
    check_documents(gold, predicted)
    support = found = correct = 0
    for gold_spans, predicted_spans in zip(gold, predicted, strict=True):
        wanted, given = _characters(gold_spans, label), _characters(predicted_spans, label)
        support, found, correct = support + len(wanted), found + len(given), correct + len(wanted & given)
    return score_of(support, found, correct)


def exact_counts(gold: Sequence[Span], predicted: Sequence[Span], label: str | None) -> tuple[int, int, int]:
    """Return one document's gold spans, predicted spans and exact matches."""
    wanted, given = _keys(gold, label), _keys(predicted, label)
    return wanted.total(), given.total(), (wanted & given).total()


def check_documents(gold: Sequence[object], *others: Sequence[object]) -> None:
    """Raise ``ValueError`` unless all sides have as many documents as ``gold``."""
    for other in others:
        if len(other) != len(gold):
            raise ValueError(
                f"{len(gold)} gold documents against {len(other)} predicted: give one list of spans per "
                "document, an empty one where nothing was predicted"
            )


def _span_score(
    gold: DocumentSpans,
    predicted: DocumentSpans,
    label: str | None,
    credit: Callable[[int, int], float],
    exact_first: bool = True,
) -> Score:
    check_documents(gold, predicted)
    support = found = 0
    correct = 0.0
    for gold_spans, predicted_spans in zip(gold, predicted, strict=True):
        wanted, given = _keys(gold_spans, label), _keys(predicted_spans, label)
        same = wanted & given if exact_first else Counter[Key]()
        support, found = support + wanted.total(), found + given.total()
        correct += credit(same.total(), overlap_matches(wanted - same, given - same))
    return score_of(support, found, correct)


def overlap_matches(gold: Counter[Key], predicted: Counter[Key]) -> int:
    """Return the size of the largest one-to-one matching of spans that overlap and have the same label.

    The span that ends first takes, of those that overlap it, the one that ends first. That is optimal: all
    that overlap it hold its last character, so whoever overlaps the first to end overlaps the others too.
    """
    order = sorted(
        [(end, start, label, 0) for start, end, label in gold.elements()]
        + [(end, start, label, 1) for start, end, label in predicted.elements()]
    )
    taken = [False] * len(order)
    matches = 0
    for index, (end, _, label, side) in enumerate(order):
        if taken[index]:
            continue
        for other in range(index + 1, len(order)):
            _, start, other_label, other_side = order[other]
            if not taken[other] and other_label == label and other_side != side and start < end:
                taken[other] = True
                matches += 1
                break
    return matches


def _keys(spans: Sequence[Span], label: str | None) -> Counter[Key]:
    return Counter((span.start, span.end, span.label) for span in spans if label is None or span.label == label)


def _characters(spans: Sequence[Span], label: str | None) -> set[tuple[int, str]]:
    chosen = (span for span in spans if label is None or span.label == label)
    return {(position, span.label) for span in chosen for position in range(span.start, span.end)}
