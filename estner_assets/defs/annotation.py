"""Annotation: each cell's annotator reads vetted notes, and what it answers is grounded as character spans."""

from estner_assets.defs.annotating import annotate, grounding_counts
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset


@table_asset
def annotations(step: Step) -> Made:
    """One row per note that the cell's annotator was given."""
    rows = annotate(step)
    failed = sum(row["status"] != "annotated" for row in rows)
    step.progress(f"{len(rows)} notes, {failed} not annotated")
    return Made(rows, {"not_annotated": failed, **grounding_counts(rows)})
