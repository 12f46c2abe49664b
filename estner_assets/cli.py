"""The command line: check, plan, build, look."""

import errno
import json
import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from estner_assets.declarations import DeclarationError
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.printing import (
    err,
    out,
    plan_json,
    print_chain,
    print_error,
    print_event,
    print_leaderboard,
    print_outcome,
    print_plan,
)
from estner_assets.project import Project

if TYPE_CHECKING:
    from estner_assets.builder import Options, Outcome
    from estner_assets.resources.lineage import Partition
    from estner_assets.selection import Selection

app = typer.Typer(
    help="NER models for clinical notes, from synthetic notes that LLMs annotate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_SELECT_HELP = (
    "What to make: assets (`annotations`, `ner_*`), `+evaluation` with all before it, `annotations+` with all after "
    "it, `state:stale`, `group:training`, `annotator:X`, `prompt:Y`. Blanks add up, commas must all hold."
)
ProjectOption = Annotated[
    Path | None, typer.Option("--project", help="The project's folder; ESTNER_PROJECT or this package's otherwise.")
]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="Which profile of declarations/profiles.")]
SelectOption = Annotated[list[str] | None, typer.Option("--select", "-s", help=_SELECT_HELP)]
ExcludeOption = Annotated[list[str] | None, typer.Option("--exclude", help="What not to make, in the same words.")]
AnnotatorOption = Annotated[str | None, typer.Option("--annotator", help="Only cells of this annotator.")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="Only cells of this prompt.")]
UpstreamOption = Annotated[bool, typer.Option("--upstream", help="Also everything that the selection is made from.")]
DownstreamOption = Annotated[bool, typer.Option("--downstream", help="Also everything made from the selection.")]
JobsOption = Annotated[int, typer.Option(min=1, help="Steps that are made at once, each in a process of its own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be made.")]
FailFastOption = Annotated[
    bool, typer.Option("--fail-fast/--keep-going", help="Start nothing more after the first failure, or go on.")
]


def main() -> None:
    """Run the command line; a wrong declaration or a busy warehouse ends it with one clear message."""
    # Before torch is loaded: threads that wait must sleep, or two processes on two cores stall each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()


@contextmanager
def _opened(root: Path | None, profile: str | None) -> Iterator[Project]:
    from estner_assets.llm.store import StoreError
    from estner_assets.provenance import NeverMadeError
    from estner_assets.resources.locks import LockTimeoutError
    from estner_assets.resources.warehouse import WarehouseError
    from estner_assets.selection import SelectionError

    try:
        yield Project.open(root, profile)
    except DeclarationError as error:
        for problem in error.problems:
            print_error(str(problem))
        err.print(f"{len(error.problems)} mistake(s) in the declarations; mend them and run this again.")
        raise typer.Exit(2) from None
    except (SelectionError, NeverMadeError) as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    except (LockTimeoutError, WarehouseError, StoreError) as error:
        print_error(str(error))
        raise typer.Exit(3) from None
    except PermissionError as error:
        print_error(f"{error.filename} cannot be written; run this as a user who may write to the project")
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
    select: SelectOption = None,
    exclude: ExcludeOption = None,
    annotator: AnnotatorOption = None,
    prompt: PromptOption = None,
    upstream: UpstreamOption = False,
    downstream: DownstreamOption = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    profile: ProfileOption = None,
) -> None:
    """Say what is missing or stale, why, and what it will take; nothing is changed."""
    selection = _selection(select, exclude, annotator, prompt, upstream, downstream)
    with _opened(project, profile) as opened:
        _show_plan(opened, selection, as_json)


def _selection(
    select: list[str] | None,
    exclude: list[str] | None,
    annotator: str | None,
    prompt: str | None,
    upstream: bool,
    downstream: bool,
) -> "Selection":
    from estner_assets.selection import Selection

    return Selection(tuple(select or ()), tuple(exclude or ()), annotator, prompt, upstream, downstream)


def _show_plan(project: Project, selection: "Selection", as_json: bool, forced: "Collection[Partition]" = ()) -> None:
    from estner_assets.estimates import estimates
    from estner_assets.planner import Planner

    planner = Planner(project.declarations)
    with project.warehouse.reading():
        planned = planner.plan(project.warehouse, forced)
        selected = selection.partitions(planner, planned.steps)
        steps = [step for step in planned.steps if step.partition in selected]
        found = estimates(project, planned, steps)
    if as_json:
        print(json.dumps(plan_json(planned, steps, found), ensure_ascii=False, indent=1))
    else:
        print_plan(planned, steps, found)


@app.command()
def build(
    select: SelectOption = None,
    exclude: ExcludeOption = None,
    annotator: AnnotatorOption = None,
    prompt: PromptOption = None,
    upstream: UpstreamOption = False,
    downstream: DownstreamOption = False,
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    jobs: JobsOption = 2,
    project: ProjectOption = None,
    profile: ProfileOption = None,
) -> None:
    """Make everything that is missing or stale, in order, or the selected part of it."""
    selection = _selection(select, exclude, annotator, prompt, upstream, downstream)
    with _opened(project, profile) as opened:
        if dry_run:
            _show_plan(opened, selection, as_json=False)
            return
        from estner_assets.builder import Options

        _end(_build(opened, Options(jobs=jobs, selection=selection, fail_fast=fail_fast)))


