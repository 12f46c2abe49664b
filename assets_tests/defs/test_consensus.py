"""Consensus: what several cells agree on is a cell of its own, from its votes to the leaderboard."""

from pathlib import Path

import pytest

from assets_tests.builds import CELL_ASSETS, edit_prompt, of_cell, rebuild, remade, rows
from assets_tests.projects import edit_yaml
from estner_assets.builder import Options
from estner_assets.declarations import DeclarationError
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.selection import Selection

CONSENSUS = {
    "kind": "consensus",
    "title": "What all agree on",
    "members": ["lexicon", "stub"],
    "method": "majority",
    "prompts": ["none"],
}
MADE = {"consensus", "ner_models", "predictions", "evaluation", "learning_curves"}


@pytest.fixture
def agreeing(copied: Path) -> Path:
    """A built project that declares a consensus of all its annotators."""
    edit_yaml(copied / "declarations" / "annotators.yaml", "consensus", value=CONSENSUS)
    profile = copied / "declarations" / "profiles" / "demo.yaml"
    edit_yaml(profile, "annotation", "annotators", value=["lexicon", "stub", "gpt", "consensus"])
    return copied


def test_a_consensus_is_a_cell_that_is_trained_and_scored(agreeing: Path) -> None:
    """Declared, it is made from the cells that are there, and stands on the leaderboard; no cell is made anew."""
    built = remade(agreeing)
    assert built == {"annotators[consensus]", "leaderboard", "report"} | of_cell(MADE, "consensus/none")
    assert rows(agreeing, "select distinct voters, status from consensus") == [{"voters": 3, "status": "annotated"}]
    wrong = """
        select m.text from consensus c join vetted_notes v using (note_id), unnest(c.mentions) as t(m)
        where substr(v.text, m.start_char + 1, m.end_char - m.start_char) <> m.text or m.confidence <= 0.5
    """
    assert rows(agreeing, wrong) == []
    scored = rows(agreeing, "select distinct status from leaderboard where annotator = 'consensus'")
    assert scored == [{"status": "scored"}]
    assert rows(agreeing, "select * from annotations where annotator = 'consensus'") == []


def test_a_member_that_moves_moves_the_consensus(agreeing: Path) -> None:
    """A prompt that is edited reaches its own cell and the consensus, and no other."""
    rebuild(agreeing)
    edit_prompt(agreeing, "second", "List drugs alone, as JSON.")
    built = remade(agreeing)
    assert {"prompts[second]", "consensus[consensus/none]"} | of_cell(CELL_ASSETS, "stub/second") <= built
    assert [one for one in built if "zero_shot" in one or "lexicon" in one] == []


def test_a_consensus_does_without_a_member_that_cannot_be_made(agreeing: Path) -> None:
    """With too few members the cell is not configured and says so; with enough it is made of the others."""
    edit_yaml(agreeing / "declarations" / "annotators.yaml", "consensus", "members", value=["lexicon", "gpt"])
    project = Project.open(agreeing, "demo")
    plan = Planner(project.declarations).plan(project.warehouse)
    missing = {str(cell): text for cell, text in plan.not_configured.items()}
    assert missing["consensus/none"] == "majority needs 2 cells, 1 of lexicon, gpt can be made here"
    edit_yaml(agreeing / "declarations" / "annotators.yaml", "consensus", "members", value=["lexicon", "gpt", "stub"])
    rebuild(agreeing, Options(selection=Selection(("+consensus",))))
    assert rows(agreeing, "select distinct voters from consensus") == [{"voters": 3}]


@pytest.mark.parametrize("member", ["nobody", "reference", "consensus"])
def test_who_cannot_vote_is_refused(agreeing: Path, member: str) -> None:
    """Members are annotators that read vetted notes themselves."""
    edit_yaml(agreeing / "declarations" / "annotators.yaml", "consensus", "members", value=["lexicon", member])
    with pytest.raises(DeclarationError) as caught:
        Project.open(agreeing, "demo")
    assert [problem.message for problem in caught.value.problems] == [
        f"{member!r} cannot vote; allowed: lexicon, gpt, stub"
    ]
