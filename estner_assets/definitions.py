"""The code location: everything that Dagster is told, put together from the declarations."""

import dagster as dg

from estner_assets.declarations import Declarations, load
from estner_assets.defs import annotation, evaluation, sources, study, synthesis, training
from estner_assets.defs.checks import check_definitions
from estner_assets.defs.jobs import job_definitions
from estner_assets.defs.table_asset import ProjectResource

ASSETS = (
    sources.prompts,
    sources.annotators,
    sources.records,
    sources.gold_documents,
    sources.gold_spans,
    synthesis.generator,
    synthesis.synthetic_notes,
    synthesis.originality,
    synthesis.vetted_notes,
    annotation.annotations,
    training.ner_models,
    evaluation.predictions,
    evaluation.evaluation,
    evaluation.learning_curves,
    study.leaderboard,
    study.agreement,
    study.report,
)


def definitions_of(declarations: Declarations) -> dg.Definitions:
    """Return the definitions of a project."""
    return dg.Definitions(
        assets=[define(declarations) for define in ASSETS],
        asset_checks=check_definitions(declarations),
        jobs=job_definitions(),
        resources={
            "project": ProjectResource(root=str(declarations.root), profile=declarations.profile.key),
        },
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Load the project that ESTNER_PROJECT and ESTNER_PROFILE name."""
    return definitions_of(load())
