"""Narrowing and steering a build, and what happens beside it."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest

from assets_tests.builds import (
    CELL_ASSETS,
    FINAL_ASSETS,
    answer_as_told,
    change_records,
    edit_prompt,
    of_cell,
    rebuild,
    remade,
    rows,
    versions,
)
from assets_tests.llm.fake_openai import FakeOpenAI, Question, Reply
from assets_tests.projects import PROMPT, edit_yaml
from estner_assets.builder import Event, Options, build
from estner_assets.definitions import definitions_of
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.resources.locks import file_lock
from estner_assets.selection import Selection


def is_in_sync(root: Path) -> bool:
    project = Project.open(root, "demo")
    return Planner(project.declarations).plan(project.warehouse).steps == ()


def edit_both(root: Path) -> None:
    edit_prompt(root, "second", "List drugs alone, as JSON.")
    edit_prompt(root, "zero_shot", "List drugs alone, as JSON.")


def test_a_prompt_can_be_built_alone(copied: Path, server: FakeOpenAI) -> None:
    """One prompt's cells and the tables over all cells are made; the other prompt stays stale, and says so."""
    edit_both(copied)
    outcome = rebuild(copied, Options(selection=Selection(prompt="second")))
    assert (outcome.failed, outcome.held_back) == ({}, {})
    built = {str(partition) for partition in outcome.built}
    assert built == {"prompts[second]"} | of_cell(CELL_ASSETS, "stub/second") | FINAL_ASSETS
    assert not is_in_sync(copied)
    rest = remade(copied)
    assert {"prompts[zero_shot]"} | of_cell(CELL_ASSETS, "stub/zero_shot") <= rest
    assert of_cell(CELL_ASSETS, "stub/second").isdisjoint(rest)
    # two prompts with the same text ask the same questions, which are answered once
    assert len(server.questions) == 30


def test_a_selection_without_its_inputs_is_held_back(copied: Path) -> None:
    """Nothing is made from stale inputs; the outcome says which input, and what to add."""
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    before = versions(copied)
    outcome = rebuild(copied, Options(selection=Selection(("evaluation",))))
    assert (outcome.built, outcome.held_back) == (
        [],
        {
            Partition("evaluation", "stub", "second"): "it is made from predictions[stub/second], which is not "
            "selected; add --upstream"
        },
    )
    assert versions(copied) == before
    upstream = remade(copied, Options(selection=Selection(("evaluation",), upstream=True)))
    assert upstream == {"prompts[second]"} | of_cell(CELL_ASSETS - {"learning_curves"}, "stub/second")


def test_what_comes_out_the_same_ends_as_skipped(copied: Path) -> None:
    """Planned steps that early cutoff saves are counted, and named."""
    edit_prompt(copied, "second", "Answer with one JSON object.")
    outcome = rebuild(copied)
    assert [str(one) for one in outcome.built] == ["prompts[second]", "annotations[stub/second]"]
    assert {str(one) for one in outcome.skipped} == FINAL_ASSETS | of_cell(CELL_ASSETS - {"annotations"}, "stub/second")


def test_fail_fast_starts_nothing_more(copied: Path) -> None:
    """After the first failure the rest is held back; with keep-going it is made."""
    (copied / "data" / "terms.tsv").write_text("label\tterm\nDRUG\n", encoding="utf-8")
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    outcome = rebuild(copied, Options(fail_fast=True))
    assert [str(one) for one in outcome.failed] == ["annotations[lexicon/none]"]
    assert {str(one) for one in outcome.built} == {"prompts[second]", "annotators[lexicon]"}
    assert outcome.held_back[Partition("annotations", "stub", "second")] == "the build stopped before it"
    going_on = rebuild(copied)
    assert [str(one) for one in going_on.failed] == ["annotations[lexicon/none]"]
    assert of_cell(CELL_ASSETS, "stub/second") <= {str(one) for one in going_on.built}


def test_a_backfill_makes_cells_anew_from_stored_answers(copied: Path, server: FakeOpenAI) -> None:
    """Forced cells get new runs and the same data; nothing is asked, nothing after them is touched."""
    before = versions(copied)
    forced = frozenset(Partition(asset, "stub", "second") for asset in ("annotations", "ner_models"))
    assert remade(copied, Options(forced=forced)) == of_cell({"annotations", "ner_models"}, "stub/second")
    after = versions(copied)
    assert {one for one in after if after[one][1] != before[one][1]} == forced
    assert [after[one][0] for one in forced] == [before[one][0] for one in forced]
    assert server.questions == []
    assert is_in_sync(copied)


