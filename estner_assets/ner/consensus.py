"""One annotation out of many: which mentions to believe, with which boundaries, and how far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from estner_assets.ner.candidates import VOTE_TIE, WORTH_TIE, Candidates, Mentions, candidates_of, mentions_of, peaks
from estner_assets.ner.dawid_skene import VotePatterns, fit, rates_of, vote_patterns, vote_share
from estner_assets.ner.dependence import dependence, shared_votes
from estner_assets.ner.span_table import Flags, Floats, Ints, SpanTable, span_table
from estner_assets.ner.spans import Document, Span


class ConsensusMethod(StrEnum):
    """How votes are counted: every independent one alike, or by what the annotator's votes proved to be worth."""

    MAJORITY = "majority"
    DAWID_SKENE = "dawid_skene"


@dataclass(frozen=True, slots=True)
class ConsensusSpan:
    """A mention with the boundaries that its voters preferred.

    ``confidence`` in 0..1 is that of the mention: the weighted share of votes, or the posterior probability.
    ``votes`` annotators marked it, ``exact_votes`` of them with these very boundaries; copies are counted here.
    """

    start: int
    end: int
    label: str
    confidence: float
    votes: int
    exact_votes: int


@dataclass(frozen=True, slots=True)
class ConsensusDocument:
    """A note that ``annotators`` annotated, and its agreed spans, sorted by start and without overlaps."""

    document_id: str
    text: str
    annotators: int
    spans: tuple[ConsensusSpan, ...]

    @property
    def document(self) -> Document:
        """The note as one that anyone annotated, for training and scoring."""
        spans = tuple(Span(span.start, span.end, span.label, span.confidence) for span in self.spans)
        return Document(self.document_id, self.text, spans)


@dataclass(frozen=True)
class AnnotatorQuality:
    """How an annotator fares if the consensus is the truth, as far as its confidence goes.

    ``weight`` is its part of one vote where all annotated. ``f1`` is expected for candidates of all labels;
    ``sensitivity`` and ``false_positive_rate`` are by label, among the candidates (see ``dawid_skene``).
    """

    annotator: str
    weight: float
    f1: float
    sensitivity: Mapping[str, float]
    false_positive_rate: Mapping[str, float]


@dataclass(frozen=True)
class Consensus:
    """Documents sorted by id, annotators by name. ``iterations`` is 0 for a majority."""

    documents: tuple[ConsensusDocument, ...]
    annotators: tuple[AnnotatorQuality, ...]
    iterations: int
    converged: bool


def consensus(
    annotations: Mapping[str, Sequence[Document]],
    labels: Sequence[str],
    method: ConsensusMethod | str,
    threshold: float = 0.5,
    copies_share_votes: bool = True,
) -> list[ConsensusDocument]:
    """Return ``fit_consensus``'s documents."""
    return list(fit_consensus(annotations, labels, method, threshold, copies_share_votes).documents)


def fit_consensus(
    annotations: Mapping[str, Sequence[Document]],
    labels: Sequence[str],
    method: ConsensusMethod | str,
    threshold: float = 0.5,
    copies_share_votes: bool = True,
) -> Consensus:
    """Return one annotation of every note that anyone annotated, and what it makes of the annotators.

    A span is kept whose confidence is above ``threshold``, and one that all marked who annotated the note. Where
    two kept spans of different labels overlap, the one stays whose exact boundaries have the greater support. A
    note that an annotator did not annotate is no vote against. With ``copies_share_votes`` annotators that err
    together, and those with the same output, share a vote (see ``dependence``); without it each has one. Raises
    ``ValueError`` for an unknown method, a threshold outside 0..1, and as ``span_table``.
    """
    method = ConsensusMethod(method)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a share from 0 to 1, as 0.5")
    table = span_table(annotations, labels)
    mentions = mentions_of(table, len(labels), copies_share_votes)
    spans = vote_patterns(mentions.label, mentions.marked, mentions.annotated[:, mentions.note])
    similarity = dependence(spans, len(labels)) if copies_share_votes else np.eye(len(mentions.members))
    votes = shared_votes(similarity, spans.annotated)
    worth, tie = votes, VOTE_TIE
    if method is ConsensusMethod.DAWID_SKENE:
        worth, tie = votes * fit(spans, votes, len(labels)).rates.log_odds_ratio.T[spans.label], WORTH_TIE
    candidates = candidates_of(mentions, worth[spans.index].T, tie)
    seen = mentions.annotated[:, mentions.note[candidates.best]]
    patterns = vote_patterns(mentions.label[candidates.best], candidates.marked, seen)
    belief = _belief(patterns, shared_votes(similarity, patterns.annotated), method, threshold, len(labels))
    agreed = _agreed(mentions, candidates, belief.probability[patterns.index], belief.kept[patterns.index])
    return Consensus(
        documents=_documents(table, mentions, agreed, labels),
        annotators=_qualities(table, mentions, patterns, belief.probability, similarity, labels),
        iterations=belief.iterations,
        converged=belief.converged,
    )


