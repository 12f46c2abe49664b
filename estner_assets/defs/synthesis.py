"""Synthesis: a language model of the records writes notes, and only original ones are let through."""

import hashlib
from collections import Counter

from estner_assets.defs.reading import conditioned_notes
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset
from estner_assets.ner.conditions import marginal_drift, sample_conditions
from estner_assets.ner.originality import (
    Decision,
    OriginalityVerdict,
    decide,
    longest_common_runs,
    near_duplicates,
    unknown_shares,
)
from estner_assets.resources.records import text_hash
from estner_assets.settings import OriginalitySettings
from estner_assets.tables import Row


@table_asset
def generator(step: Step) -> Made:
    """One row, the language model that writes synthetic notes."""
    from estner_assets.modeling.generator import train_generator

    with step.project.models.incoming() as folder:
        report = train_generator(conditioned_notes(step), step.profile.generator, folder, step.progress)
        model_id = step.project.models.keep(folder, "generator")
    curve = [
        {"step": point.step, "epoch": point.epoch, "loss": point.loss, "holdout_loss": point.holdout_loss}
        for point in report.curve
    ]
    row = {
        "model_id": model_id,
        "folder": step.project.shown(step.project.models.root / model_id),
        "parameters": report.parameters,
        "train_notes": report.train_notes,
        "holdout_notes": report.holdout_notes,
        "holdout_loss": report.best_holdout_loss,
        "stopped_early": report.stopped_early,
        "curve": curve,
        "elapsed_s": report.elapsed_s,
    }
    return Made([row], {"holdout_loss": report.best_holdout_loss, "folder": row["folder"]})


@table_asset
def synthetic_notes(step: Step) -> Made:
    """One row per sampled note."""
    from estner_assets.modeling.sampling import sample_notes

    settings = step.profile.sampling
    notes = conditioned_notes(step)
    wanted = sample_conditions(notes, settings.notes, settings.min_patients, settings.seed)
    folder = step.project.models.folder(step.rows("generator")[0]["model_id"])
    rows: dict[str, Row] = {}
    for sampled in sample_notes(folder, wanted, settings, step.progress):
        prefix = sampled.condition.prefix
        note_id = hashlib.sha256(f"{sampled.seed}\0{prefix}\0{sampled.text}".encode()).hexdigest()[:16]
        rows[note_id] = {
            "note_id": note_id,
            "genre": sampled.condition.genre,
            "age_group": sampled.condition.age_group,
            "sex": sampled.condition.sex,
            "diagnosis": sampled.condition.diagnosis,
            "prefix": prefix,
            "seed": sampled.seed,
            "text": sampled.text,
            "text_sha256": text_hash(sampled.text),
            "finish_reason": sampled.finish_reason,
            "tokens": sampled.tokens,
        }
    drift = marginal_drift(notes, wanted)
    return Made(list(rows.values()), {f"drift_of_{name}": value for name, value in drift.items()})


@table_asset
def originality(step: Step) -> Made:
    """One row per synthetic note, with the verdict on it."""
    notes = step.rows("synthetic_notes", "order by note_id")
    texts = [(row["note_id"], row["text"]) for row in notes]
    records = [(row["record_id"], row["text"]) for row in step.rows("records", "order by record_id")]
    verdicts = longest_common_runs(texts, records)
    repeats = near_duplicates(texts)
    unknown = unknown_shares(texts, records)
    rows = [
        _judged(step.profile.originality, note, verdict, repeats.get(verdict.note_id), unknown[verdict.note_id])
        for note, verdict in zip(notes, verdicts, strict=True)
    ]
    decisions = Counter(row["decision"] for row in rows)
    step.progress(", ".join(f"{count} {decision}" for decision, count in decisions.most_common()))
    return Made(rows, dict(decisions))


def _judged(
    settings: OriginalitySettings,
    note: Row,
    verdict: OriginalityVerdict,
    duplicate_of: str | None,
    unknown_share: float,
) -> Row:
    decision, rule = decide(
        verdict,
        unfinished=note["finish_reason"] == "length",
        duplicate=duplicate_of is not None,
        max_run_words=settings.max_run_words,
        max_run_share=settings.max_run_share,
        min_words=settings.min_words,
        drop_unfinished=settings.drop_unfinished,
        unknown_share=unknown_share,
        max_unknown_share=settings.max_unknown_share,
    )
    witness = verdict.witness
    return {
        "note_id": verdict.note_id,
        "words": verdict.words,
        "longest_run_words": verdict.longest_run_words,
        "witness_record_id": witness.record_id if witness else None,
        "witness_record_word": witness.record_start if witness else None,
        "witness_note_word": witness.note_start if witness else None,
        "unknown_share": unknown_share,
        "duplicate_of": duplicate_of,
        "decision": str(decision),
        "rule": rule,
    }


@table_asset
def vetted_notes(step: Step) -> Made:
    """One row per synthetic note that passed the originality check."""
    verdicts = step.rows("originality")
    kept = {row["note_id"] for row in verdicts if row["decision"] == Decision.KEPT}
    columns = step.declarations.tables["vetted_notes"].columns
    notes = step.rows("synthetic_notes", "order by note_id")
    rows = [{name: note[name] for name in columns} for note in notes if note["note_id"] in kept]
    return Made(rows, {"share_kept": len(rows) / len(verdicts)})
