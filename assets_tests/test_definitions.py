"""What Dagster is told: the whole graph, with everything the UI shows."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assets_tests.builds import edit_prompt
from assets_tests.projects import PROMPT
from estner_assets.declarations import load
from estner_assets.definitions import definitions_of
from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition


def test_every_node_and_every_table_is_an_asset(project: Project) -> None:
    """Graph, tables and assets have the same names, edges and partitions."""
    graph = definitions_of(project.declarations).resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assert set(nodes) == set(NODES) == set(project.declarations.tables)
    edges = {name: {key.to_user_string() for key in node.parent_keys} for name, node in nodes.items()}
    assert edges == {name: set(node.inputs) for name, node in NODES.items()}
    for name in (name for name, node in NODES.items() if node.partitions == "cell"):
        definition = nodes[name].partitions_def
        assert definition is not None
        cells = [] if name == "consensus" else ["lexicon/none", "reference/none"]
        assert definition.get_partition_keys() == cells


def test_every_asset_explains_itself(project: Project) -> None:
    """Group, kinds, owners, description and the schema of every column are there."""
    graph = definitions_of(project.declarations).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node, table = graph.get(key), project.declarations.tables[key.to_user_string()]
        schema = node.metadata["dagster/column_schema"]
        assert (node.group_name, set(node.kinds)) == (table.group, set(table.kinds))
        assert list(node.owners) == ["team:estner"]
        assert table.grain in (node.description or "")
        assert [column.name for column in schema.columns] == list(table.columns)
        assert [column.name for column in schema.columns if not column.description] == []


def test_loading_the_code_location_computes_nothing() -> None:
    """Definitions load without torch, transformers or openai, so that the UI starts fast."""
    script = (
        "import sys, estner_assets.definitions as d; d.defs.load_fn() if hasattr(d.defs, 'load_fn') else d.defs();"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")


@pytest.fixture(scope="module")
def ui(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The Dagster UI on a built project, as `dagster dev -w workspace.yaml` serves it on loopback."""
    root = tmp_path_factory.mktemp("ui") / "project"
    shutil.copytree(built, root)
    home = root / "dagster_home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workspace = Path(__file__).parent.parent / "workspace.yaml"
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "-w", str(workspace)]
    process = subprocess.Popen(
        [*command, "-h", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"DAGSTER_HOME": str(home), "ESTNER_PROJECT": str(root), "ESTNER_PROFILE": "demo"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _is_up(url), "the UI answers")
        yield url, root
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # what a build started ends with it
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_for(condition: Any, what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.5)


def _ask(url: str, query: str, **variables: object) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    return answer["data"]


LAUNCH = """
mutation launch($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
LAUNCH_RUN = """
mutation run($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { id } }
    ... on PythonError { message }
  }
}
"""
RUN_STATUS = "query run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
STATUS = """
query status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}
"""


CHECKS = """
query checks($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      partitionKeys
      assetChecksOrError {
        ... on AssetChecks { checks { name executionForLatestMaterialization { evaluation { success description } } } }
      }
    }
  }
}
"""
RELOAD = 'mutation { reloadRepositoryLocation(repositoryLocationName: "estner") { __typename } }'
START = """
mutation start($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }
"""
SENSORS = """
{ sensorsOrError(repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "estner"}) {
    ... on Sensors { results { name sensorState { status } } } } }
"""


def _asset(url: str, name: str) -> Any:
    return _ask(url, CHECKS, key={"path": [name]})["assetNodeOrError"]


def _in_sync(url: str, name: str) -> Any:
    """Return what the asset's check said last, None while it says nothing of the latest materialization."""
    checks = {one["name"]: one for one in _asset(url, name)["assetChecksOrError"]["checks"]}
    execution = checks["in_sync"]["executionForLatestMaterialization"]
    return execution and execution["evaluation"]


