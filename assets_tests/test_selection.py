"""Selections choose partitions in the words that dbt's users know."""

from pathlib import Path

import pytest

from assets_tests.projects import ANNOTATORS, PROMPT, edit_yaml, write_yaml
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.selection import Selection, SelectionError

CELLS = {"stub/zero_shot", "stub/second", "lexicon/none"}


@pytest.fixture
def planner(root: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    monkeypatch.setenv("ESTNER_TEST_LLM_URL", "http://127.0.0.1:9/v1")
    stub = {
        "kind": "openai_compatible",
        "title": "A server",
        "model": "stub",
        "base_url_env": "ESTNER_TEST_LLM_URL",
        "prompts": ["zero_shot", "second"],
    }
    write_yaml(root / "declarations" / "annotators.yaml", ANNOTATORS | {"stub": stub})
    (root / "declarations" / "prompts" / "second.md").write_text(PROMPT, encoding="utf-8")
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "annotation", "annotators", value=["lexicon", "stub"])
    return Planner(Project.open(root, "demo").declarations)


def chosen(planner: Planner, *words: str, **options: object) -> set[str]:
    """Return what is selected in a project that is not built yet."""
    plan = planner.plan(Project(planner.declarations).warehouse)
    selection = Selection(tuple(words), **options)  # type: ignore[arg-type]
    return {str(one) for one in selection.partitions(planner, plan.steps)}


def cells_of(*assets: str) -> set[str]:
    return {f"{asset}[{cell}]" for asset in assets for cell in CELLS}


SYNTHESIS = {"records", "generator", "synthetic_notes", "originality", "vetted_notes"}
DECLARED = {
    *(f"prompts[{key}]" for key in ("none", "second", "zero_shot")),
    *(f"annotators[{key}]" for key in ("lexicon", "stub")),
}


def test_an_asset_is_all_its_partitions(planner: Planner) -> None:
    """A name selects every partition, a pattern every asset that it fits, brackets one partition."""
    assert chosen(planner, "annotations") == cells_of("annotations")
    assert chosen(planner, "*_models", "gold_*") == cells_of("ner_models") | {"gold_documents", "gold_spans"}
    assert chosen(planner, "annotations[stub/second]") == {"annotations[stub/second]"}


def test_plus_signs_walk_the_graph(planner: Planner) -> None:
    """In front of a name: all that it is made from; behind: all that is made from it; with a number, so many edges."""
    assert chosen(planner, "+annotations") == cells_of("annotations") | SYNTHESIS | DECLARED
    assert chosen(planner, "ner_models+") == cells_of("ner_models", "predictions", "evaluation") | {
        "leaderboard",
        "report",
    }
    assert chosen(planner, "predictions+1") == cells_of("predictions", "evaluation")
    assert chosen(planner, "1+vetted_notes") == {"vetted_notes", "originality", "synthetic_notes"}
    assert chosen(planner, "+vetted_notes", exclude=("records",)) == SYNTHESIS - {"records"}


def test_options_walk_and_narrow(planner: Planner) -> None:
    """``upstream`` and ``downstream`` widen; an annotator or a prompt narrows the partitions that have one."""
    assert chosen(planner, "vetted_notes", upstream=True) == SYNTHESIS
    assert chosen(planner, "evaluation", downstream=True) == cells_of("evaluation") | {"leaderboard", "report"}
    assert chosen(planner, "prompts annotations", annotator="stub", prompt="second") == {
        "prompts[second]",
        "annotations[stub/second]",
    }
    narrowed = chosen(planner, annotator="lexicon")
    assert SYNTHESIS | {"leaderboard", "evaluation[lexicon/none]"} <= narrowed
    assert [one for one in narrowed if "stub" in one] == []


def test_words_add_up_and_commas_intersect(planner: Planner) -> None:
    """Blanks and repeated options are a union, commas an intersection, methods choose by what they name."""
    assert chosen(planner, "records vetted_notes", "report") == {"records", "vetted_notes", "report"}
    assert chosen(planner, "annotations,prompt:second") == {"annotations[stub/second]"}
    assert chosen(planner, "annotator:stub,group:training") == {"ner_models[stub/second]", "ner_models[stub/zero_shot]"}
    assert chosen(planner, "state:missing") == chosen(planner)
    assert chosen(planner, "state:stale") == set()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("anotations", "'anotations' selects nothing; assets: agreement, annotations"),
        ("annotations[stub/none]", "selects nothing; assets: "),
        ("annotator:gtp", "'annotator:gtp' selects nothing; annotators: gpt, lexicon, reference, stub"),
        ("state:broken", "selects nothing; states: current, missing, stale"),
        ("tag:nightly", "there is no method 'tag'; methods: asset, annotator, prompt, group, state"),
        ("+", "is no selection"),
    ],
)
def test_a_selection_that_names_nothing_says_what_there_is(planner: Planner, word: str, message: str) -> None:
    """A misspelt word is a mistake, never an empty build."""
    with pytest.raises(SelectionError) as caught:
        chosen(planner, word)
    assert message in str(caught.value)


def test_unknown_annotators_and_prompts_are_named(planner: Planner) -> None:
    """An option for a key that is not declared is a mistake."""
    with pytest.raises(SelectionError, match="there is no annotator 'gtp'; declared: lexicon, reference, gpt, stub"):
        chosen(planner, annotator="gtp")
    with pytest.raises(SelectionError, match="there is no prompt 'first'; declared: second, zero_shot"):
        chosen(planner, prompt="first")
