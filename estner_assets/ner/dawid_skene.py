"""What is true, and how good every annotator is, from votes alone (Dawid & Skene 1979, Applied Statistics 28:20).

Every label has two classes of candidates, true mentions and false ones, and every annotator a sensitivity and a
false-positive rate of the label. A candidate that nobody marked is not seen, so the data are truncated: the
model adds to each candidate seen those of its kind that all would have missed (Dempster, Laird & Rubin 1977,
JRSS B 39:1, section 4.2). Without that, what one annotator alone finds looks as if the others contradicted it.
"""

from dataclasses import dataclass

import numpy as np

from estner_assets.ner.span_table import Flags, Floats, Ints

PRIOR_SENSITIVITY, PRIOR_FALSE_POSITIVE_RATE, PRIOR_CANDIDATES = 0.7, 0.3, 2.0
"""Smoothing: every annotator starts with this many candidates of each class at these rates (a beta prior)."""

LARGEST_UNSEEN = 0.9
"""At most this share of a kind of candidates is taken to have been missed by all: nine unseen for one seen."""

MAX_ITERATIONS = 500
"""Where expectation maximisation stops when it has not converged."""

TOLERANCE = 1e-7
"""Converged is: no posterior moved by more than this in one iteration."""


@dataclass(frozen=True)
class VotePatterns:
    """Candidates with the same label and the same votes, counted once: there are far fewer than candidates.

    ``marked`` and ``annotated`` are (patterns, annotators), a vote where the second holds only; ``label`` and
    ``count`` (patterns,); ``index`` (candidates,) is every candidate's pattern.
    """

    label: Ints
    marked: Floats
    annotated: Floats
    count: Ints
    index: Ints


@dataclass(frozen=True)
class Rates:
    """``sensitivity`` and ``false_positive_rate`` are (annotators, labels), ``prevalence`` of truth (labels,)."""

    sensitivity: Floats
    false_positive_rate: Floats
    prevalence: Floats

    @property
    def log_odds_ratio(self) -> Floats:
        """What a vote for a candidate is worth against a vote that leaves it out, (annotators, labels), 0 or more."""
        return _logit(self.sensitivity) - _logit(self.false_positive_rate)


@dataclass(frozen=True)
class DawidSkene:
    """``posterior`` (patterns,) is the probability that a candidate is true."""

    posterior: Floats
    rates: Rates
    iterations: int
    converged: bool


def vote_patterns(label: Ints, marked: Flags, annotated: Flags) -> VotePatterns:
    """Count the distinct votes; ``label`` is (candidates,), the others are (annotators, candidates)."""
    annotators = len(marked)
    rows = np.concatenate([label[None, :], marked, annotated]).T.astype(np.int16)
    distinct, index, count = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return VotePatterns(
        label=distinct[:, 0].astype(np.int64),
        marked=distinct[:, 1 : 1 + annotators].astype(np.float64),
        annotated=distinct[:, 1 + annotators :].astype(np.float64),
        count=count.astype(np.int64),
        index=index.reshape(-1).astype(np.int64),
    )


def vote_share(patterns: VotePatterns, weights: Floats) -> Floats:
    """Return the weighted share of votes for each pattern, (patterns,); ``weights`` are (patterns, annotators)."""
    shares: Floats = (weights * patterns.marked).sum(axis=1) / (weights * patterns.annotated).sum(axis=1)
    return shares


def fit(patterns: VotePatterns, weights: Floats, labels: int) -> DawidSkene:
    """Alternate between rates and posteriors, from the weighted vote shares on; deterministic.

    ``weights`` (patterns, annotators) are votes per annotator, 0 where it did not annotate: one that is a copy of
    another has half a vote, so its evidence counts half. ``labels`` is their number. At least three independent
    annotators are needed: two that differ are explained as well by either being right.
    """
    posterior = vote_share(patterns, weights)
    rates = rates_of(patterns, posterior, labels)
    for_it, against = weights * patterns.marked, weights * (patterns.annotated - patterns.marked)
    for iteration in range(1, MAX_ITERATIONS + 1):
        before, posterior = posterior, _posterior(patterns, for_it, against, rates)
        seen = _seen(patterns, weights, rates.sensitivity), _seen(patterns, weights, rates.false_positive_rate)
        rates = rates_of(patterns, posterior, labels, seen)
        if np.abs(posterior - before).max(initial=0.0) <= TOLERANCE:
            return DawidSkene(posterior, rates, iteration, converged=True)
    return DawidSkene(posterior, rates, MAX_ITERATIONS, converged=False)


def rates_of(
    patterns: VotePatterns, posterior: Floats, labels: int, seen: tuple[Floats, Floats] | None = None
) -> Rates:
    """Return the most probable rates where ``posterior`` (patterns,) says how true the candidates are.

    ``seen`` are the shares of true and of false candidates like each pattern's that anyone marked, (patterns,)
    each; without them the rates are those among the candidates seen. No annotator is taken to vote against the
    truth: where the sensitivity would be below the false-positive rate, both are their pooled rate, the best
    under that constraint, and the vote says nothing.
    """
    of_label = (patterns.label[:, None] == np.arange(labels)) * patterns.count[:, None]
    true, false = of_label * posterior[:, None], of_label * (1 - posterior[:, None])
    all_true, all_false = (true, false) if seen is None else (true / seen[0][:, None], false / seen[1][:, None])
    hits = patterns.marked.T @ true + PRIOR_SENSITIVITY * PRIOR_CANDIDATES
    mentions = patterns.annotated.T @ all_true + PRIOR_CANDIDATES
    alarms = patterns.marked.T @ false + PRIOR_FALSE_POSITIVE_RATE * PRIOR_CANDIDATES
    others = patterns.annotated.T @ all_false + PRIOR_CANDIDATES
    contrary = hits * others < alarms * mentions
    pooled = (hits + alarms) / (mentions + others)
    prevalence = (all_true.sum(axis=0) + 1) / ((all_true + all_false).sum(axis=0) + 2)
    return Rates(np.where(contrary, pooled, hits / mentions), np.where(contrary, pooled, alarms / others), prevalence)


def _seen(patterns: VotePatterns, weights: Floats, rate: Floats) -> Floats:
    """Return the share of candidates that someone marks if each annotator marks at ``rate`` (annotators, labels)."""
    missed = np.exp(_of_label(weights @ np.log1p(-rate), patterns.label))
    seen: Floats = 1 - np.minimum(missed, LARGEST_UNSEEN)
    return seen


def _posterior(patterns: VotePatterns, for_it: Floats, against: Floats, rates: Rates) -> Floats:
    """Return the posteriors; ``for_it`` and ``against`` (patterns, annotators) are the weights of the votes."""
    marking = np.log(rates.sensitivity) - np.log(rates.false_positive_rate)
    leaving_out = np.log1p(-rates.sensitivity) - np.log1p(-rates.false_positive_rate)
    log_odds = _of_label(for_it @ marking + against @ leaving_out + _logit(rates.prevalence), patterns.label)
    posterior: Floats = np.exp(-np.logaddexp(0.0, -log_odds))
    return posterior


def _of_label(figures: Floats, label: Ints) -> Floats:
    """Pick every row's figure of its own label out of (rows, labels)."""
    own: Floats = figures[np.arange(len(label)), label]
    return own


def _logit(share: Floats) -> Floats:
    odds: Floats = np.log(share) - np.log1p(-share)
    return odds
