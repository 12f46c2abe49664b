"""The warehouse replaces partitions whole, and reads while others write."""

import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from estner_assets.declarations import declarations_folder, project_root
from estner_assets.resources.lineage import Input, Materialization, Partition, SettingVersion
from estner_assets.resources.locks import LockTimeoutError, file_lock
from estner_assets.resources.warehouse import Warehouse
from estner_assets.tables import Column, read_table

TABLES = {path.stem: read_table(path) for path in (declarations_folder(project_root()) / "tables").glob("*.yaml")}
CELL = Partition("predictions", "lexicon", "none")


def made(partition: Partition, version: str, *inputs: Input, run_id: str = "run") -> Materialization:
    return Materialization(partition, version, "1", run_id, datetime(2024, 1, 1, tzinfo=UTC), 0.5, inputs)


def prediction(document: str, start: int = 0) -> dict[str, object]:
    return {
        "system": "tagger",
        "document_id": document,
        "start_char": start,
        "end_char": start + 4,
        "label": "DRUG",
        "text": "Enap",
        "confidence": 0.5,
    }


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "estner.duckdb", TABLES, timeout_s=5)


def test_reading_makes_nothing(warehouse: Warehouse) -> None:
    """A warehouse that does not exist reads as empty and still does not exist afterwards."""
    assert warehouse.query("select * from leaderboard") == []
    assert warehouse.current() == {}
    assert not warehouse.path.exists()


def test_publishing_replaces_one_partition(warehouse: Warehouse) -> None:
    """Rows of the same partition are replaced, those of others stay; every row carries its provenance."""
    other = Partition("predictions", "gpt", "zero_shot")
    warehouse.publish(made(CELL, "v1"), [prediction("a"), prediction("b")], [])
    warehouse.publish(made(other, "v2"), [prediction("a")], [])
    warehouse.publish(made(CELL, "v3", run_id="later"), [prediction("c")], [])
    found = warehouse.query("select annotator, prompt, run_id, data_version, document_id from predictions order by all")
    assert [tuple(row.values()) for row in found] == [
        ("gpt", "zero_shot", "run", "v2", "a"),
        ("lexicon", "none", "later", "v3", "c"),
    ]


def test_lineage_keeps_every_making(warehouse: Warehouse) -> None:
    """The current materialization is the last one; the earlier one stays readable with its inputs."""
    old = Input("setting", "tagger", "", "", "s1")
    new = Input("asset", "records", "", "", "r1")
    setting = SettingVersion("tagger", "", "", "s1", '{"epochs": 1}')
    warehouse.publish(made(CELL, "v1", old), [prediction("a")], [setting])
    warehouse.publish(made(CELL, "v2", new), [prediction("a")], [])
    assert warehouse.current() == {CELL: made(CELL, "v2", new)}
    history = warehouse.query("select data_version, is_current, inputs from lineage order by data_version")
    assert [(row["data_version"], row["is_current"], row["inputs"][0]["version"]) for row in history] == [
        ("v1", False, "s1"),
        ("v2", True, "r1"),
    ]
    assert warehouse.setting_contents(["s1"]) == {"s1": '{"epochs": 1}'}


def test_a_failed_write_leaves_the_last_good_rows(warehouse: Warehouse) -> None:
    """A row that breaks a declared column rolls the whole partition back."""
    warehouse.publish(made(CELL, "v1"), [prediction("a")], [])
    with pytest.raises(duckdb.ConstraintException, match="NOT NULL"):
        warehouse.publish(made(CELL, "v2"), [prediction("b") | {"label": None}], [])
    assert [row["data_version"] for row in warehouse.query("select * from predictions")] == ["v1"]
    assert warehouse.current() == {CELL: made(CELL, "v1")}


