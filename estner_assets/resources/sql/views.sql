create view lineage as
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
    m.duration_s, m.row_count, m.is_current, m.retired_at, i.inputs, m.materialization_id
from materializations m left join inputs i using (materialization_id);
comment on view lineage is
    'Every making of every asset partition, with the versions of all its inputs; is_current marks the last.';

create view spans as
select
    a.annotator, a.prompt, a.note_id, m.label, m.text, m.start_char, m.end_char, m.answered, m.grounding,
    m.score, m.confidence, a.run_id, a.data_version
from annotations a, unnest(a.mentions) as t(m);
comment on view spans is 'One row per mention that a cell''s annotator answered, with its grounding.';

create view cells as
with notes as (
    select
        annotator, prompt,
        count(*) as notes,
        count(*) filter (where status = 'annotated') as annotated,
        count(*) filter (where status = 'refused') as refused,
        count(*) filter (where status = 'malformed') as malformed,
        count(*) filter (where status = 'truncated') as truncated,
        count(*) filter (where status = 'filtered') as filtered,
        count(*) filter (where status = 'timed_out') as timed_out,
        count(*) filter (where status = 'failed') as failed,
        count(*) filter (where status = 'over_budget') as over_budget,
        count(*) filter (where status = 'pending') as pending,
        sum(prompt_tokens)::bigint as prompt_tokens,
        sum(completion_tokens)::bigint as completion_tokens,
        case when count(cost) = count(*) then sum(cost) end as cost,
        any_value(currency) as currency
    from annotations
    group by annotator, prompt
),
mentions as (
    select
        annotator, prompt,
        count(*) as mentions,
        count(*) filter (where grounding in ('exact', 'inflected', 'compound', 'fuzzy', 'overlapping')) as grounded,
        count(*) filter (where grounding = 'overlapping') as overlapping,
        count(*) filter (where grounding = 'ambiguous') as ambiguous,
        count(*) filter (where grounding = 'absent') as absent
    from spans
    group by annotator, prompt
)
select
    n.annotator, n.prompt, n.notes, n.annotated, n.refused, n.malformed, n.truncated, n.filtered, n.timed_out,
    n.failed, n.over_budget, n.pending, n.notes - n.annotated as not_annotated,
    coalesce(m.mentions, 0) as mentions, coalesce(m.grounded, 0) as grounded,
    coalesce(m.overlapping, 0) as overlapping, coalesce(m.ambiguous, 0) as ambiguous, coalesce(m.absent, 0) as absent,
    n.prompt_tokens, n.completion_tokens, n.cost, n.currency, l.retired_at is not null as is_retired
from notes n
left join mentions m on m.annotator = n.annotator and m.prompt = n.prompt
join materializations l on l.is_current and l.asset = 'annotations'
    and l.annotator = n.annotator and l.prompt = n.prompt;
comment on view cells is
    'The ledger, one row per cell: what became of its notes and of the mentions answered; retired ones are no longer
declared. grounded counts mentions found in the note; of these, overlapping ones gave way to a longer one.';

create view models as
select 'generator' as kind, null as annotator, null as prompt, model_id, folder, parameters from generator
union all
select 'tagger', annotator, prompt, model_id, folder, parameters from ner_models;
comment on view models is 'One row per model in use, and the folder of its files.';

create view leaderboard_history as
select
    m.materialized_at, m.run_id, m.data_version, m.is_current,
    r.content ->> 'annotator' as annotator,
    r.content ->> 'prompt' as prompt,
    r.content ->> 'system' as system,
    r.content ->> 'entity' as entity,
    r.content ->> 'status' as status,
    (r.content ->> 'rank')::integer as rank,
    (r.content ->> 'precision')::double as precision,
    (r.content ->> 'recall')::double as recall,
    (r.content ->> 'f1')::double as f1,
    (r.content ->> 'f1_low')::double as f1_low,
    (r.content ->> 'f1_high')::double as f1_high
from past_rows r join materializations m using (materialization_id)
where m.asset = 'leaderboard';
comment on view leaderboard_history is 'Every leaderboard ever made: its rows, by the run that made them.';

-- A recursion that starts at one making stays small, however many cells the warehouse holds.
create macro ancestry(id) as table
with recursive chain as (
    select id as materialization_id, 0 as depth
    union
    select i.source_id, c.depth + 1
    from chain c join materialization_inputs i using (materialization_id)
    where i.source_id is not null
),
made as (
    select materialization_id, max(depth) as depth from chain group by materialization_id
)
select
    d.depth, 'asset' as kind, m.asset as name, m.annotator, m.prompt, m.data_version as version,
    null as content, m.asset as reaches, m.code_version, m.run_id, m.materialized_at, m.is_current,
    m.materialization_id
from made d join materializations m using (materialization_id)
union all
select
    d.depth + 1, 'setting', i.name, i.annotator, i.prompt, i.version,
    v.content, m.asset, m.code_version, m.run_id, m.materialized_at, m.is_current, m.materialization_id
from made d
join materializations m using (materialization_id)
join materialization_inputs i using (materialization_id)
left join declaration_versions v
    on v.name = i.name and v.annotator = i.annotator and v.prompt = i.prompt and v.version = i.version
where i.kind = 'setting';
comment on macro table ancestry is
    'Everything that one making (a materialization_id) came from: the makings of assets, and the settings that reached them.';

create macro provenance_of(asset_name, annotator_key, prompt_key) as table
from ancestry((
    select materialization_id from materializations
    where is_current and asset = asset_name and annotator = annotator_key and prompt = prompt_key
));
comment on macro table provenance_of is
    'The whole chain behind an asset partition as it is now; empty keys where the asset has no such partition.';

create macro leaderboard_changes(earlier_run, later_run) as table
with before as (select * from leaderboard_history where run_id = earlier_run),
after as (select * from leaderboard_history where run_id = later_run)
select
    annotator, prompt, system, entity,
    b.status as status_before, a.status as status_after,
    b.f1 as f1_before, a.f1 as f1_after, a.f1 - b.f1 as change,
    b.rank as rank_before, a.rank as rank_after
from before b full join after a using (annotator, prompt, system, entity)
where (b.f1, b.status) is distinct from (a.f1, a.status);
comment on macro table leaderboard_changes is
    'The scores that differ between two leaderboards, which are named by the runs that made them.';

create macro leaderboard_sources(run) as table
with found as (
    from ancestry((select materialization_id from materializations where asset = 'leaderboard' and run_id = run))
)
select name as setting, annotator, prompt, list_sort(list(distinct version)) as versions, any_value(content) as content
from found where kind = 'setting' group by all
union all
select 'code of ' || name, annotator, prompt, list_sort(list(distinct code_version)), null
from found where kind = 'asset' group by all;
comment on macro table leaderboard_sources is
    'The settings, and the versions of the code, that reached the leaderboard which a run made.';

create macro leaderboard_causes(earlier_run, later_run) as table
select
    setting, annotator, prompt,
    b.versions as versions_before, a.versions as versions_after,
    b.content as content_before, a.content as content_after
from leaderboard_sources(earlier_run) b full join leaderboard_sources(later_run) a using (setting, annotator, prompt)
where b.versions is distinct from a.versions;
comment on macro table leaderboard_causes is
    'The prompts, annotators, settings and code that differ between what two leaderboards were made from.';
