"""What a plan says it will take: exact counts of calls, tokens that are near, prices as declared."""

from decimal import Decimal
from pathlib import Path

import pytest

from assets_tests.builds import edit_prompt, rebuild, rows
from assets_tests.llm.fake_openai import FakeOpenAI
from assets_tests.projects import PROMPT, edit_yaml, write_yaml
from estner_assets.estimates import Calls, Estimate, estimates, total
from estner_assets.llm.store import StoreError
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition

CELL = Partition("annotations", "stub", "second")


def estimated(root: Path) -> dict[Partition, Estimate]:
    project = Project.open(root, "demo")
    plan = Planner(project.declarations).plan(project.warehouse)
    return estimates(project, plan, plan.steps)


def calls_of(root: Path, partition: Partition = CELL) -> Calls:
    calls = estimated(root)[partition].calls
    assert calls is not None
    return calls


def test_calls_are_counted_as_the_run_will_send_them(copied: Path, server: FakeOpenAI) -> None:
    """A new text: all notes; then, half of them answered already: the other half. The run sends just as many."""
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "notes", value=12)
    calls = calls_of(copied)
    assert (calls.total, calls.stored, calls.to_send, calls.certainty) == (12, 0, 12, "exactly")
    rebuild(copied)
    assert len(server.questions) == 12
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "notes", value=30)
    calls = calls_of(copied)
    assert (calls.total, calls.stored, calls.to_send, calls.certainty) == (30, 12, 18, "exactly")


def test_going_back_to_an_answered_prompt_costs_nothing(copied: Path) -> None:
    """A → B → A: all answers are stored, no token is expected."""
    original = PROMPT
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    rebuild(copied)
    (copied / "declarations" / "prompts" / "second.md").write_text(original, encoding="utf-8")
    calls = calls_of(copied)
    assert (calls.stored, calls.to_send, calls.prompt_tokens, calls.completion_tokens) == (30, 0, 0, 0)


def test_what_is_priced_has_a_cost_and_what_is_not_has_none(copied: Path) -> None:
    """Cost is tokens times the declared price; an unknown price is unknown, not zero."""
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    assert (calls_of(copied).costs, calls_of(copied).unpriced) == ({}, 30)
    price = {"input_per_million": "2", "output_per_million": "4", "currency": "EUR", "as_of": "2026-01-01"}
    write_yaml(copied / "declarations" / "prices.yaml", {"stub": price})
    calls = calls_of(copied)
    expected = Decimal(2 * calls.prompt_tokens + 4 * calls.completion_tokens) / 1_000_000
    assert (calls.costs, calls.unpriced) == ({"EUR": expected}, 0)
    assert 30 * 20 < calls.prompt_tokens < 30 * 120


def test_notes_that_are_not_there_yet_make_an_upper_bound(copied: Path) -> None:
    """While the notes themselves are to be made anew, no stored answer is counted on, for any cell."""
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "sampling", "seed", value=9)
    for prompt in ("zero_shot", "second"):
        calls = calls_of(copied, Partition("annotations", "stub", prompt))
        assert (calls.total, calls.to_send, calls.certainty) == (30, 30, "at most")


def test_a_damaged_store_is_named(copied: Path) -> None:
    """A store that is none ends the plan with its path and what to do, not with a guess."""
    project = Project.open(copied, "demo")
    project.responses_path.write_bytes(b"no database, but long enough to be looked at as one")
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    with pytest.raises(StoreError, match="is no response store"):
        estimated(copied)


def test_durations_are_those_of_earlier_makings(copied: Path) -> None:
    """A step takes what it took last; the sum adds them up; a project that was never built has no idea."""
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "tagger", "learning_rate", value=1e-3)
    found = estimated(copied)
    took = {
        Partition(row["asset"], row["annotator"], row["prompt"]): row["duration_s"]
        for row in rows(copied, "select asset, annotator, prompt, duration_s from lineage where is_current")
    }
    assert {one: estimate.duration_s for one, estimate in found.items()} == {one: took[one] for one in found}
    assert total(found).duration_s == sum(took[one] for one in found)


def test_nothing_is_asked_and_no_file_is_made(root: Path, server: FakeOpenAI) -> None:
    """Estimates of a new project: nothing known, nothing written."""
    before = sorted(root.rglob("*"))
    assert {estimate.duration_s for estimate in estimated(root).values()} == {None}
    assert sorted(root.rglob("*")) == before
