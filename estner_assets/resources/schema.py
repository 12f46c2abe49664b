"""The warehouse's schema: declared tables, the tables of lineage, and views; all with comments."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import duckdb

from estner_assets.tables import PROVENANCE_COLUMNS, Table

_WHOLE = "(all)"

_VIEWS = ("lineage", "spans", "cells", "models", "leaderboard_history")
_MACROS = ("ancestry", "provenance_of", "leaderboard_changes", "leaderboard_sources", "leaderboard_causes")


@cache
def _sql(name: str) -> str:
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def version(tables: Mapping[str, Table]) -> str:
    """Return a hash of everything that ``migrate`` would make."""
    parts = [_create(table) + _comments(table) for table in tables.values()]
    return _hash("".join([*parts, _sql("lineage"), _sql("views")]))


def current_version(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Return the version that the database was made with, or None where it has none."""
    known = connection.execute(
        "select count(*) from information_schema.tables where table_name = 'warehouse_schema'"
    ).fetchall()
    return _versions(connection).get(_WHOLE) if known[0][0] else None


def migrate(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table], wanted: str) -> None:
    """Bring the database to the declared schema.

    A table whose columns changed starts empty and its asset counts as missing, so that the next build fills it;
    rows of another shape are never passed off as current ones.
    """
    connection.execute(_sql("lineage"))
    for macro in reversed(_MACROS):
        connection.execute(f"drop macro table if exists {macro}")
    for view in reversed(_VIEWS):
        connection.execute(f"drop view if exists {view}")
    known = _versions(connection)
    versions = {table.name: _hash(_create(table)) for table in tables.values()}
    for table in tables.values():
        if known.get(table.name) != versions[table.name]:
            connection.execute(f"drop table if exists {table.name}")
            connection.execute("update materializations set is_current = false where asset = ?", [table.name])
            connection.execute(_create(table))
        connection.execute(_comments(table))
    connection.execute(_sql("views"))
    for name, value in (versions | {_WHOLE: wanted}).items():
        connection.execute("insert or replace into warehouse_schema values (?, ?)", [name, value])


def tables_in_shape(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Table]) -> set[str]:
    """Return the tables that have the declared columns."""
    known = _versions(connection)
    return {table.name for table in tables.values() if known.get(table.name) == _hash(_create(table))}


def _versions(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return dict(connection.execute("select name, version from warehouse_schema").fetchall())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _provenance(table: Table) -> dict[str, str]:
    return dict.fromkeys((*table.partition_columns, *PROVENANCE_COLUMNS), "varchar")


def _create(table: Table) -> str:
    provenance = [f"{name} {type_} not null" for name, type_ in _provenance(table).items()]
    columns = [
        f"{name} {column.type}{'' if column.nullable else ' not null'}" for name, column in table.columns.items()
    ]
    return f"create table {table.name} (\n    " + ",\n    ".join(provenance + columns) + "\n);\n"


def _comments(table: Table) -> str:
    described = {
        "annotator": "The annotator of the cell.",
        "prompt": "The prompt of the cell.",
        "run_id": "The run that made the row.",
        "data_version": "Content hash of the partition that the row belongs to.",
    }
    statements = [f"comment on table {table.name} is {_quoted(f'{table.grain} {table.description.strip()}')};"]
    texts = {name: described[name] for name in _provenance(table)}
    texts |= {name: column.description for name, column in table.columns.items()}
    statements += [f"comment on column {table.name}.{name} is {_quoted(text)};" for name, text in texts.items()]
    return "\n".join(statements)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
