"""The command line: check, plan, build, look."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from estner_assets.declarations import DeclarationError
from estner_assets.project import Project

app = typer.Typer(
    help="NER models for clinical notes, from synthetic notes that LLMs annotate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console(soft_wrap=True)
err = Console(stderr=True)

ProjectOption = Annotated[
    Path | None, typer.Option("--project", help="The project's folder; ESTNER_PROJECT or this package's otherwise.")
]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Which profile of declarations/profiles.")]


def main() -> None:
    """Run the command line; a wrong declaration or a busy warehouse ends it with one clear message."""
    # Before torch is loaded: threads that wait must sleep, or two processes on two cores stall each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


@contextmanager
def _opened(root: Path | None, profile: str | None) -> Iterator[Project]:
    from estner_assets.resources.locks import LockTimeoutError
    from estner_assets.resources.warehouse import WarehouseBusyError

    try:
        yield Project.open(root, profile)
    except DeclarationError as error:
        for problem in error.problems:
            err.print(f"[red]✗[/red] {escape(str(problem))}", highlight=False, soft_wrap=True)
        err.print(f"{len(error.problems)} mistake(s) in the declarations; mend them and run this again.")
        raise typer.Exit(2) from None
    except (LockTimeoutError, WarehouseBusyError) as error:
        err.print(f"[red]✗[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(3) from None


@app.command()
def check(project: ProjectOption = None, profile: ProfileOption = None) -> None:
    """Check all declarations and say every mistake at once; nothing is run."""
    with _opened(project, profile) as opened:
        declared = opened.declarations
        out.print(
            f"[green]✓[/green] profile {declared.profile.key}: {len(declared.labels)} entities, "
            f"{len(declared.annotators)} annotators, {len(declared.prompts)} prompts, {len(declared.cells)} cells"
        )


@app.command()
def plan(
    project: ProjectOption = None,
    profile: ProfileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is missing or stale, and why; nothing is changed."""
    from estner_assets.planner import Planner

    with _opened(project, profile) as opened:
        planned = Planner(opened.declarations).plan(opened.warehouse)
    if as_json:
        steps = [
            {
                "asset": step.partition.asset,
                "annotator": step.partition.annotator or None,
                "prompt": step.partition.prompt or None,
                "state": step.state,
                "reasons": step.reasons,
                "waits_for": [str(one) for one in step.waits_for],
            }
            for step in planned.steps
        ]
        missing = {str(cell): text for cell, text in planned.not_configured.items()}
        print(json.dumps({"steps": steps, "not_configured": missing}, ensure_ascii=False, indent=1))
        return
    for step in planned.steps:
        line = f"{step.state:8}{escape(str(step.partition))}  [dim]{escape(step.explanation)}[/dim]"
        out.print(line, highlight=False, soft_wrap=True)
    _print_by_annotator({str(cell): f"not configured: {text}" for cell, text in planned.not_configured.items()})
    out.print(f"{len(planned.steps)} to make" if planned.steps else "everything is up to date")


@app.command()
def build(
    project: ProjectOption = None,
    profile: ProfileOption = None,
    jobs: Annotated[int, typer.Option(min=1, help="Steps that are made at once, each in a process of its own.")] = 2,
) -> None:
    """Make everything that is missing or stale, in order."""
    with _opened(project, profile) as opened:
        try:
            outcome = _build(opened, jobs)
        except KeyboardInterrupt:
            err.print("interrupted; what was made is kept, and the next build goes on from there")
            raise typer.Exit(130) from None
    for partition, text in outcome.failed.items():
        err.print(f"[red]✗[/red] {escape(f'{partition}: {text}')}", highlight=False, soft_wrap=True)
    out.print(
        f"{len(outcome.built)} built, {len(outcome.failed)} failed, {len(outcome.blocked)} held back", highlight=False
    )
    for text in outcome.failed_checks:
        err.print(f"[red]✗ check[/red] {escape(text)}", highlight=False, soft_wrap=True)
    if outcome.failed or outcome.failed_checks:
        raise typer.Exit(1)


