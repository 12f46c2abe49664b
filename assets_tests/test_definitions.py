"""What Dagster is told: the whole graph, with everything the UI shows."""

import json
import os
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

import dagster as dg
import pytest

from estner_assets.declarations import load
from estner_assets.definitions import definitions_of
from estner_assets.graph import NODES
from estner_assets.project import Project


def test_every_node_and_every_table_is_an_asset(project: Project) -> None:
    """Graph, tables and assets have the same names, edges and partitions."""
    graph = definitions_of(project.declarations).resolve_asset_graph()
    nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assert set(nodes) == set(NODES) == set(project.declarations.tables)
    edges = {name: {key.to_user_string() for key in node.parent_keys} for name, node in nodes.items()}
    assert edges == {name: set(node.inputs) for name, node in NODES.items()}
    cells = [name for name, node in nodes.items() if isinstance(node.partitions_def, dg.MultiPartitionsDefinition)]
    assert {"annotations", "ner_models", "evaluation"} <= set(cells)


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
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The Dagster UI on a small project, as `dagster dev -w workspace.yaml` serves it on loopback."""
    from assets_tests.projects import write_project

    root = write_project(tmp_path_factory.mktemp("ui") / "project")
    home = root / "dagster_home"
    home.mkdir()
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
        os.killpg(process.pid, signal.SIGTERM)
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
STATUS = """
query status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}
"""


def test_the_ui_shows_the_graph_and_makes_assets(ui: tuple[str, Path]) -> None:
    """The code location loads; materialising from the UI fills the warehouse as a build does."""
    url, root = ui
    found = _ask(url, "{ assetNodes { assetKey { path } groupName } }")["assetNodes"]
    assert {node["assetKey"]["path"][0] for node in found} == set(NODES)
    keys = [{"path": [name]} for name in ("gold_documents", "gold_spans")]
    launched = _ask(url, LAUNCH, backfill={"assetSelection": keys, "allPartitions": True})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def is_done() -> bool:
        status = _ask(url, STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        assert status["status"] not in ("FAILED", "COMPLETED_FAILED"), status
        return bool(status["status"] in ("COMPLETED", "COMPLETED_SUCCESS"))

    _wait_for(is_done, "the backfill is done")
    project = Project(load(root, "demo"))
    assert project.warehouse.query("select count(*) as documents from gold_documents") == [{"documents": 20}]
