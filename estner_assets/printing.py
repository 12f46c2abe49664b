"""What the command line prints, for people and as JSON: plans, outcomes, chains and leaderboards."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from estner_assets.estimates import Calls, Estimate, total
from estner_assets.planner import Plan, Step
from estner_assets.provenance import Making
from estner_assets.resources.lineage import Partition
from estner_assets.tables import Row

if TYPE_CHECKING:
    from estner_assets.builder import Event, Outcome

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_CROSS = "[red]✗[/red]"
_SHOWN_SETTING_CHARACTERS = 200


def print_error(text: str) -> None:
    """Print what is wrong, on standard error."""
    err.print(f"{_CROSS} {escape(text)}")


# --- plans ------------------------------------------------------------------------------------------


def print_plan(plan: Plan, steps: Sequence[Step], found: Mapping[Partition, Estimate]) -> None:
    """Print a line for each of the steps, then the sum."""
    for step in steps:
        estimate = _details(found[step.partition])
        out.print(f"{step.state:8}{escape(str(step.partition))}  [dim]{escape(step.explanation)}{estimate}[/dim]")
    print_by_annotator({str(cell): f"not configured: {text}" for cell, text in plan.not_configured.items()})
    for name in _retired(plan):
        out.print(f"[yellow]retired[/yellow] {escape(name)}: no longer declared; its rows and its history stay")
    if not steps:
        out.print("everything is up to date" if not plan.steps else "everything that is selected is up to date")
        return
    together = _details(total({step.partition: found[step.partition] for step in steps}))
    out.print(f"{len(steps)} to make{together}")


def _retired(plan: Plan) -> list[str]:
    declared = [str(one) for one in plan.retired if one.asset in ("prompts", "annotators")]
    cells = {f"cell {one.annotator}/{one.prompt}": None for one in plan.retired if one.annotator and one.prompt}
    return [*declared, *cells]


def _details(estimate: Estimate) -> str:
    parts = [_calls(estimate.calls)] if estimate.calls else []
    if estimate.duration_s is not None:
        parts.append(f"about {_duration(estimate.duration_s)}")
    return "".join(f" · {part}" for part in parts)


def _calls(calls: Calls) -> str:
    certainty = "" if calls.certainty == "exactly" else f"{calls.certainty} "
    text = f"{certainty}{calls.to_send:,} calls to send, {calls.stored:,} answers stored"
    if not calls.to_send:
        return text
    costs = [f"about {amount:.2f} {currency}" for currency, amount in calls.costs.items()]
    if calls.unpriced:
        costs.append(f"{calls.unpriced:,} calls of unknown price (add the model to prices.yaml)")
    tokens = f"about {calls.prompt_tokens:,} + {calls.completion_tokens:,} tokens"
    return f"{text}, {tokens}, {' and '.join(costs) or 'free'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s" if seconds >= 1 else "a moment"


def plan_json(plan: Plan, steps: Sequence[Step], found: Mapping[Partition, Estimate]) -> dict[str, Any]:
    """Return the same for programs; seconds, tokens, and money as a decimal string."""
    return {
        "steps": [
            {
                "asset": step.partition.asset,
                "annotator": step.partition.annotator or None,
                "prompt": step.partition.prompt or None,
                "state": step.state,
                "reasons": step.reasons,
                "waits_for": [str(one) for one in step.waits_for],
                "estimate": _estimate_json(found[step.partition]),
            }
            for step in steps
        ],
        "not_configured": {str(cell): text for cell, text in plan.not_configured.items()},
        "retired": [str(one) for one in plan.retired],
        "total": _estimate_json(total({step.partition: found[step.partition] for step in steps})),
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    calls = estimate.calls
    if calls is None:
        return {"duration_s": estimate.duration_s}
    return {
        "duration_s": estimate.duration_s,
        "calls": calls.total,
        "stored": calls.stored,
        "to_send": calls.to_send,
        "prompt_tokens": calls.prompt_tokens,
        "completion_tokens": calls.completion_tokens,
        "costs": {currency: str(amount) for currency, amount in calls.costs.items()},
        "unpriced": calls.unpriced,
        "certainty": calls.certainty,
    }


# --- builds -----------------------------------------------------------------------------------------


def print_event(event: "Event") -> None:
    """Print what a build says while it runs."""
    marks = {"start": "▸", "done": "[green]✓[/green]", "failed": _CROSS, "check": f"{_CROSS} check"}
    subject = f"{event.partition}: " if event.partition else ""
    out.print(f"{marks.get(event.kind, ' ')} {escape(f'{subject}{event.text}')}")


def print_outcome(outcome: "Outcome") -> None:
    """Print how a build ended."""
    for partition, text in outcome.failed.items():
        print_error(f"{partition}: {text}")
    for partition, text in outcome.held_back.items():
        out.print(f"[yellow]held back[/yellow] {escape(f'{partition}: {text}')}")
    counts = f"{len(outcome.built)} built, {len(outcome.skipped)} skipped, {len(outcome.failed)} failed"
    out.print(counts + (f", {len(outcome.held_back)} held back" if outcome.held_back else ""))
    for text in outcome.failed_checks:
        err.print(f"{_CROSS} check {escape(text)}")


# --- chains -----------------------------------------------------------------------------------------


def print_chain(making: Making, scores: Sequence[Row], in_full: bool) -> None:
    """Print what a partition came from as a tree; a making that stands in it already is only named again.

    Settings are cut to a line's length unless they are wanted ``in_full``.
    """
    for row in scores:
        out.print(f"{row['system']} {row['entity']}: strict F1 {row['f1']:.3f} ({row['support']} gold spans)")
    out.print(_making(making))
    for line in _branches(making, {making.materialization_id}, None if in_full else _SHOWN_SETTING_CHARACTERS):
        out.print(line)


def _branches(making: Making, seen: set[str], most: int | None) -> Iterator[str]:
    """Yield the lines below a making: its settings, then what it was made from, each with its own lines below."""
    settings = [
        f"[cyan]{escape(name.replace('_', ' '))}[/cyan] {version}  [dim]{escape(_shown(content, most))}[/dim]"
        for name, version, content in making.settings
        if content is not None
    ]
    last = len(settings) + len(making.sources) - 1
    for number, text in enumerate(settings):
        yield f"{'└──' if number == last else '├──'} {text}"
    for number, source in enumerate(making.sources, len(settings)):
        corner, rail = ("└──", "    ") if number == last else ("├──", "│   ")
        if source.materialization_id in seen:
            yield f"{corner} {escape(str(source.partition))} {source.version}  [dim]as above[/dim]"
        else:
            seen.add(source.materialization_id)
            yield f"{corner} {_making(source)}"
            yield from (f"{rail}{line}" for line in _branches(source, seen, most))


def _making(making: Making) -> str:
    when = f"{making.materialized_at:%Y-%m-%d %H:%M:%S}"
    details = f"made {when}, run {making.run_id[:8]}, code {making.code_version}"
    since = "" if making.is_current else "; made again since"
    return f"[bold]{escape(str(making.partition))}[/bold] {making.version}  [dim]{details}{since}[/dim]"


def _shown(content: Any, most: int | None) -> str:
    """Return a setting's content on one line, the beginning of it where it has more characters than ``most``."""
    if isinstance(content, dict):
        text = ", ".join(
            f"{key}: {' '.join(str(value).split())}" for key, value in content.items() if value is not None
        )
    else:
        text = str(content)
    return text if most is None or len(text) <= most else f"{text[:most]}…"


