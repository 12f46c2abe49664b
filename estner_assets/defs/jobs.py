"""Jobs, named as people think."""

from typing import Any

import dagster as dg

SYNTHESIS = ("records", "generator", "synthetic_notes", "originality", "vetted_notes")
TRAINING = ("ner_models", "predictions", "evaluation", "learning_curves")


def job_definitions() -> list[Any]:
    """Return the jobs; those of cells are run or backfilled by annotator and prompt."""
    return [
        dg.define_asset_job("read_gold", dg.AssetSelection.assets("gold_documents", "gold_spans")),
        dg.define_asset_job("synthesise", dg.AssetSelection.assets(*SYNTHESIS)),
        dg.define_asset_job("annotate", dg.AssetSelection.assets("annotations")),
        dg.define_asset_job("train_and_evaluate", dg.AssetSelection.assets(*TRAINING)),
        dg.define_asset_job("compare", dg.AssetSelection.assets("leaderboard", "agreement", "report")),
    ]
