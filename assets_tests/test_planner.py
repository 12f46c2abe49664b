"""The planner says exactly what is out of date, also with a thousand cells."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from assets_tests.commands import estner
from assets_tests.projects import PROMPT, edit_yaml, write_yaml
from estner_assets.graph import NODES
from estner_assets.planner import Plan, Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Materialization, Partition

ANNOTATORS, PROMPTS = 100, 10


@pytest.fixture
def many_cells(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a thousand cells, all of them made and up to date."""
    monkeypatch.setenv("ESTNER_TEST_LLM_URL", "http://127.0.0.1:9/v1")
    prompts = [f"p{number}" for number in range(PROMPTS)]
    for number, prompt in enumerate(prompts):
        text = PROMPT.replace("Answer with JSON.", f"Answer with JSON, variant {number}.")
        (root / "declarations" / "prompts" / f"{prompt}.md").write_text(text, encoding="utf-8")
    stub = {"kind": "openai_compatible", "title": "A server", "base_url_env": "ESTNER_TEST_LLM_URL", "prompts": prompts}
    annotators = {f"a{number}": stub | {"model": f"model-{number}"} for number in range(ANNOTATORS)}
    write_yaml(root / "declarations" / "annotators.yaml", annotators)
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "annotation", "annotators", value=list(annotators))
    _fill(Project.open(root, "demo"))
    return root


def _fill(project: Project) -> None:
    """Record a making of every asset partition, from what a build would make it from."""
    planner, state = Planner(project.declarations), dict[Partition, Materialization]()
    for node in NODES.values():
        for partition in planner.partitions(node):
            inputs, missing = planner.expected_inputs(partition, state)
            assert missing == []
            made_at = datetime(2024, 1, 1, tzinfo=UTC)
            state[partition] = Materialization(partition, "v1", node.code_version, "run", made_at, 1.0, tuple(inputs))
    made, used = [], []
    for number, one in enumerate(state.values()):
        partition = one.partition
        made.append(
            {
                "materialization_id": str(number),
                "asset": partition.asset,
                "annotator": partition.annotator,
                "prompt": partition.prompt,
                "data_version": one.data_version,
                "code_version": one.code_version,
                "run_id": one.run_id,
                "materialized_at": one.materialized_at,
                "duration_s": one.duration_s,
                "row_count": 1,
                "is_current": True,
            }
        )
        used += [
            {
                "materialization_id": str(number),
                "kind": source.kind,
                "name": source.name,
                "annotator": source.annotator,
                "prompt": source.prompt,
                "version": source.version,
            }
            for source in one.inputs
        ]
    with project.warehouse.writing() as connection:
        for name, rows in (("materializations", made), ("materialization_inputs", used)):
            connection.register("new_rows", pa.Table.from_pylist(rows))
            connection.execute(f"insert into {name} by name select * from new_rows")
            connection.unregister("new_rows")


def plan_of(root: Path) -> Plan:
    project = Project.open(root, "demo")
    return Planner(project.declarations).plan(project.warehouse)


def test_a_thousand_cells_are_planned_in_seconds_and_exactly(many_cells: Path) -> None:
    """Nothing is stale; one prompt edited: its hundred cells are, and fan-ins of a thousand see it."""
    started = time.monotonic()
    assert plan_of(many_cells).steps == ()
    assert time.monotonic() - started < 6  # three on an idle machine; tests share theirs
    path = many_cells / "declarations" / "prompts" / "p3.md"
    path.write_text(path.read_text(encoding="utf-8").replace("variant 3", "another variant"), encoding="utf-8")
    steps = plan_of(many_cells).steps
    with_reasons = {str(step.partition) for step in steps if step.reasons}
    assert with_reasons == {"prompts[p3]"}
    waiting = {step.partition for step in steps if not step.reasons}
    assert {one.prompt for one in waiting} == {"p3", ""}
    per_asset = {asset: sum(one.asset == asset for one in waiting) for asset in {one.asset for one in waiting}}
    assert per_asset == {
        "annotations": 100,
        "ner_models": 100,
        "predictions": 100,
        "evaluation": 100,
        "learning_curves": 100,
        "leaderboard": 1,
        "agreement": 1,
        "reliability": 1,
        "report": 1,
    }


def test_a_build_of_a_thousand_cells_with_nothing_to_do_ends_in_seconds(many_cells: Path) -> None:
    """As a command, imports included: nothing is made, and the plan says that nothing is to do."""
    for command, words, limit_s in (("plan", "everything is up to date", 6), ("build", "0 built", 20)):
        started = time.monotonic()
        result = estner(command, root=many_cells)
        elapsed_s = time.monotonic() - started
        assert (result.returncode, result.stderr) == (0, "")
        assert words in result.stdout
        assert elapsed_s < limit_s  # half of it on an idle machine; tests share theirs


def test_a_thousand_cells_are_estimated_in_seconds(many_cells: Path) -> None:
    """All cells of a prompt stale: calls and tokens of each are said, of a sample where they are too many."""
    path = many_cells / "declarations" / "prompts" / "p3.md"
    path.write_text(path.read_text(encoding="utf-8").replace("variant 3", "another variant"), encoding="utf-8")
    started = time.monotonic()
    result = estner("plan", "--json", root=many_cells)
    assert time.monotonic() - started < 6
    plan = json.loads(result.stdout)
    calls = [step["estimate"]["to_send"] for step in plan["steps"] if step["asset"] == "annotations"]
    assert (calls, plan["total"]["to_send"]) == ([30] * 100, 3000)


def test_reasons_name_what_changed(many_cells: Path) -> None:
    """A changed setting is named with its key, its old and its new value."""
    edit_yaml(many_cells / "declarations" / "profiles" / "demo.yaml", "evaluation", "bootstrap_samples", value=70)
    project = Project.open(many_cells, "demo")
    with project.warehouse.writing() as connection:
        connection.execute(
            "insert into declaration_versions "
            "select name, annotator, prompt, version, '{\"bootstrap_samples\": 50}', now() "
            "from materialization_inputs where kind = 'setting' and name = 'evaluation' group by all"
        )
    steps = [step for step in plan_of(many_cells).steps if step.partition.asset == "evaluation"]
    assert len(steps) == 1000
    assert all(step.reasons[0].startswith("profile evaluation.bootstrap_samples 50 → 70") for step in steps)
