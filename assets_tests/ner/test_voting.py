"""Laws of voting on mentions."""

import itertools
import random

import pytest

from estner_assets.ner.parsing import AnswerStatus, Mention, Parsed
from estner_assets.ner.voting import agreed, majority, vote

A, B, KT = Mention("DRUG", "Concor"), Mention("DRUG", "Enap"), Mention("PROCEDURE", "KT")


def shown(mentions: tuple[Mention, ...]) -> list[tuple[str, str, float | None]]:
    return [(one.label, one.text, one.confidence) for one in mentions]


def test_what_most_ballots_have_is_kept_with_its_share_of_votes() -> None:
    """A mention of more than half of the ballots stays; its confidence is votes / ballots."""
    ballots = [[A, B], [A, KT], [A, B, KT]]
    assert shown(vote(ballots)) == [
        ("DRUG", "Concor", 1.0),
        ("DRUG", "Enap", 0.667),
        ("PROCEDURE", "KT", 0.667),
    ]
    assert shown(vote([[A], [B], [A, KT], [B]])) == []


@pytest.mark.parametrize(("min_votes", "texts"), [(1, ["Concor", "Enap", "KT"]), (2, ["Concor", "KT"]), (3, ["KT"])])
def test_min_votes_decides_how_many_are_enough(min_votes: int, texts: list[str]) -> None:
    """A declared number of votes stands in for the majority."""
    ballots = [[A, KT], [A, B, KT], [KT]]
    assert [mention.text for mention in vote(ballots, min_votes)] == texts


def test_every_repetition_is_voted_on_by_itself() -> None:
    """Two ballots that name a drug twice and one that names it once keep it twice, with other confidences."""
    assert shown(vote([[A, A], [A, A], [A]])) == [("DRUG", "Concor", 1.0), ("DRUG", "Concor", 0.667)]
    assert shown(vote([[A, A], [A], [A]])) == [("DRUG", "Concor", 1.0)]


def test_case_is_no_difference_and_the_usual_spelling_is_kept() -> None:
    """Spellings that differ in case are one mention; labels are not."""
    ballots = [[Mention("DRUG", "concor")], [A], [A], [Mention("PROCEDURE", "Concor")]]
    assert shown(vote(ballots)) == [("DRUG", "Concor", 0.75)]


def test_the_order_of_the_ballots_does_not_matter() -> None:
    """Whatever ballots there are, each order of them gives the same mentions in the same order."""
    rng = random.Random(4)
    names = [Mention(label, text) for label in ("DRUG", "PROCEDURE") for text in ("a", "A", "b", "c", "d")]
    for _ in range(50):
        ballots = [rng.choices(names, k=rng.randint(0, 5)) for _ in range(4)]
        assert len({vote(list(order), 2) for order in itertools.permutations(ballots)}) == 1


def test_the_kept_mentions_stand_in_the_order_that_most_ballots_give() -> None:
    """A ballot that misses the first mentions does not move the later ones to the front."""
    c, d, e = (Mention("DRUG", text) for text in "xyz")
    ballots = [[A, B, KT, c, d], [A, B, KT, c, d, e], [d, e]]
    assert [mention.text for mention in vote(ballots)] == ["Concor", "Enap", "KT", "x", "y", "z"]


def test_no_ballot_is_no_vote() -> None:
    """Nothing answered is not the answer that there is nothing."""
    with pytest.raises(ValueError, match="at least one answered replicate"):
        vote([])


def test_a_majority_is_more_than_half() -> None:
    """Two of two, two of three, three of four."""
    assert [majority(count) for count in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


YES = Parsed(AnswerStatus.ANNOTATED, (A,), "")
REFUSED = Parsed(AnswerStatus.REFUSED, (), "no")
BROKEN = Parsed(AnswerStatus.FAILED, (), "status 500")


def test_the_answered_replicates_vote_while_there_are_enough_of_them() -> None:
    """A replicate without an answer has no vote, and the reason says that it was missing."""
    kept = (Mention("DRUG", "Concor", 1.0),)
    reason = "1 of 3 replicates have no usable answer: no"
    assert agreed([YES, REFUSED, YES]) == Parsed(AnswerStatus.ANNOTATED, kept, reason)
    assert agreed([YES, YES, YES]) == Parsed(AnswerStatus.ANNOTATED, kept, "")


@pytest.mark.parametrize("order", list(itertools.permutations([YES, REFUSED, BROKEN])))
def test_too_few_answered_replicates_are_no_answer(order: tuple[Parsed, ...]) -> None:
    """Below the needed votes a note fails, with the failure that asking again may heal."""
    reason = "2 of 3 replicates have no usable answer, 2 must have one: status 500"
    assert agreed(order) == Parsed(AnswerStatus.FAILED, (), reason)


def test_a_declared_number_of_votes_is_also_needed_as_answers() -> None:
    """With fewer answers than votes are needed, nothing could be kept: that is no note without entities."""
    reason = "1 of 3 replicates have no usable answer, 3 must have one: no"
    assert agreed([YES, YES, REFUSED], 3) == Parsed(AnswerStatus.REFUSED, (), reason)
