"""Self-consistency: one question asked several times, and what most of the answers agree on.

After X. Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models (ICLR 2023), with
a vote on every mention instead of one on the whole answer. Votes are counted before grounding, so an answer is
identified by what was answered: the label, the words, and which repetition of them it is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key, partial

from estner_assets.ner.parsing import AnswerStatus, Mention, Parsed


@dataclass(frozen=True, order=True, slots=True)
class _Candidate:
    """A mention as it is voted on: its ``occurrence``-th appearance (from 0) in a ballot, case put aside."""

    label: str
    folded: str
    occurrence: int


_Ballot = Mapping[_Candidate, int]
"""A ballot's candidates with their ranks, from 0 in the order of the answer."""


def agreed(replicates: Sequence[Parsed], min_votes: int | None = None) -> Parsed:
    """Return what the replicates of a note say together.

    Where fewer were answered than a vote needs (``min_votes``, or more than half of the replicates) the note has
    no answer: missing votes are no votes against a mention.
    """
    answered = [one for one in replicates if one.status is AnswerStatus.ANNOTATED]
    lost = [one for one in replicates if one.status is not AnswerStatus.ANNOTATED]
    needed = min_votes or majority(len(replicates))
    if len(answered) < needed:
        return failed(lost, len(replicates), f"replicates have no usable answer, {needed} must have one")
    reason = failed(lost, len(replicates), "replicates have no usable answer").reason if lost else ""
    mentions = vote([one.mentions for one in answered], min_votes)
    return Parsed(AnswerStatus.ANNOTATED, mentions, together([reason, *(one.reason for one in answered)]))


def failed(lost: Sequence[Parsed], of: int, what: str) -> Parsed:
    """Return an answer without mentions; of several failures, one that asking again may heal comes first."""
    first = min(lost, key=lambda one: one.status.is_answer)
    return Parsed(first.status, (), f"{len(lost)} of {of} {what}: {first.reason}")


def together(reasons: Iterable[str]) -> str:
    """Return what was wrong, each thing once."""
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))


def majority(ballots: int) -> int:
    """Return how many of the ballots are more than half."""
    return ballots // 2 + 1


def vote(ballots: Sequence[Sequence[Mention]], min_votes: int | None = None) -> tuple[Mention, ...]:
    """Return the mentions that at least ``min_votes`` ballots have (more than half of them where ``None``).

    ``confidence`` is votes / ballots. The spelling is the most frequent one. The result does not depend on the
    order of the ballots; its order is the one that most ballots give to each pair of mentions. Raises
    ``ValueError`` without a ballot, for that is no vote for "no mentions".
    """
    if not ballots:
        raise ValueError("a vote needs at least one answered replicate")
    ranked = [_ranked(ballot) for ballot in ballots]
    votes = Counter(candidate for ballot in ranked for candidate in ballot)
    needed = min_votes or majority(len(ballots))
    # sorted first: pairs without a majority must not fall back on the order of the ballots
    kept = sorted(candidate for candidate, count in votes.items() if count >= needed)
    kept.sort(key=cmp_to_key(partial(_compared, ranked)))
    spelled = _spellings(ballots)
    return tuple(
        replace(spelled[candidate], confidence=round(votes[candidate] / len(ballots), 3)) for candidate in kept
    )


def _candidates(ballot: Iterable[Mention]) -> list[_Candidate]:
    seen: Counter[tuple[str, str]] = Counter()
    found: list[_Candidate] = []
    for mention in ballot:
        name = mention.label, mention.text.casefold()
        found.append(_Candidate(*name, seen[name]))
        seen[name] += 1
    return found


def _ranked(ballot: Sequence[Mention]) -> _Ballot:
    return {candidate: rank for rank, candidate in enumerate(_candidates(ballot))}


def _compared(ballots: Sequence[_Ballot], one: _Candidate, other: _Candidate) -> int:
    """Return below 0 where more ballots have ``one`` before ``other`` than behind it."""
    both = [(ballot[one], ballot[other]) for ballot in ballots if one in ballot and other in ballot]
    return sum((first > second) - (first < second) for first, second in both)


def _spellings(ballots: Sequence[Sequence[Mention]]) -> dict[_Candidate, Mention]:
    counts: dict[_Candidate, Counter[str]] = {}
    for ballot in ballots:
        for candidate, mention in zip(_candidates(ballot), ballot, strict=True):
            counts.setdefault(candidate, Counter())[mention.text] += 1
    return {
        candidate: Mention(candidate.label, min(texts, key=lambda text: (-texts[text], text)))
        for candidate, texts in counts.items()
    }
