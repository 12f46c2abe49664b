"""Sources: local notes and gold notes, read from the files that the profile declares."""

import dagster as dg

from estner_assets.defs import declared
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset
from estner_assets.resources.gold import AnnotatedText, read_doccano
from estner_assets.resources.records import SourceError, read_records

prompts = table_asset(declared.prompts)
annotators = table_asset(declared.annotators)


@table_asset
def records(step: Step) -> Made:
    """One row per local note."""
    source = step.profile.records
    try:
        rows = read_records([step.declarations.path(path) for path in source.paths], source)
    except SourceError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    patients = len({row["patient_id"] for row in rows})
    step.progress(f"{len(rows):,} notes of {patients:,} patients")
    return Made(rows, {"patients": patients})


@table_asset
def gold_documents(step: Step) -> Made:
    """One row per human-annotated note."""
    return Made([one.document for one in _gold(step)])


@table_asset
def gold_spans(step: Step) -> Made:
    """One row per mention that a person marked in a gold note."""
    rows = [
        {
            "document_id": one.document["document_id"],
            "start_char": span.start,
            "end_char": span.end,
            "label": span.label,
            "text": span.text_in(one.document["text"]),
        }
        for one in _gold(step)
        for span in one.spans
    ]
    return Made(rows, {label: sum(row["label"] == label for row in rows) for label in step.declarations.labels})


def _gold(step: Step) -> list[AnnotatedText]:
    paths = [step.declarations.path(path) for path in step.profile.gold.paths]
    try:
        return read_doccano(paths, [entity.name for entity in step.declarations.entities])
    except SourceError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