def _materialise(url: str, *names: str) -> None:
    """Launch a run as the button "Materialize" does, and wait for its end."""
    keys = [{"path": [name]} for name in names]
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "estner", "jobName": "__ASSET_JOB"}
    launched = _ask(url, LAUNCH_RUN, params={"selector": selector | {"assetSelection": keys}})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched

    def is_done() -> bool:
        status = _ask(url, RUN_STATUS, id=launched["run"]["id"])["runOrError"]["status"]
        assert status not in ("FAILURE", "CANCELED")
        return bool(status == "SUCCESS")

    _wait_for(is_done, "the run is done")


def _backfill(url: str, **wanted: object) -> None:
    launched = _ask(url, LAUNCH, backfill=wanted)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def is_done() -> bool:
        status = _ask(url, STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        assert status["status"] not in ("FAILED", "COMPLETED_FAILED"), status
        return bool(status["status"] in ("COMPLETED", "COMPLETED_SUCCESS"))

    _wait_for(is_done, "the backfill is done")


def _project(root: Path) -> Project:
    return Project(load(root, "demo"))


def test_the_ui_shows_the_graph_and_makes_assets(ui: tuple[str, Path]) -> None:
    """The code location loads; materialising from the UI fills the warehouse as a build does."""
    url, root = ui
    found = _ask(url, "{ assetNodes { assetKey { path } groupName } }")["assetNodes"]
    assert {node["assetKey"]["path"][0] for node in found} == set(NODES)
    before = _project(root).warehouse.current()[Partition("gold_spans")]
    _materialise(url, "gold_documents", "gold_spans")
    after = _project(root).warehouse.current()[Partition("gold_spans")]
    assert (after.data_version, after.run_id != before.run_id) == (before.data_version, True)


def test_an_annotator_is_backfilled_over_all_prompts(ui: tuple[str, Path]) -> None:
    """The UI offers the declared cells; those of one annotator are made anew, and no others."""
    url, root = ui
    cells = _asset(url, "annotations")["partitionKeys"]
    assert cells == ["lexicon/none", "stub/zero_shot", "stub/second"]
    before = _project(root).warehouse.current()
    of_stub = [cell for cell in cells if cell.startswith("stub/")]
    _backfill(url, assetSelection=[{"path": ["annotations"]}], partitionNames=of_stub)
    after = _project(root).warehouse.current()
    moved = {one for one in after if after[one] != before.get(one)}
    assert moved == {Partition("annotations", "stub", "second"), Partition("annotations", "stub", "zero_shot")}


def test_an_edited_prompt_shows_in_the_ui_and_one_switch_brings_it_into_sync(ui: tuple[str, Path]) -> None:
    """Prompt edited: the check of its assets fails with the cell's name. Sensor on: everything is in sync again."""
    url, root = ui
    states = {one["name"]: one["sensorState"]["status"] for one in _ask(url, SENSORS)["sensorsOrError"]["results"]}
    assert states == {"watch_declarations": "RUNNING", "keep_in_sync": "STOPPED"}
    edit_prompt(root, "second", "List drugs alone, as JSON.")
    _wait_for(lambda: (_in_sync(url, "evaluation") or {}).get("success") is False, "the check sees the edit")
    assert "evaluation[stub/second]: stale" in _in_sync(url, "evaluation")["description"]
    (root / "declarations" / "prompts" / "third.md").write_text(PROMPT, encoding="utf-8")
    _ask(url, RELOAD)
    assert "third" in _asset(url, "prompts")["partitionKeys"]
    selector = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "estner",
        "sensorName": "keep_in_sync",
    }
    assert _ask(url, START, selector=selector)["startSensor"]["__typename"] == "Sensor"

    def is_in_sync() -> bool:
        return all((_in_sync(url, name) or {}).get("success") for name in ("prompts", "evaluation", "report"))

    _wait_for(is_in_sync, "everything is in sync")
    project = _project(root)
    assert Planner(project.declarations).plan(project.warehouse).steps == ()
    assert "drugs alone" in project.warehouse.query("select body from prompts where prompt = 'second'")[0]["body"]
