"""What the UI shows of a graph that is out of sync, and what brings it back."""

import re
from pathlib import Path

import dagster as dg
import pytest

from assets_tests.builds import edit_prompt, versions
from assets_tests.llm.fake_openai import FakeOpenAI
from assets_tests.projects import PROMPT, edit_yaml
from estner_assets.definitions import definitions_of
from estner_assets.defs.table_asset import ProjectResource
from estner_assets.graph import NODES
from estner_assets.project import Project
from estner_assets.syncing import keep_in_sync, watch_declarations


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def resource(root: Path) -> ProjectResource:
    return ProjectResource(root=str(root), profile="demo")


def watched(root: Path, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = watch_declarations(context, project=resource(root))
    assert isinstance(result, dg.SensorResult)
    return result


def kept(root: Path, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = keep_in_sync(context, project=resource(root))
    assert isinstance(result, dg.SensorResult)
    return result


def skipped(result: dg.SensorResult) -> str:
    """Return why the sensor started nothing."""
    assert not result.run_requests
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def out_of_sync(result: dg.SensorResult) -> dict[str, str]:
    """Return what the failed checks say, by asset."""
    events = [event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    assert {(event.check_name, event.severity) for event in events} <= {("in_sync", dg.AssetCheckSeverity.WARN)}
    return {event.asset_key.to_user_string(): event.description or "" for event in events if not event.passed}


def test_an_edited_prompt_is_seen_on_every_asset_that_it_reaches(copied: Path, instance: dg.DagsterInstance) -> None:
    """The checks of these assets say which cells are stale and why; once seen, nothing is reported again."""
    first = watched(copied, instance)
    assert {event.asset_key.to_user_string() for event in first.asset_events} == set(NODES)
    assert out_of_sync(first) == {}
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    second = watched(copied, instance, first.cursor)
    stale = out_of_sync(second)
    assert set(stale) == {
        *("prompts", "annotations", "ner_models", "predictions", "evaluation", "learning_curves"),
        *("leaderboard", "agreement", "reliability", "report"),
    }
    assert stale["prompts"].startswith("prompts[second]: stale, prompt second changed ")
    assert stale["annotations"].startswith("annotations[stub/second]: stale, upstream prompts[second]. To mend it, run")
    assert watched(copied, instance, second.cursor).asset_events == []


def test_a_check_is_reported_again_after_its_asset_was_made(copied: Path, instance: dg.DagsterInstance) -> None:
    """The event of a materialization may come after the check that saw its rows: the next look reports once more."""
    first = watched(copied, instance)
    instance.report_runless_asset_event(dg.AssetMaterialization("report"))
    again = watched(copied, instance, first.cursor)
    assert [event.asset_key.to_user_string() for event in again.asset_events] == ["report"]
    assert watched(copied, instance, again.cursor).asset_events == []


def test_broken_declarations_are_said_and_change_no_check(copied: Path, instance: dg.DagsterInstance) -> None:
    """While a declaration cannot be read, both sensors say why and do nothing."""
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "tagger", "epochs", value=-1)
    for result in (watched(copied, instance), kept(copied, instance)):
        assert not result.asset_events
        assert "tagger.epochs" in skipped(result)


def test_the_sensor_asks_for_a_build_whenever_something_has_moved(copied: Path, instance: dg.DagsterInstance) -> None:
    """Nothing stale: none. Stale: one. The same plan again, as after a failure: a pause first. Another edit, or the
    same one after a time in sync: at once."""
    assert skipped(kept(copied, instance)) == "everything is in sync"
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    first = kept(copied, instance)
    assert first.run_requests == [dg.RunRequest()]
    again = skipped(kept(copied, instance, first.cursor))
    assert re.match(r"the last build left the same plan; the next one starts in \d\d s, or when something moves", again)
    (copied / "declarations" / "prompts" / "second.md").write_text(PROMPT, encoding="utf-8")
    settled = kept(copied, instance, first.cursor)
    assert skipped(settled) == "everything is in sync"
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    assert kept(copied, instance, settled.cursor).run_requests == [dg.RunRequest()]
    edit_prompt(copied, "second", "List procedures too, as JSON.")
    assert kept(copied, instance, first.cursor).run_requests == [dg.RunRequest()]


def test_the_job_brings_everything_into_sync(
    copied: Path, server: FakeOpenAI, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job makes what a build makes, on the instance of its run; afterwards the sensors are content."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    job = definitions_of(Project.open(copied, "demo").declarations).resolve_job_def("everything")
    assert job.execute_in_process(instance=instance).success
    assert len(server.questions) == 30
    assert skipped(kept(copied, instance)) == "everything is in sync"
    assert out_of_sync(watched(copied, instance)) == {}
    event = instance.get_latest_materialization_event(dg.AssetKey("annotations"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.partition == "stub/second"


def test_a_materialisation_in_the_ui_ends_with_its_check(copied: Path, instance: dg.DagsterInstance) -> None:
    """A run of one asset evaluates in_sync for it: upstream edits that it did not see show at once."""
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "tagger", "epochs", value=3)
    job = definitions_of(Project.open(copied, "demo").declarations).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance,
        partition_key="lexicon/none",
        asset_selection=[dg.AssetKey("evaluation")],
        raise_on_error=False,
    )
    checks = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert checks["declared_rules"].passed
    assert not checks["in_sync"].passed
    assert "evaluation[lexicon/none]: stale, upstream predictions[lexicon/none]" in (
        checks["in_sync"].description or ""
    )


def test_a_cell_that_is_declared_no_longer_fails_with_those_that_are(
    copied: Path, instance: dg.DagsterInstance
) -> None:
    """A code location that was loaded before an edit still offers the cell; its run says which cells are valid."""
    job = definitions_of(Project.open(copied, "demo").declarations).resolve_implicit_global_asset_job_def()
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "prompts", value=["zero_shot"])
    before = versions(copied)
    result = job.execute_in_process(
        instance=instance,
        partition_key="stub/second",
        asset_selection=[dg.AssetKey("annotations")],
        raise_on_error=False,
    )
    data = result.failure_data_for_node("annotations")
    assert data is not None
    assert data.user_failure_data is not None
    assert data.user_failure_data.description == (
        "cell stub/second is not declared (demo); valid cells: lexicon/none, gpt/zero_shot, stub/zero_shot"
    )
    assert versions(copied) == before
