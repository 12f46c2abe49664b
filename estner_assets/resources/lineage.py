"""Lineage: what was made from which versions. Written in the transaction that writes the rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from estner_assets.tables import Row


@dataclass(frozen=True, order=True, slots=True)
class Partition:
    """A partition of an asset; both keys are empty where the asset is not partitioned by them."""

    asset: str
    annotator: str = ""
    prompt: str = ""

    def __str__(self) -> str:
        key = "/".join(part for part in (self.annotator, self.prompt) if part)
        return f"{self.asset}[{key}]" if key else self.asset


@dataclass(frozen=True, order=True, slots=True)
class Input:
    """What an asset partition was made from: a version of another one, or of a slice of the declarations."""

    kind: str
    name: str
    annotator: str
    prompt: str
    version: str

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return (self.kind, self.name, self.annotator, self.prompt)


@dataclass(frozen=True, slots=True)
class Materialization:
    """One making of an asset partition."""

    partition: Partition
    data_version: str
    code_version: str
    run_id: str
    materialized_at: datetime
    duration_s: float
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class SettingVersion:
    """The content behind the version of a setting."""

    name: str
    annotator: str
    prompt: str
    version: str
    content: str


def current_materializations(
    connection: duckdb.DuckDBPyConnection, usable: set[str]
) -> dict[Partition, Materialization]:
    """Return the last making of every partition of the usable assets, with its inputs."""
    inputs: dict[str, list[Input]] = {}
    for identity, *values in connection.execute(
        "select i.materialization_id, i.kind, i.name, i.annotator, i.prompt, i.version "
        "from materialization_inputs i semi join materializations m "
        "on m.materialization_id = i.materialization_id and m.is_current"
    ).fetchall():
        inputs.setdefault(identity, []).append(Input(*values))
    made = connection.execute(
        "select materialization_id, asset, annotator, prompt, data_version, code_version, run_id, "
        "materialized_at, duration_s from materializations where is_current"
    ).fetchall()
    current: dict[Partition, Materialization] = {}
    for identity, asset, annotator, prompt, version, code_version, run_id, made_at, duration_s in made:
        if asset in usable:
            partition = Partition(asset, annotator, prompt)
            sources = tuple(sorted(inputs.get(identity, ())))
            current[partition] = Materialization(partition, version, code_version, run_id, made_at, duration_s, sources)
    return current


def record(
    connection: duckdb.DuckDBPyConnection,
    made: Materialization,
    rows: Sequence[Row],
    settings: Sequence[SettingVersion],
    keeps_rows: bool,
) -> None:
    """Make this the current materialization of its partition, and keep its rows as history where that is declared."""
    identity = connection.execute("select uuid()::varchar").fetchall()[0][0]
    partition = made.partition
    keys = [partition.asset, partition.annotator, partition.prompt]
    connection.execute(
        "update materializations set is_current = false "
        "where is_current and asset = ? and annotator = ? and prompt = ?",
        keys,
    )
    versions = [made.data_version, made.code_version, made.run_id, made.materialized_at, made.duration_s]
    connection.execute(
        "insert into materializations values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, true, null)",
        [identity, *keys, *versions, len(rows)],
    )
    _record_inputs(connection, identity, made.inputs)
    if settings:
        columns = ("name", "annotator", "prompt", "version", "content")
        table = pa.Table.from_pylist([{name: getattr(one, name) for name in columns} for one in settings])
        _insert(
            connection,
            table,
            "insert or ignore into declaration_versions by name select *, ? as first_used_at",
            [made.materialized_at],
        )
    if keeps_rows and rows:
        table = pa.Table.from_pylist(list(rows))
        _insert(connection, table, "insert into past_rows select ?, to_json(new_rows)", [identity])


def _record_inputs(connection: duckdb.DuckDBPyConnection, identity: str, inputs: Sequence[Input]) -> None:
    """Note the inputs, each asset's with the making that it was read from: the last one of that version."""
    if not inputs:
        return
    columns = ("kind", "name", "annotator", "prompt", "version")
    table = pa.Table.from_pylist([{name: getattr(one, name) for name in columns} for one in inputs])
    _insert(
        connection,
        table,
        """
        insert into materialization_inputs
        select ?, r.kind, r.name, r.annotator, r.prompt, r.version, max_by(m.materialization_id, m.materialized_at)
        """,
        [identity],
        """
        r left join materializations m on r.kind = 'asset' and m.asset = r.name and m.annotator = r.annotator
            and m.prompt = r.prompt and m.data_version = r.version
        group by all
        """,
    )


def _insert(
    connection: duckdb.DuckDBPyConnection, table: pa.Table, head: str, parameters: Sequence[Any], tail: str = ""
) -> None:
    connection.register("new_rows", table)
    connection.execute(f"{head} from new_rows {tail}", list(parameters))
    connection.unregister("new_rows")


def retire(connection: duckdb.DuckDBPyConnection, declared: Iterable[Partition], now: datetime) -> None:
    """Mark the partitions that are declared no longer, and unmark those that are declared again."""
    columns = ("asset", "annotator", "prompt")
    table = pa.Table.from_pylist([{name: getattr(one, name) for name in columns} for one in declared])
    connection.register("declared", table)
    connection.execute(
        "update materializations set retired_at = ? where retired_at is null "
        "and (asset, annotator, prompt) not in (select (asset, annotator, prompt) from declared)",
        [now],
    )
    connection.execute(
        "update materializations set retired_at = null where retired_at is not null "
        "and (asset, annotator, prompt) in (select (asset, annotator, prompt) from declared)"
    )
    connection.unregister("declared")
