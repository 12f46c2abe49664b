"""The study as a page: one self-contained HTML file, the same as Markdown, and its figures as JSON."""

import html
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from estner_assets.resources.lineage import Input
from estner_assets.tables import Row

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .7rem; text-align: left; white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
"""


def write_report(
    folder: Path,
    *,
    title: str,
    leaderboard: Sequence[Row],
    agreement: Sequence[Row],
    reliability: Sequence[Row],
    curves: Sequence[Row],
    originality: Sequence[Row],
    generator: Row,
    inputs: Sequence[Input],
) -> dict[str, Path]:
    """Write the report's files, each whole or not at all, and return them by format."""
    sections = {
        "Leaderboard": ("Strict span scores on the gold notes, best first.", _without(leaderboard)),
        "Agreement": ("How far cells mark the same on the notes that both annotated.", _without(agreement)),
        "Reliability": ("How far all cells agree, with chance taken out.", _without(reliability)),
        "Learning curves": ("Mean strict F1 by number of annotated notes.", _curve_means(curves)),
        "Originality": ("What became of the synthetic notes.", _decisions(originality)),
        "Generator": ("The model that wrote the notes.", [_generator(generator)]),
        "Provenance": ("The versions that this page was made from.", _provenance(inputs)),
    }
    contents = {
        "html": _html(title, sections),
        "markdown": _markdown(title, sections),
        "json": json.dumps(
            {"title": title} | {name: rows for name, (_, rows) in sections.items()},
            ensure_ascii=False,
            indent=1,
            default=str,
        ),
    }
    names = {"html": "report.html", "markdown": "report.md", "json": "report.json"}
    folder.mkdir(parents=True, exist_ok=True)
    return {form: _write(folder / names[form], content) for form, content in contents.items()}


def _write(path: Path, content: str) -> Path:
    incoming = path.with_name(f".{path.name}.{os.getpid()}")
    incoming.write_text(content, encoding="utf-8")
    incoming.replace(path)
    return path


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; figures with three decimals."""
    if not rows:
        return "*nothing yet*"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(shown(row[name]).replace("|", "\\|") for name in names) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _without(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in ("run_id", "data_version")} for row in rows]


def _curve_means(curves: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[str, str, str, int], list[float]] = {}
    for row in curves:
        key = (row["annotator"], row["prompt"], row["entity"], row["notes"])
        groups.setdefault(key, []).append(row["f1"])
    names = ("annotator", "prompt", "entity", "notes")
    return [
        dict(zip(names, key, strict=True))
        | {"mean_f1": sum(values) / len(values), "lowest_f1": min(values), "highest_f1": max(values)}
        for key, values in sorted(groups.items())
    ]


def _decisions(originality: Sequence[Row]) -> list[Row]:
    counts = Counter(row["decision"] for row in originality)
    return [
        {"decision": decision, "notes": count, "share": count / len(originality)}
        for decision, count in counts.most_common()
    ]


def _generator(row: Row) -> Row:
    names = ("model_id", "parameters", "train_notes", "holdout_notes", "holdout_loss", "stopped_early")
    return {name: row[name] for name in names}


def _provenance(inputs: Sequence[Input]) -> list[Row]:
    return [
        {"kind": one.kind, "name": one.name, "annotator": one.annotator, "prompt": one.prompt, "version": one.version}
        for one in inputs
    ]


Sections = Mapping[str, tuple[str, Sequence[Row]]]


def _markdown(title: str, sections: Sections) -> str:
    parts = [f"# {title}"]
    for name, (text, rows) in sections.items():
        parts.append(f"## {name}\n\n{text}\n\n{markdown_table(rows)}")
    return "\n\n".join(parts) + "\n"


def _html(title: str, sections: Sections) -> str:
    parts = [
        f"<section><h2>{name}</h2><p>{text}</p>{_html_table(rows)}</section>" for name, (text, rows) in sections.items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def _html_table(rows: Sequence[Row]) -> str:
    if not rows:
        return "<p><em>nothing yet</em></p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(map(_html_cell, row.values())) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(shown(value))}</td>"
