"""The warehouse's schema: declared tables, the tables of lineage, and views; all with comments."""

import hashlib
from collections.abc import Mapping

import duckdb

from estner_assets.tables import PROVENANCE_COLUMNS, Table

_WHOLE = "(all)"

_LINEAGE_TABLES = """
create table if not exists warehouse_schema (name varchar primary key, version varchar not null);
create table if not exists materializations (
    materialization_id varchar primary key,
    asset varchar not null,
    annotator varchar not null,
    prompt varchar not null,
    data_version varchar not null,
    code_version varchar not null,
    run_id varchar not null,
    materialized_at timestamptz not null,
    duration_s double not null,
    row_count bigint not null,
    is_current boolean not null
);
create table if not exists materialization_inputs (
    materialization_id varchar not null,
    kind varchar not null,
    name varchar not null,
    annotator varchar not null,
    prompt varchar not null,
    version varchar not null
);
create table if not exists declaration_versions (
    name varchar not null,
    annotator varchar not null,
    prompt varchar not null,
    version varchar not null,
    content varchar not null,
    first_used_at timestamptz not null,
    primary key (name, annotator, prompt, version)
);
comment on table materializations is 'One row per making of an asset partition; is_current marks the last.';
comment on table materialization_inputs is
    'One row per version of an asset partition or a setting that a materialization was made from.';
comment on table declaration_versions is
    'One row per version of a prompt, an annotator or a setting that was ever used, with its content as JSON.';
"""

_VIEWS = """
create or replace view lineage as
with inputs as (
    select
        materialization_id,
        list({kind: kind, name: name, annotator: annotator, prompt: prompt, version: version}
             order by kind, name, annotator, prompt) as inputs
    from materialization_inputs
    group by materialization_id
)
select
    m.asset, m.annotator, m.prompt, m.data_version, m.code_version, m.run_id, m.materialized_at,
    m.duration_s, m.row_count, m.is_current, i.inputs, m.materialization_id
from materializations m left join inputs i using (materialization_id);
comment on view lineage is
    'Every making of every asset partition, with the versions of all its inputs; is_current marks the last.';

create or replace view spans as
select
    a.annotator, a.prompt, a.note_id, m.label, m.text, m.start_char, m.end_char, m.answered, m.grounding,
    m.score, a.run_id, a.data_version
from annotations a, unnest(a.mentions) as t(m);
comment on view spans is 'One row per mention that a cell''s annotator answered, with its grounding.';

create or replace view cells as
select
    a.annotator, a.prompt,
    count(*) as notes,
    count(*) filter (where a.status = 'annotated') as annotated,
    count(*) filter (where a.status <> 'annotated') as not_annotated,
    sum(len(a.mentions)) as mentions,
    sum(len(list_filter(a.mentions, lambda m: m.start_char is not null))) as grounded,
    sum(a.prompt_tokens) as prompt_tokens,
    sum(a.completion_tokens) as completion_tokens
from annotations a
group by a.annotator, a.prompt;
comment on view cells is 'One row per cell: what became of its notes and of the mentions answered.';

create or replace view models as
select 'generator' as kind, null as annotator, null as prompt, model_id, folder, parameters from generator
union all
select 'tagger', annotator, prompt, model_id, folder, parameters from ner_models;
comment on view models is 'One row per model in use, and the folder of its files.';
"""


def version(tables: Mapping[str, Table]) -> str:
    """Return a hash of everything that ``migrate`` would make."""
    parts = [_create(table) + _comments(table) for table in tables.values()]
    return _hash("".join([*parts, _LINEAGE_TABLES, _VIEWS]))


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
    connection.execute(_LINEAGE_TABLES)
    for view in ("lineage", "spans", "cells", "models"):
        connection.execute(f"drop view if exists {view}")
    known = _versions(connection)
    versions = {table.name: _hash(_create(table)) for table in tables.values()}
    for table in tables.values():
        if known.get(table.name) != versions[table.name]:
            connection.execute(f"drop table if exists {table.name}")
            connection.execute("update materializations set is_current = false where asset = ?", [table.name])
            connection.execute(_create(table))
        connection.execute(_comments(table))
    connection.execute(_VIEWS)
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
