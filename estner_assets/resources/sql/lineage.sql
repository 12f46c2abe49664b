-- The tables of lineage: what was made when, from which versions. They outlive every change of the declared tables.
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
alter table materializations add column if not exists retired_at timestamptz;

create table if not exists materialization_inputs (
    materialization_id varchar not null,
    kind varchar not null,
    name varchar not null,
    annotator varchar not null,
    prompt varchar not null,
    version varchar not null
);
alter table materialization_inputs add column if not exists source_id varchar;
-- databases from before this column: the last making of the version that was read, as it is noted today
update materialization_inputs i set source_id = (
    select max_by(s.materialization_id, s.materialized_at)
    from materializations s join materializations m on m.materialization_id = i.materialization_id
    where s.asset = i.name and s.annotator = i.annotator and s.prompt = i.prompt and s.data_version = i.version
        and s.materialized_at <= m.materialized_at
)
where i.kind = 'asset' and i.source_id is null;

create table if not exists declaration_versions (
    name varchar not null,
    annotator varchar not null,
    prompt varchar not null,
    version varchar not null,
    content varchar not null,
    first_used_at timestamptz not null,
    primary key (name, annotator, prompt, version)
);

create table if not exists past_rows (materialization_id varchar not null, content json not null);

comment on table materializations is 'One row per making of an asset partition; is_current marks the last.';
comment on column materializations.retired_at is
    'When a build first saw that the prompt, the annotator or the cell is no longer declared; null while it is.';
comment on table materialization_inputs is
    'One row per version of an asset partition or a setting that a materialization was made from.';
comment on column materialization_inputs.source_id is
    'The materialization that the version was read from; null for settings.';
comment on table declaration_versions is
    'One row per version of a prompt, an annotator or a setting that was ever used, with its content as JSON.';
comment on table past_rows is
    'One row per row that a table with `keeps_history` ever held, as JSON, by the materialization that made it.';
