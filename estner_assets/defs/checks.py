"""Asset checks: the rules that the tables declare, and what must hold across tables."""

from collections.abc import Iterable

import dagster as dg

from estner_assets.declarations import Declarations
from estner_assets.defs.table_asset import ProjectResource
from estner_assets.ner.originality import near_duplicates
from estner_assets.resources.warehouse import Warehouse
from estner_assets.tables import Row, Table


def check_definitions(declarations: Declarations) -> list[dg.AssetChecksDefinition]:
    """Return all checks of the project."""
    return [*(_rules_check(table) for table in declarations.tables.values()), outside_records, ledger_balances]


def _rules_check(table: Table) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table.name,
        name="declared_rules",
        description=f"Unique keys, accepted values and references, as {table.name}.yaml declares them.",
    )
    def declared_rules(project: ProjectResource) -> dg.AssetCheckResult:
        broken = list(broken_rules(project.open().warehouse, table))
        sentence = "; ".join(broken) or "every row keeps the declared rules"
        return dg.AssetCheckResult(passed=not broken, description=sentence)

    return declared_rules


def broken_rules(warehouse: Warehouse, table: Table) -> Iterable[str]:
    """Yield a sentence for each declared rule that rows of the table break."""
    key = ", ".join([*(name for name in table.partition_columns if name not in table.key), *table.key])
    repeated = warehouse.query(f"select {key} from {table.name} group by all having count(*) > 1 limit 3")
    if repeated:
        yield f"{table.name}: ({key}) is not unique, for example {list(repeated[0].values())}"
    for name, column in table.columns.items():
        if column.accepted is not None:
            others = warehouse.query(
                f"select distinct {name} as value from {table.name} where not list_contains(?, {name}) limit 3",
                [column.accepted],
            )
            if others:
                yield f"{table.name}.{name}: {others[0]['value']!r} is not one of {', '.join(column.accepted)}"
        if column.references is not None:
            source, source_column = column.references.split(".")
            orphans = warehouse.query(
                f"select {name} as value from {table.name} anti join {source} on {name} = {source}.{source_column} "
                "limit 3"
                if name != source_column
                else f"select {name} as value from {table.name} anti join {source} using ({name}) limit 3"
            )
            if orphans:
                yield f"{table.name}.{name}: {orphans[0]['value']!r} does not stand in {column.references}"


@dg.asset_check(
    asset="leaderboard",
    additional_deps=["records", "gold_documents"],
    description="No gold note stands among the records: not the same text, nor nearly, nor of the same patient.",
)
def outside_records(project: ProjectResource) -> dg.AssetCheckResult:
    warehouse = project.open().warehouse
    sizes = warehouse.query("select (select count(*) from records) as r, (select count(*) from gold_documents) as g")[0]
    if not (sizes["r"] and sizes["g"]):
        return dg.AssetCheckResult(passed=False, description="records or gold notes are missing; materialise both")
    patients = warehouse.query(
        "select distinct patient_id from gold_documents semi join records using (patient_id) order by 1"
    )
    texts = warehouse.query(
        "select 'record ' || record_id as id, text from records union all "
        "select 'gold ' || document_id, text from gold_documents"
    )
    repeats = near_duplicates([(row["id"], row["text"]) for row in texts])
    copies = [
        f"{one} repeats {other}"
        for one, other in repeats.items()
        if one.startswith("gold ") and other.startswith("record ")
    ]
    faults = [f"patient {row['patient_id']} stands in both" for row in patients] + copies
    sentence = "; ".join(faults[:5]) or "no gold note, and no gold patient, is known to the generator"
    return dg.AssetCheckResult(passed=not faults, description=sentence, metadata={"faults": len(faults)})


_LEDGER = """
select
    c.annotator, c.prompt, c.notes, c.mentions,
    c.annotated + c.refused + c.malformed + c.truncated + c.filtered + c.timed_out + c.failed + c.over_budget
        + c.pending as notes_accounted,
    c.grounded + c.ambiguous + c.absent as mentions_accounted,
    c.notes - c.annotated as not_annotated,
    l.row_count,
    (
        select count(*) from annotations a
        where a.annotator = c.annotator and a.prompt = c.prompt and a.status <> 'annotated'
            and (len(a.mentions) > 0 or a.reason is null)
    ) as unexplained
from cells c
join materializations l on l.is_current and l.asset = 'annotations'
    and l.annotator = c.annotator and l.prompt = c.prompt
order by c.annotator, c.prompt
"""


@dg.asset_check(
    asset="annotations",
    description="Notes and answered mentions of every cell add up, and every note that was not annotated says why.",
)
def ledger_balances(project: ProjectResource) -> dg.AssetCheckResult:
    rows = project.open().warehouse.query(_LEDGER)
    faults = [fault for row in rows for fault in _ledger_faults(row)]
    lost = sum(row["not_annotated"] for row in rows)
    sentence = "; ".join(faults) or f"all notes are accounted for; {lost} were not annotated and say why"
    return dg.AssetCheckResult(passed=not faults, description=sentence, metadata={"not_annotated": lost})


def _ledger_faults(row: Row) -> Iterable[str]:
    """Yield what does not add up in a cell's row of the ledger."""
    cell = f"{row['annotator']}/{row['prompt']}"
    if not row["notes"] == row["notes_accounted"] == row["row_count"]:
        yield f"{cell}: {row['row_count']} notes were given, {row['notes_accounted']} are accounted for"
    if row["mentions"] != row["mentions_accounted"]:
        yield f"{cell}: {row['mentions']} mentions were answered, {row['mentions_accounted']} are accounted for"
    if row["unexplained"]:
        yield f"{cell}: {row['unexplained']} notes that failed have mentions, or no reason"