@app.command()
def backfill(
    annotator: AnnotatorOption = None,
    prompt: PromptOption = None,
    asset: Annotated[str, typer.Option(help="From which asset on the cells are made anew.")] = "annotations",
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    jobs: JobsOption = 2,
    project: ProjectOption = None,
    profile: ProfileOption = None,
) -> None:
    """Make cells anew although they may be up to date, and then what depends on them; stored answers are kept."""
    from estner_assets.planner import Planner
    from estner_assets.selection import Selection

    selection = Selection((f"{asset}+",), annotator=annotator, prompt=prompt)
    with _opened(project, profile) as opened:
        if annotator is None and prompt is None:
            print_error("say whose cells: --annotator X, --prompt Y, or both")
            raise typer.Exit(2)
        planner = Planner(opened.declarations)
        chosen = selection.partitions(planner, ())
        forced = frozenset(one for one in chosen if one.annotator and one.prompt)
        wanted = Selection(annotator=annotator, prompt=prompt)
        if not forced:
            print_error(f"{asset} has no cells; backfill annotations, or what is made from them cell by cell")
            raise typer.Exit(2)
        if dry_run:
            _show_plan(opened, wanted, as_json=False, forced=forced)
            return
        from estner_assets.builder import Options

        _end(_build(opened, Options(jobs=jobs, selection=wanted, forced=forced, fail_fast=fail_fast)))


@app.command()
def retry(
    annotator: AnnotatorOption = None,
    prompt: PromptOption = None,
    status: Annotated[
        list[AnswerStatus] | None,
        typer.Option(help="Which notes: those without an answer otherwise. Bad answers are kept, but set aside."),
    ] = None,
    dry_run: DryRunOption = False,
    jobs: JobsOption = 2,
    project: ProjectOption = None,
    profile: ProfileOption = None,
) -> None:
    """Ask again about the notes that failed, and make what depends on them."""
    from estner_assets.retrying import UNANSWERED, failed_notes, set_answers_aside
    from estner_assets.selection import Selection

    with _opened(project, profile) as opened:
        found = failed_notes(opened, tuple(status or UNANSWERED), annotator, prompt)
        out.print(f"{found.notes} notes of {len(found.cells)} cells to ask about again")
        if dry_run or not found.notes:
            return
        from estner_assets.builder import Options

        set_answers_aside(opened, found)
        wanted = Selection(annotator=annotator, prompt=prompt)
        _end(_build(opened, Options(jobs=jobs, selection=wanted, forced=found.cells)))


def _end(outcome: "Outcome") -> None:
    print_outcome(outcome)
    if outcome.failed or outcome.failed_checks:
        raise typer.Exit(1)


def _build(project: Project, options: "Options") -> "Outcome":
    import dagster as dg

    from estner_assets.builder import build

    _set_dagster_home(project)
    try:
        with dg.DagsterInstance.get() as instance:
            return build(project, instance, print_event, options)
    except KeyboardInterrupt:
        err.print("interrupted; what was made is kept, and the next build goes on from there")
        raise typer.Exit(130) from None


@app.command()
def why(
    asset: Annotated[str, typer.Argument(help="An asset, such as evaluation.")],
    annotator: Annotated[str, typer.Argument(help="The cell's annotator.")] = "",
    prompt: Annotated[str, typer.Argument(help="The cell's prompt.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Settings and prompt texts in full.")] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    profile: ProfileOption = None,
) -> None:
    """Say where an asset partition came from: prompt, model, settings, corpus and code, by version and run."""
    from estner_assets.graph import NODES
    from estner_assets.provenance import as_json as chain_json
    from estner_assets.provenance import provenance
    from estner_assets.resources.lineage import Partition

    with _opened(project, profile) as opened:
        if asset not in NODES:
            print_error(f"there is no asset {asset!r}; assets: {', '.join(NODES)}")
            raise typer.Exit(2)
        if NODES[asset].partitions == "prompt" and not prompt:
            annotator, prompt = "", annotator
        chain = provenance(opened.warehouse, Partition(asset, annotator, prompt))
        if as_json:
            print(json.dumps(chain_json(chain), ensure_ascii=False, indent=1))
            return
        scores = opened.warehouse.query(
            "select system, entity, f1, support from evaluation where ? = 'evaluation' and annotator = ? "
            "and prompt = ? and protocol = 'strict' order by system, entity",
            [asset, annotator, prompt],
        )
        print_chain(chain, scores, full)


@app.command()
def leaderboard(project: ProjectOption = None, profile: ProfileOption = None) -> None:
    """Print the leaderboard, and where the database and the report lie."""
    with _opened(project, profile) as opened, opened.warehouse.reading():
        rows = opened.warehouse.query(
            "select * exclude (run_id, data_version) from leaderboard "
            "order by entity = 'ALL' desc, entity, rank nulls last, annotator, prompt"
        )
        print_leaderboard(rows)
        out.print(f"database: {opened.shown(opened.warehouse.path)}")
        for row in opened.warehouse.query("select path from report where format = 'html'"):
            out.print(f"report:   {row['path']}")


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
            print_error(f"port {port} on 127.0.0.1 is taken; stop what listens there or give --port")
            raise typer.Exit(1)
        command = ["dagster", "dev", "-m", "estner_assets.definitions", "-h", "127.0.0.1", "-p", str(port)]
        os.execv(str(Path(sys.executable).with_name("dagster")), command)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _set_dagster_home(project: Project) -> None:
    """Point Dagster at the project's instance; its path must be absolute."""
    project.dagster_home.mkdir(parents=True, exist_ok=True)
    if not os.access(project.dagster_home, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", str(project.dagster_home))
    settings = project.dagster_home / "dagster.yaml"
    if not settings.exists():
        settings.write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(project.dagster_home.resolve())
    os.environ["ESTNER_PROJECT"] = str(project.root)
    os.environ["ESTNER_PROFILE"] = project.declarations.profile.key