def test_changed_columns_empty_the_table_and_make_it_missing(warehouse: Warehouse) -> None:
    """Rows of another shape never pass for current; they go with the next write, and reading changes nothing."""
    warehouse.publish(made(CELL, "v1"), [prediction("a")], [])
    spans = Partition("gold_spans")
    row = {"document_id": "a", "start_char": 0, "end_char": 4, "label": "DRUG", "text": "Enap"}
    warehouse.publish(made(spans, "v1"), [row], [])
    table = TABLES["predictions"]
    columns = table.columns | {"remark": Column(type="varchar", description="A new column.", nullable=True)}
    changed = TABLES | {"predictions": table.model_copy(update={"columns": columns})}
    later = Warehouse(warehouse.path, changed)
    assert set(later.current()) == {spans}
    assert len(later.query("select * from predictions")) == 1
    later.publish(made(spans, "v2"), [row, row | {"start_char": 9}], [])
    assert set(later.current()) == {spans}
    assert later.query("select * from predictions") == []
    assert len(later.query("select * from gold_spans")) == 2


def test_describe_explains_itself(warehouse: Warehouse) -> None:
    """Every table and every column has a comment."""
    warehouse.publish(made(CELL, "v1"), [prediction("a")], [])
    silent = warehouse.query(
        "select table_name, column_name from duckdb_columns() where comment is null "
        f"and list_contains({sorted(TABLES)}, table_name)"
    )
    tables = warehouse.query("select table_name from duckdb_tables() where comment is null")
    assert (silent, [row["table_name"] for row in tables]) == ([], ["warehouse_schema"])


def _write_rows(path: Path, annotator: str, times: int) -> None:
    warehouse = Warehouse(path, TABLES)
    for number in range(times):
        warehouse.publish(made(Partition("predictions", annotator, "none"), f"v{number}"), [prediction("a")], [])


def test_writers_and_readers_share_the_file(warehouse: Warehouse) -> None:
    """Several processes write at once while others read read-only: no error, no lost row."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_rows, args=(warehouse.path, f"a{one}", 8)) for one in range(3)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        warehouse.query("select * from predictions")
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert reads > 10
    found = warehouse.query("select annotator, data_version from predictions order by 1")
    assert [tuple(row.values()) for row in found] == [("a0", "v7"), ("a1", "v7"), ("a2", "v7")]


def _write_for_ever(path: Path) -> None:
    _write_rows(path, "lexicon", 10**6)


def test_a_killed_writer_leaves_a_whole_state(warehouse: Warehouse) -> None:
    """Kill −9 during writes: the database opens, rows and lineage belong together, and the lock is free."""
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(warehouse.path,))
    writer.start()
    deadline = time.monotonic() + 60
    while not warehouse.query("select * from predictions"):
        assert time.monotonic() < deadline
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    rows = warehouse.query("select data_version from predictions")
    current = warehouse.current()
    assert [row["data_version"] for row in rows] == [current[CELL].data_version]
    warehouse.publish(made(CELL, "after"), [prediction("z")], [])
    assert warehouse.current()[CELL].data_version == "after"


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    """Who waits in vain learns which process holds the lock."""
    with (
        file_lock(tmp_path / "lock", exclusive=True, timeout_s=1),
        pytest.raises(LockTimeoutError, match=f"last by process {os.getpid()}"),
        file_lock(tmp_path / "lock", exclusive=False, timeout_s=0.1),
    ):
        pass


def _write_beyond_the_disk(path: Path) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = path.stat().st_size + 200_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rows = [prediction(f"{number}-{os.urandom(200).hex()}") for number in range(20_000)]
    Warehouse(path, TABLES).publish(made(CELL, "v2"), rows, [])


def test_a_full_disk_leaves_the_last_good_rows(warehouse: Warehouse) -> None:
    """A write that finds no room fails; the database opens with what it held before, and takes new rows."""
    warehouse.publish(made(CELL, "v1"), [prediction("a")], [])
    writer = multiprocessing.get_context("spawn").Process(target=_write_beyond_the_disk, args=(warehouse.path,))
    writer.start()
    writer.join()
    assert writer.exitcode != 0
    assert [row["data_version"] for row in warehouse.query("select * from predictions")] == ["v1"]
    warehouse.publish(made(CELL, "v3"), [prediction("b")], [])
    assert warehouse.current()[CELL].data_version == "v3"
