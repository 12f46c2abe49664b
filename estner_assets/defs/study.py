"""The study: all cells side by side."""

from collections.abc import Mapping
from dataclasses import asdict

from estner_assets.declarations import Cell
from estner_assets.defs.evaluating import ALL
from estner_assets.defs.reading import documents_by_cell
from estner_assets.defs.step import Made, Step
from estner_assets.defs.table_asset import table_asset
from estner_assets.ner.agreement import pair_agreements
from estner_assets.ner.reliability import reliability as measure_reliability
from estner_assets.reporting import markdown_table, write_report
from estner_assets.resources.records import text_hash
from estner_assets.tables import Row


@table_asset
def leaderboard(step: Step) -> Made:
    """One row per cell, system and entity."""
    scores = {
        (row["annotator"], row["prompt"], row["system"], row["entity"], row["protocol"]): row
        for row in step.rows("evaluation")
    }
    notes = {(row["annotator"], row["prompt"]): row["annotated_notes"] for row in step.rows("ner_models")}
    rows = [
        _scored(strict, scores, notes[strict["annotator"], strict["prompt"]])
        for (*_, protocol), strict in scores.items()
        if protocol == "strict"
    ]
    have = {(row["annotator"], row["prompt"]) for row in rows}
    for cell in step.declarations.cells:
        if (cell.annotator, cell.prompt) not in have:
            rows += _unscored(cell, step)
    _rank(rows)
    rows.sort(key=lambda row: (row["entity"], row["rank"] or len(rows), row["annotator"], row["prompt"]))
    return Made(rows, {"leaderboard": markdown_table(_shown(rows))})


def _scored(strict: Row, scores: Mapping[tuple[str, str, str, str, str], Row], notes: int) -> Row:
    key = (strict["annotator"], strict["prompt"], strict["system"], strict["entity"])
    return {
        "annotator": strict["annotator"],
        "prompt": strict["prompt"],
        "system": strict["system"],
        "entity": strict["entity"],
        "status": "scored",
        "rank": None,
        "notes": notes if strict["system"] == "tagger" else None,
        **{name: strict[name] for name in ("precision", "recall", "f1", "f1_low", "f1_high", "support")},
        "partial_f1": scores[*key, "partial"]["f1"],
        "notebook_subword_f1": scores[*key, "notebook_subword"]["f1"],
        "remark": None,
    }


def _unscored(cell: Cell, step: Step) -> list[Row]:
    missing = step.planner.not_configured.get(cell)
    columns = dict.fromkeys(step.declarations.tables["leaderboard"].columns)
    return [
        columns
        | {
            "annotator": cell.annotator,
            "prompt": cell.prompt,
            "system": "tagger",
            "entity": entity,
            "status": "not_configured" if missing else "not_materialized",
            "remark": f"not configured: {missing}" if missing else "its evaluation has not been materialised",
        }
        for entity in (*step.declarations.labels, ALL)
    ]


def _rank(rows: list[Row]) -> None:
    places: dict[str, int] = {}
    scored = [row for row in rows if row["f1"] is not None]
    for row in sorted(scored, key=lambda row: (-row["f1"], row["annotator"], row["prompt"], row["system"])):
        places[row["entity"]] = row["rank"] = places.get(row["entity"], 0) + 1


def _shown(rows: list[Row]) -> list[Row]:
    names = ("entity", "rank", "annotator", "prompt", "system", "f1", "precision", "recall", "status")
    return [{name: row[name] for name in names} for row in rows]


@table_asset
def agreement(step: Step) -> Made:
    """One row per pair of cells that annotated the same notes."""
    pairs = pair_agreements(documents_by_cell(step), step.declarations.labels)
    rows: list[Row] = []
    for (one, other), pair in pairs.items():
        annotator_a, _, prompt_a = one.partition("/")
        annotator_b, _, prompt_b = other.partition("/")
        cells = {"annotator_a": annotator_a, "prompt_a": prompt_a, "annotator_b": annotator_b, "prompt_b": prompt_b}
        if pair.notes:
            rows.append(cells | asdict(pair))
    return Made(rows, {"agreement": markdown_table(rows)})


@table_asset
def reliability(step: Step) -> Made:
    """One row per unit of comparison, over all cells at once."""
    found = measure_reliability(documents_by_cell(step), step.declarations.labels)
    if not found.compared_notes:
        return Made([])
    figures = {
        "character": (found.character_alpha, found.character_fleiss_kappa),
        "span": (found.span_alpha, found.span_fleiss_kappa),
    }
    rows: list[Row] = [
        {
            "unit": unit,
            "cells": found.annotators,
            "compared_notes": found.compared_notes,
            "complete_notes": found.complete_notes,
            "alpha": alpha,
            "kappa": kappa,
        }
        for unit, (alpha, kappa) in figures.items()
    ]
    return Made(rows, {"reliability": markdown_table(rows)})


@table_asset
def report(step: Step) -> Made:
    """One row per file of the study's report."""
    written = write_report(
        step.project.reports_folder,
        title=step.profile.description,
        leaderboard=step.rows("leaderboard", "order by entity, rank nulls last, annotator, prompt"),
        agreement=step.rows("agreement"),
        reliability=step.rows("reliability"),
        curves=step.rows("learning_curves"),
        originality=step.rows("originality"),
        generator=step.rows("generator")[0],
        inputs=step.inputs,
    )
    rows = [
        {"format": name, "path": step.project.shown(path), "sha256": text_hash(path.read_text(encoding="utf-8"))}
        for name, path in written.items()
    ]
    return Made(rows, {"path": step.project.shown(written["html"])})