def test_two_edits_in_quick_succession_lose_neither(
    copied: Path, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit while the first edit's cell is asked: the same build ends in sync with the last text."""
    last = "List drugs alone, and nothing else, as JSON."

    def edit_then_answer(question: Question) -> Reply:
        path = copied / "declarations" / "prompts" / "second.md"
        if last not in path.read_text(encoding="utf-8"):
            edit_prompt(copied, "second", last)
        return answer_as_told(question)

    monkeypatch.setattr(server, "answer", edit_then_answer)
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    outcome = rebuild(copied)
    assert outcome.failed == {}
    assert is_in_sync(copied)
    body = rows(copied, "select body from prompts where prompt = 'second'")[0]["body"]
    assert last in body
    assert len(server.questions) == 60


def test_a_new_prompt_file_is_a_new_cell(copied: Path) -> None:
    """A file and its name under an annotator: no code changes, and every other cell stays as it is."""
    (copied / "declarations" / "prompts" / "third.md").write_text(PROMPT.replace("Find", "Name"), encoding="utf-8")
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "prompts", value=["zero_shot", "second", "third"])
    assert remade(copied) == {"prompts[third]"} | of_cell(CELL_ASSETS, "stub/third") | FINAL_ASSETS


def test_a_removed_prompt_is_retired_and_readable(copied: Path) -> None:
    """Its rows and history stay, marked; declared again it is no longer retired, and nothing is asked."""
    prompts = copied / "declarations" / "prompts"
    text = (prompts / "second.md").read_text(encoding="utf-8")
    (prompts / "second.md").unlink()
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "prompts", value=["zero_shot"])
    project = Project.open(copied, "demo")
    plan = Planner(project.declarations).plan(project.warehouse)
    assert {str(one) for one in plan.retired} == {"prompts[second]"} | of_cell(CELL_ASSETS, "stub/second")
    rebuild(copied)
    retired = "select distinct asset from lineage where retired_at is not null and prompt = 'second' and is_current"
    assert {row["asset"] for row in rows(copied, retired)} == {"prompts"} | CELL_ASSETS
    assert rows(copied, "select prompt, notes, is_retired from cells where annotator = 'stub' order by 1") == [
        {"prompt": "second", "notes": 30, "is_retired": True},
        {"prompt": "zero_shot", "notes": 30, "is_retired": False},
    ]
    (prompts / "second.md").write_text(text, encoding="utf-8")
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "prompts", value=["zero_shot", "second"])
    rebuild(copied)
    assert rows(copied, retired) == []


def test_a_second_build_says_whom_it_waits_for(copied: Path) -> None:
    """While another build holds the lock, its process is named; after its end the second goes on."""
    lock = Project.open(copied, "demo").warehouse.path.with_suffix(".build.lock")
    script = (
        "import sys, time; from pathlib import Path; from estner_assets.resources.locks import file_lock\n"
        "with file_lock(Path(sys.argv[1]), exclusive=True, timeout_s=1): print(flush=True); time.sleep(2)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        events: list[Event] = []
        started = time.monotonic()
        with dg.DagsterInstance.ephemeral() as instance:
            build(Project.open(copied, "demo"), instance, events.append)
        assert [event.text for event in events] == [
            f"another build, process {other.pid}, is at work; waiting for its end"
        ]
        assert time.monotonic() - started > 1
    with file_lock(lock, exclusive=True, timeout_s=1):
        pass


def test_ui_runs_beside_a_build_end_in_the_same_state(copied: Path, undisturbed: Path) -> None:
    """Assets materialised as the UI does it while a build is at work: the next plan is empty, the data the same."""
    change_records(copied)
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.append(rebuild(copied)))
    thread.start()
    job = definitions_of(Project.open(copied, "demo").declarations).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        while thread.is_alive():
            for asset in ("records", "gold_documents", "gold_spans"):
                job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(asset)], raise_on_error=False)
    thread.join()
    assert rebuild(copied).failed == {}
    assert is_in_sync(copied)
    ended, expected = versions(copied), versions(undisturbed)
    lasting = [one for one in expected if one.asset != "report"]
    assert {one: ended[one][0] for one in lasting} == {one: expected[one][0] for one in lasting}


def test_reasons_are_the_words_that_users_wrote(copied: Path) -> None:
    """A prompt with its versions, a profile's key with its values, an upstream partition by name."""
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "tagger", "learning_rate", value=1e-3)
    project = Project.open(copied, "demo")
    steps = {str(step.partition): step for step in Planner(project.declarations).plan(project.warehouse).steps}
    old = rows(copied, "select version from prompts where prompt = 'second'")[0]["version"]
    new = Planner(project.declarations).setting_versions(Partition("prompts", prompt="second"))[0].version
    assert steps["prompts[second]"].explanation.startswith(f"prompt second changed {old[:8]} → {new[:8]}: body")
    assert steps["annotations[stub/second]"].explanation == "upstream prompts[second]"
    assert steps["ner_models[stub/zero_shot]"].explanation == "profile tagger.learning_rate 0.01 → 0.001"
