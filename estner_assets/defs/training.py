"""Training: one tagger per cell, on what the cell's annotator marked."""

import dagster as dg

from estner_assets.defs.reading import annotated_documents
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset


@table_asset
def ner_models(step: Step) -> Made:
    """One row per cell, the tagger trained on its annotations."""
    from estner_assets.modeling.taggers import train_tagger

    documents, unusable = annotated_documents(step)
    if not documents:
        raise dg.Failure(f"no note of {step.cell} was annotated; its annotations say why in `status` and `reason`")
    with step.project.models.incoming() as folder:
        report = train_tagger(documents, step.declarations.labels, step.profile.tagger, folder, step.progress)
        model_id = step.project.models.keep(folder, "tagger")
    row = {
        "model_id": model_id,
        "folder": step.project.shown(step.project.models.root / model_id),
        "model": report.model,
        "annotated_notes": len(documents),
        "unusable_notes": unusable,
        "train_notes": report.train_notes,
        "validation_notes": report.validation_notes,
        "parameters": report.parameters,
        "epochs": report.epochs,
        "steps": report.steps,
        "validation_f1": report.best_validation_f1,
        "stopped_early": report.stopped_early,
        "elapsed_s": report.elapsed_s,
    }
    return Made([row], {"validation_f1": report.best_validation_f1, "annotated_notes": len(documents)})
