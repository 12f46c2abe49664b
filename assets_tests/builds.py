"""Projects that are built once for all tests, on a real instance, a real DuckDB and a real HTTP server."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets_tests.llm.fake_openai import FakeOpenAI, Question, Reply, completion, fake_openai
from assets_tests.projects import ANNOTATORS, DRUGS, PROCEDURES, PROMPT, edit_yaml, write_project, write_yaml
from estner_assets.builder import Options, Outcome, build
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.resources.locks import file_lock

URL = "ESTNER_TEST_LLM_URL"
CELL_ASSETS = {"annotations", "ner_models", "predictions", "evaluation", "learning_curves"}
FINAL_ASSETS = {"leaderboard", "agreement", "reliability", "report"}


def answer_as_told(question: Question) -> Reply:
    """Answer with the terms that the note holds; a prompt that asks for drugs alone gets no procedures."""
    asked = question["messages"][-1]["content"]
    found = {
        "DRUG": [drug for drug in DRUGS if drug in asked],
        "PROCEDURE": [] if "drugs alone" in asked else [one for one in PROCEDURES if one in asked],
    }
    return completion(json.dumps(found))


@pytest.fixture(scope="session")
def server() -> Iterator[FakeOpenAI]:
    with fake_openai(answer_as_told) as fake:
        os.environ[URL] = fake.url
        yield fake
        del os.environ[URL]


def in_common(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first test process to come here fills, for all of them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with file_lock(base / f"{name}.lock", exclusive=True, timeout_s=600):
        folder = base / name
        if not folder.exists():
            incoming = base / f"{name}.incoming"
            make(incoming)
            incoming.rename(folder)
    return folder


@pytest.fixture(scope="session")
def built(server: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a rule-based and an LLM annotator, built once; tests work on copies."""
    return in_common(tmp_path_factory, "built", _build_first)


def _build_first(root: Path) -> None:
    write_project(root)
    stub = {
        "kind": "openai_compatible",
        "title": "A local server",
        "model": "stub",
        "base_url_env": URL,
        "prompts": ["zero_shot", "second"],
    }
    write_yaml(root / "declarations" / "annotators.yaml", ANNOTATORS | {"stub": stub})
    (root / "declarations" / "prompts" / "second.md").write_text(PROMPT, encoding="utf-8")
    profile = root / "declarations" / "profiles" / "demo.yaml"
    edit_yaml(profile, "annotation", "annotators", value=["lexicon", "stub", "gpt"])
    assert rebuild(root).failed == {}


@pytest.fixture(scope="session")
def undisturbed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project after a change of its records and a build that nothing disturbed."""

    def make(root: Path) -> None:
        shutil.copytree(built, root)
        change_records(root)
        assert rebuild(root).failed == {}

    return in_common(tmp_path_factory, "undisturbed", make)


@pytest.fixture
def copied(built: Path, server: FakeOpenAI, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(built, root)
    server.questions.clear()
    return root


def rebuild(root: Path, options: Options | None = None) -> Outcome:
    """Build on an instance that forgets: all that a build goes by stands in DuckDB."""
    with dg.DagsterInstance.ephemeral() as instance:
        return build(Project.open(root, "demo"), instance, lambda event: None, options)


def remade(root: Path, options: Options | None = None) -> set[str]:
    """Build and return what was made, as ``asset`` or ``asset[annotator/prompt]``."""
    outcome = rebuild(root, options)
    assert outcome.failed == {}
    assert outcome.held_back == {}
    return {str(partition) for partition in outcome.built}


def versions(root: Path) -> dict[Partition, tuple[str, str]]:
    """Return data version and run of every current asset partition."""
    current = Project.open(root, "demo").warehouse.current()
    return {partition: (made.data_version, made.run_id) for partition, made in current.items()}


def rows(root: Path, sql: str) -> list[dict[str, Any]]:
    return Project.open(root, "demo").warehouse.query(sql)


def edit_prompt(root: Path, key: str, body: str) -> None:
    path = root / "declarations" / "prompts" / f"{key}.md"
    path.write_text(PROMPT.replace("Answer with JSON.", body), encoding="utf-8")


def of_cell(assets: set[str], cell: str) -> set[str]:
    return {f"{asset}[{cell}]" for asset in assets}


def change_records(root: Path) -> None:
    records = root / "data" / "records.csv"
    records.write_text(records.read_text(encoding="utf-8").replace("Kaebusi ei ole", "Kaebusi pole"), encoding="utf-8")