@dataclass(frozen=True)
class _Belief:
    """``probability`` and ``kept`` are (patterns,)."""

    probability: Floats
    kept: Flags
    iterations: int
    converged: bool


@dataclass(frozen=True)
class _Agreed:
    """The spans of the result in the order of the axis, all (spans,) but the votes: (annotators, spans)."""

    mention: Ints
    confidence: Floats
    marked: Flags
    exact: Flags


def _belief(patterns: VotePatterns, weights: Floats, method: ConsensusMethod, threshold: float, labels: int) -> _Belief:
    unanimous = (patterns.marked == patterns.annotated).all(axis=1)
    if method is ConsensusMethod.MAJORITY:
        share = vote_share(patterns, weights)
        lead = (share - threshold) * weights.sum(axis=1)
        return _Belief(share, unanimous | (lead > VOTE_TIE / 2), iterations=0, converged=True)
    fitted = fit(patterns, weights, labels)
    kept = unanimous | (fitted.posterior > threshold + WORTH_TIE)
    return _Belief(fitted.posterior, kept, fitted.iterations, fitted.converged)


def _agreed(mentions: Mentions, candidates: Candidates, confidence: Floats, kept: Flags) -> _Agreed:
    """Drop what is not kept and, of kept candidates that overlap, the one whose boundaries have less support."""
    chosen = np.flatnonzero(kept)
    best = candidates.best[chosen]
    support = (confidence * candidates.boundary_share)[chosen]
    start, end = mentions.start[best], mentions.end[best]
    alone = peaks(start, end, np.lexsort((start, mentions.label[best], -(support / WORTH_TIE).round()))) == np.arange(
        len(chosen)
    )
    chosen = chosen[alone][np.argsort(start[alone])]
    return _Agreed(
        mention=candidates.best[chosen],
        confidence=confidence[chosen],
        marked=candidates.marked[:, chosen],
        exact=candidates.exact[:, chosen],
    )


def _documents(
    table: SpanTable, mentions: Mentions, agreed: _Agreed, labels: Sequence[str]
) -> tuple[ConsensusDocument, ...]:
    note = mentions.note[agreed.mention]
    copies = np.array([len(same) for same in mentions.members], dtype=np.int64)
    columns = (
        mentions.start[agreed.mention] - table.offsets[note],
        mentions.end[agreed.mention] - table.offsets[note],
        np.array(labels, dtype=object)[mentions.label[agreed.mention]],
        agreed.confidence,
        copies @ agreed.marked,
        copies @ agreed.exact,
    )
    spans = [ConsensusSpan(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    first = np.searchsorted(note, np.arange(len(table.note_ids) + 1)).tolist()
    annotators = table.annotated.sum(axis=0).tolist()
    return tuple(
        ConsensusDocument(note_id, text, annotators[index], tuple(spans[first[index] : first[index + 1]]))
        for index, (note_id, text) in enumerate(zip(table.note_ids, table.texts, strict=True))
    )


def _qualities(
    table: SpanTable,
    mentions: Mentions,
    patterns: VotePatterns,
    probability: Floats,
    similarity: Floats,
    labels: Sequence[str],
) -> tuple[AnnotatorQuality, ...]:
    rates = rates_of(patterns, probability, len(labels))
    weights = shared_votes(similarity, np.ones((1, len(similarity))))[0]
    marked, true = patterns.count @ patterns.marked, (patterns.count * probability) @ patterns.annotated
    correct = (patterns.count * probability) @ patterns.marked
    f1 = np.divide(2 * correct, marked + true, out=np.zeros_like(marked), where=marked + true > 0)
    found = []
    for row, members in enumerate(mentions.members):
        for member in members:
            quality = AnnotatorQuality(
                annotator=table.annotators[member],
                weight=float(weights[row]) / len(members),
                f1=float(f1[row]),
                sensitivity=dict(zip(labels, rates.sensitivity[row].tolist(), strict=True)),
                false_positive_rate=dict(zip(labels, rates.false_positive_rate[row].tolist(), strict=True)),
            )
            found.append(quality)
    return tuple(sorted(found, key=lambda quality: quality.annotator))