def _line(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())


# --- leaderboards -----------------------------------------------------------------------------------


def print_leaderboard(rows: Collection[Row]) -> None:
    """Print a table per entity, then what has no score and why."""
    out.print("Strict span scores on the gold notes. `tagger` was trained on the cell's annotations,")
    out.print("`annotator` is the annotator itself; `notes` were annotated for training.")
    scored = [row for row in rows if row["f1"] is not None]
    for entity in dict.fromkeys(row["entity"] for row in scored):
        table = RichTable(title=entity, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for name in ("cell", "system", "F1", "95 %", "P", "R", "notes"):
            table.add_column(name, justify="left" if name in ("cell", "system") else "right", no_wrap=True)
        for row in scored:
            if row["entity"] == entity:
                table.add_row(*_leaderboard_cells(row))
        out.print(table)
    print_by_annotator({f"{row['annotator']}/{row['prompt']}": row["remark"] for row in rows if row["remark"]})


def _leaderboard_cells(row: Row) -> list[str]:
    figures = [f"{row[name]:.2f}" for name in ("precision", "recall")]
    interval = f"{row['f1_low']:.2f}–{row['f1_high']:.2f}"
    notes = "" if row["notes"] is None else str(row["notes"])
    return [f"{row['annotator']}/{row['prompt']}", row["system"], f"{row['f1']:.3f}", interval, *figures, notes]


def print_by_annotator(cells: Mapping[str, str]) -> None:
    """Print why cells have no score: one line for the prompts of an annotator that lack the same thing."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell, text in cells.items():
        annotator, _, prompt = cell.partition("/")
        groups.setdefault((annotator, text), []).append(prompt)
    for (annotator, text), prompts in groups.items():
        out.print(f"[yellow]not scored[/yellow] {annotator} ({', '.join(prompts)}): {escape(text)}")
