"""The warehouse: one DuckDB file that holds every table, and the lineage of every row in it.

Nobody keeps it open while computing. Readers share a file lock and open it read-only, a writer takes the lock
alone for one short transaction that replaces a partition together with its lineage.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from estner_assets.resources import lineage, schema
from estner_assets.resources.lineage import Materialization, Partition, SettingVersion
from estner_assets.resources.locks import file_lock
from estner_assets.tables import Row, Table


class WarehouseError(RuntimeError):
    """A database that cannot be used; the message says what to do."""


class WarehouseBusyError(WarehouseError):
    """Another program keeps the database open."""


class Warehouse:
    """Reads and replaces tables, never half."""

    def __init__(self, path: Path, tables: Mapping[str, Table], timeout_s: float = 600.0) -> None:
        self.path = path
        self.tables = tables
        self.timeout_s = timeout_s
        self._schema_version = schema.version(tables)
        self._held = threading.local()

    # --- connections --------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the database read-only; one that was never written to reads as empty and is not made.

        Within the block, further readings of the same thread see the same state through the same connection.
        """
        held: duckdb.DuckDBPyConnection | None = getattr(self._held, "connection", None)
        if held is not None:
            yield held
            return
        with self._opened_or_empty() as connection:
            self._held.connection = connection
            try:
                yield connection
            finally:
                self._held.connection = None

    @contextmanager
    def _opened_or_empty(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self.path.exists():
            with self._opened(exclusive=False) as connection:
                if schema.current_version(connection) is not None:
                    yield connection
                    return
        with duckdb.connect(":memory:") as empty:
            schema.migrate(empty, self.tables, self._schema_version)
            yield empty

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the database for one transaction, which an exception rolls back."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened(exclusive=True) as connection:
            connection.begin()
            try:
                if schema.current_version(connection) != self._schema_version:
                    schema.migrate(connection, self.tables, self._schema_version)
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _opened(self, exclusive: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Connect under the lock; while somebody else keeps the file open, wait without holding up the others."""
        deadline = time.monotonic() + self.timeout_s
        lock = self.path.with_suffix(".lock")
        while True:
            with file_lock(lock, exclusive=exclusive, timeout_s=self.timeout_s):
                connection = self._connect(read_only=not exclusive, is_last_try=time.monotonic() > deadline)
                if connection is not None:
                    try:
                        yield connection
                    finally:
                        connection.close()
                    return
            time.sleep(0.2)

    def _connect(self, read_only: bool, is_last_try: bool) -> duckdb.DuckDBPyConnection | None:
        try:
            return duckdb.connect(str(self.path), read_only=read_only)
        except duckdb.IOException as error:
            # A program outside this project, a database browser say, may hold the file without our lock.
            if "lock" not in str(error).lower():
                raise WarehouseError(
                    f"{self.path} cannot be opened ({error}); put a copy of it back, or move it away and build anew"
                ) from error
            if is_last_try:
                raise WarehouseBusyError(
                    f"{self.path} has been kept open by another program for {self.timeout_s:.0f} s; close it there "
                    f"and run this again. DuckDB says: {error}"
                ) from error
            return None

    # --- rows ---------------------------------------------------------------------------------------

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query as dicts."""
        with self.reading() as connection:
            return fetch(connection, sql, parameters)

    def publish(self, made: Materialization, rows: Sequence[Row], settings: Sequence[SettingVersion]) -> None:
        """Replace the partition's rows and its lineage in one transaction."""
        table = self.tables[made.partition.asset]
        with self.writing() as connection:
            _replace_rows(connection, table, made, rows)
            lineage.record(connection, made, rows, settings, table.keeps_history)

    # --- lineage ------------------------------------------------------------------------------------

    def current(self) -> dict[Partition, Materialization]:
        """Return the current materialization of every asset partition, with its inputs.

        A table that another version of the declarations shaped counts as never made.
        """
        with self.reading() as connection:
            usable = schema.tables_in_shape(connection, self.tables)
            return lineage.current_materializations(connection, usable)

    def is_of_this_version(self) -> bool:
        """Whether the database has today's schema; the next build brings it up to date."""
        with self.reading() as connection:
            return schema.current_version(connection) == self._schema_version

    def retire(self, declared: Iterable[Partition]) -> None:
        """Mark as retired whatever is not among the declared partitions; its rows and its history stay."""
        if self.path.exists():
            with self.writing() as connection:
                lineage.retire(connection, declared, now())

    def model_folders(self) -> dict[Partition, str]:
        """Return where the files of every model in use lie, relative to the project."""
        rows = self.query("select kind, annotator, prompt, folder from models")
        assets = {"generator": "generator", "tagger": "ner_models"}
        return {
            Partition(assets[row["kind"]], row["annotator"] or "", row["prompt"] or ""): row["folder"] for row in rows
        }

    def setting_contents(self, versions: Sequence[str]) -> dict[str, str]:
        """Return the JSON content behind versions of settings."""
        rows = self.query(
            "select version, content from declaration_versions where list_contains(?, version)", [list(versions)]
        )
        return {row["version"]: row["content"] for row in rows}


def fetch(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """Return the rows of a query as dicts."""
    cursor = connection.execute(sql, list(parameters))
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def now() -> datetime:
    """Return the time that lineage records."""
    return datetime.now(UTC)


def _replace_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, made: Materialization, rows: Sequence[Row]
) -> None:
    keys = {name: getattr(made.partition, name) for name in table.partition_columns}
    condition = " and ".join(f"{name} = ?" for name in keys) or "true"
    connection.execute(f"delete from {table.name} where {condition}", list(keys.values()))
    if not rows:
        return
    provenance = keys | {"run_id": made.run_id, "data_version": made.data_version}
    new_rows = pa.Table.from_pylist([{name: row[name] for name in table.columns} for row in rows])
    columns = [*provenance, *table.columns]
    values = ["?" for _ in provenance] + [f"cast({name} as {one.type})" for name, one in table.columns.items()]
    connection.register("new_rows", new_rows)
    connection.execute(
        f"insert into {table.name} ({', '.join(columns)}) select {', '.join(values)} from new_rows",
        list(provenance.values()),
    )
    connection.unregister("new_rows")
