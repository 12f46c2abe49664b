"""The asset graph as Dagster sees it: all assets, their checks, and the jobs over them."""

import dagster as dg

from estner_assets.declarations import Declarations
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
    annotation.consensus,
    training.ner_models,
    evaluation.predictions,
    evaluation.evaluation,
    evaluation.learning_curves,
    study.leaderboard,
    study.agreement,
    study.reliability,
    study.report,
)


def graph_definitions(declarations: Declarations) -> dg.Definitions:
    """Return the definitions that make tables."""
    return dg.Definitions(
        assets=[define(declarations) for define in ASSETS],
        asset_checks=check_definitions(declarations),
        jobs=job_definitions(),
        # a run has a process of its own already; one more for every step and check would cost seconds each
        executor=dg.in_process_executor,
        resources={
            "project": ProjectResource(root=str(declarations.root), profile=declarations.profile.key),
        },
    )