def _build(project: Project, jobs: int) -> Any:
    import dagster as dg

    from estner_assets.builder import Event, build

    def report(event: Event) -> None:
        red = "[red]✗[/red]"
        marks = {"start": "▸", "progress": " ", "done": "[green]✓[/green]", "failed": red, "check": f"{red} check"}
        out.print(f"{marks[event.kind]} {escape(f'{event.partition}: {event.text}')}", highlight=False, soft_wrap=True)

    _set_dagster_home(project)
    with dg.DagsterInstance.get() as instance:
        return build(project, instance, report, jobs)


@app.command()
def leaderboard(project: ProjectOption = None, profile: ProfileOption = None) -> None:
    """Print the leaderboard, and where the database and the report lie."""
    with _opened(project, profile) as opened:
        rows = opened.warehouse.query(
            "select * exclude (run_id, data_version) from leaderboard "
            "order by entity = 'ALL' desc, entity, rank nulls last, annotator, prompt"
        )
        out.print("Strict span scores on the gold notes. `tagger` was trained on the cell's annotations,")
        out.print("`annotator` is the annotator itself; `notes` were annotated for training.")
        _print_leaderboard(rows)
        reports = opened.warehouse.query("select path from report where format = 'html'")
        out.print(f"database: {opened.shown(opened.warehouse.path)}", highlight=False)
        for row in reports:
            out.print(f"report:   {row['path']}", highlight=False)


def _print_leaderboard(rows: list[dict[str, Any]]) -> None:
    scored = [row for row in rows if row["f1"] is not None]
    for entity in dict.fromkeys(row["entity"] for row in scored):
        table = RichTable(title=entity, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for name in ("cell", "system", "F1", "95 %", "P", "R", "notes"):
            table.add_column(name, justify="left" if name in ("cell", "system") else "right", no_wrap=True)
        for row in scored:
            if row["entity"] == entity:
                figures = [f"{row[name]:.2f}" for name in ("precision", "recall")]
                interval = f"{row['f1_low']:.2f}–{row['f1_high']:.2f}"
                cell = f"{row['annotator']}/{row['prompt']}"
                notes = "" if row["notes"] is None else str(row["notes"])
                table.add_row(cell, row["system"], f"{row['f1']:.3f}", interval, *figures, notes)
        out.print(table)
    _print_by_annotator({f"{row['annotator']}/{row['prompt']}": row["remark"] for row in rows if row["remark"]})


@app.command()
def ui(
    project: ProjectOption = None,
    profile: ProfileOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Open the Dagster UI over the project's instance."""
    with _opened(project, profile) as opened:
        _set_dagster_home(opened)
        if _is_taken(port):
            err.print(f"[red]✗[/red] port {port} on 127.0.0.1 is taken; stop what listens there or give --port")
            raise typer.Exit(1)
        command = ["dagster", "dev", "-m", "estner_assets.definitions", "-h", "127.0.0.1", "-p", str(port)]
        os.execv(str(Path(sys.executable).with_name("dagster")), command)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _set_dagster_home(project: Project) -> None:
    """Point Dagster at the project's instance; its path must be absolute."""
    project.dagster_home.mkdir(parents=True, exist_ok=True)
    settings = project.dagster_home / "dagster.yaml"
    if not settings.exists():
        settings.write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(project.dagster_home.resolve())
    os.environ["ESTNER_PROJECT"] = str(project.root)
    os.environ["ESTNER_PROFILE"] = project.declarations.profile.key


def _print_by_annotator(cells: dict[str, str]) -> None:
    """Print why cells have no score: one line for the prompts of an annotator that lack the same thing."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell, text in cells.items():
        annotator, _, prompt = cell.partition("/")
        groups.setdefault((annotator, text), []).append(prompt)
    for (annotator, text), prompts in groups.items():
        out.print(f"[yellow]not scored[/yellow] {annotator} ({', '.join(prompts)}): {escape(text)}", highlight=False)
