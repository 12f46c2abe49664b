"""The command line, as a person runs it: in a process of its own, on a project of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from assets_tests.commands import estner
from assets_tests.projects import edit_yaml, write_project

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project that was built with two worker processes on an instance on disk, and what the build printed."""
    root = write_project(tmp_path_factory.mktemp("cli") / "project")
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "annotation", "annotators", value=["lexicon", "gpt"])
    result = estner("build", "--jobs", "2", root=root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root, result.stdout


def test_check_says_what_is_declared(root: Path) -> None:
    """Right declarations end with 0 and one line."""
    result = estner("check", root=root)
    assert (result.returncode, result.stdout) == (
        0,
        "✓ profile demo: 2 entities, 3 annotators, 1 prompts, 2 cells\n",
    )


def test_check_lists_all_mistakes_and_runs_nothing(root: Path) -> None:
    """Mistakes end with 2, a line each, no traceback, and no file is made."""
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "tagger", "epochs", value="many")
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "sampling", "notes", value=-1)
    for command in ("check", "plan", "build", "leaderboard"):
        result = estner(command, root=root)
        assert result.returncode == 2
        assert [line.split(": ")[1] for line in result.stderr.splitlines()[:2]] == ["sampling.notes", "tagger.epochs"]
        assert "Traceback" not in result.stderr
    assert not (root / "data" / "warehouse").exists()


def test_plan_changes_nothing_and_programs_can_read_it(root: Path) -> None:
    """A plan of a new project lists everything as missing and makes no file, in under three seconds."""
    before = sorted(root.rglob("*"))
    started = time.monotonic()
    result = estner("plan", "--json", root=root)
    elapsed_s = time.monotonic() - started
    plan = json.loads(result.stdout)
    assert {step["state"] for step in plan["steps"]} == {"missing"}
    assert sorted(root.rglob("*")) == before
    assert elapsed_s < 10  # three on an idle machine; tests share theirs


def test_a_build_ends_with_a_leaderboard(built: tuple[Path, str]) -> None:
    """The build says how it went; the leaderboard names scores, what is not configured, database and report."""
    root, printed = built
    assert "21 built, 0 skipped, 0 failed" in printed
    result = estner("leaderboard", root=root)
    assert "lexicon/none  tagger" in result.stdout
    assert (
        "not scored gpt (zero_shot): not configured: set the environment variable ESTNER_TEST_UNSET_KEY"
        in result.stdout
    )
    assert "database: data/warehouse/estner.duckdb" in result.stdout
    assert "report:   data/reports/report.html" in result.stdout
    assert (root / "data" / "reports" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_instance_knows_every_materialization(built: tuple[Path, str]) -> None:
    """What DuckDB says was made, Dagster's event log says too, with the same data version."""
    import dagster as dg

    root, _ = built
    database = duckdb.connect(str(root / "data" / "warehouse" / "estner.duckdb"), read_only=True)
    made = database.execute("select asset, annotator, prompt, data_version from lineage where is_current").fetchall()
    database.close()
    with dg.DagsterInstance.from_config(str(root / "dagster_home")) as instance:
        for asset, annotator, prompt, version in made:
            key = "/".join(part for part in (annotator, prompt) if part) or None
            event = instance.get_latest_data_version_record(dg.AssetKey(asset), partition_key=key)
            assert event is not None, (asset, key)
            materialization = event.asset_materialization
            assert materialization is not None
            assert (materialization.tags or {})["dagster/data_version"] == version


def test_a_second_build_does_nothing(built: tuple[Path, str]) -> None:
    """Nothing changed, nothing made."""
    result = estner("build", root=built[0])
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "0 built, 0 skipped, 0 failed")


def test_the_database_answers_while_it_is_open_elsewhere(built: tuple[Path, str]) -> None:
    """Two readers at once, with DuckDB's own read-only mode."""
    path = str(built[0] / "data" / "warehouse" / "estner.duckdb")
    with duckdb.connect(path, read_only=True) as one, duckdb.connect(path, read_only=True) as other:
        query = "select count(*) from leaderboard"
        assert one.execute(query).fetchall() == other.execute(query).fetchall()


def test_why_prints_the_chain(built: tuple[Path, str]) -> None:
    """The scores, then what they came from, down to files and settings; for programs as JSON."""
    root, _ = built
    result = estner("why", "evaluation", "lexicon", "none", root=root)
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert lines[0].startswith("annotator ALL: strict F1 ")
    for words in ("ner_models[lexicon/none]", "tagger", "learning_rate: 0.01", "data/records.csv", "as above"):
        assert words in result.stdout
    nested = json.loads(estner("why", "evaluation", "lexicon", "none", "--json", root=root).stdout)
    assert nested["asset"] == "evaluation[lexicon/none]"
    unknown = estner("why", "evaluation", "gpt", "zero_shot", root=root)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "never made; there are evaluation[lexicon/none]" in unknown.stderr


def test_plans_and_builds_take_selections(built: tuple[Path, str]) -> None:
    """A dry run changes nothing; a misspelt word ends with 2 and what there is; a backfill makes a cell anew."""
    root, _ = built
    dry = estner("build", "--dry-run", "--select", "+report", root=root)
    assert (dry.returncode, dry.stdout.splitlines()[-1]) == (0, "everything is up to date")
    wrong = estner("plan", "--select", "reports", root=root)
    assert (wrong.returncode, "✗ 'reports' selects nothing; assets: agreement," in wrong.stderr) == (2, True)
    backfill = ("backfill", "--annotator", "lexicon", "--asset", "predictions")
    forced = estner(*backfill, "--dry-run", root=root).stdout.splitlines()
    assert [line.split(" · ")[0] for line in forced if not line.startswith("not scored")] == [
        "stale   predictions[lexicon/none]  asked for",
        "stale   evaluation[lexicon/none]  asked for; upstream predictions[lexicon/none]",
        "stale   leaderboard  upstream evaluation[lexicon/none]",
        "stale   report  upstream leaderboard",
        "4 to make",
    ]
    for arguments, said in (
        (("backfill",), "say whose cells"),
        (("plan", "--select", ""), "the selection is empty"),
        (("plan", "--annotator", "gpt"), "gpt/zero_shot cannot be made here: set the environment variable"),
        (("build", "--annotator", "reference"), "no cell of the profile demo has annotator reference; its cells: "),
        (("why", "nothing"), "there is no asset 'nothing'"),
    ):
        refused = estner(*arguments, root=root)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    done = estner(*backfill, root=root)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 built, 2 skipped, 0 failed")


def test_ctrl_c_leaves_a_state_to_go_on_from(root: Path) -> None:
    """Interrupted like at a terminal, a build ends with 130 and one line; the next one makes the rest."""
    command = [str(Path(sys.executable).with_name("estner")), "build", "--project", str(root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("✓ records"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; what was made is kept, and the next build goes on from there"
    assert "Traceback" not in said
    result = estner("build", "--select", "vetted_notes", "--upstream", root=root)
    assert result.returncode == 0
    assert "✓ records" not in result.stdout
    assert "✓ vetted_notes" in result.stdout
