"""The graph against its declarations, as the UI shows it: `in_sync` checks, and what brings everything into sync.

Dagster's own staleness knows nothing of prompt files. The sensor ``watch_declarations`` looks at the plan and reports
the checks, the job ``everything`` is a build, and the sensor ``keep_in_sync`` starts it whenever something is stale.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from estner_assets.builder import Event, Options, build
from estner_assets.declarations import DeclarationError, Declarations
from estner_assets.defs.table_asset import ProjectResource
from estner_assets.graph import NODES
from estner_assets.planner import Plan, Planner
from estner_assets.project import Project
from estner_assets.versions import content_version

CHECK = "in_sync"
_INTERVAL_S = 15
_FIRST_PAUSE_S = 60.0
_LONGEST_PAUSE_S = 24 * 3600.0
_SHOWN_STEPS = 5
_REMEDY = "run `estner build` or the job `everything`, or switch on the sensor keep_in_sync"
_IN_PROGRESS = dg.RunsFilter(
    job_name="everything",
    statuses=[
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an asset is in sync, in a sentence."""

    asset: str
    passed: bool
    sentence: str
    out_of_date: int


def verdicts(plan: Plan) -> list[Verdict]:
    """Return one verdict per asset of the graph."""
    found = []
    for name in NODES:
        steps = [step for step in plan.steps if step.partition.asset == name]
        shown = "; ".join(f"{step.partition}: {step.state}, {step.explanation}" for step in steps[:_SHOWN_STEPS])
        more = f"; and {len(steps) - _SHOWN_STEPS} more" if len(steps) > _SHOWN_STEPS else ""
        sentence = f"{shown}{more}. To mend it, {_REMEDY}." if steps else "made from what is declared now"
        found.append(Verdict(name, not steps, sentence, len(steps)))
    return found


def sync_definitions(declarations: Declarations) -> dg.Definitions:
    """Return checks, job and sensors that keep the graph in sync."""
    return dg.Definitions(
        asset_checks=[_in_sync(declarations)], jobs=[everything], sensors=[watch_declarations, keep_in_sync]
    )


def _in_sync(declarations: Declarations) -> dg.AssetChecksDefinition:
    description = "Every partition is made from its inputs and declarations as they are now."
    specs = [dg.AssetCheckSpec(CHECK, asset=name, description=description) for name in declarations.tables]

    @dg.multi_asset_check(name="in_sync", specs=specs, can_subset=True)
    def in_sync(context: dg.AssetCheckExecutionContext, project: ProjectResource) -> Iterator[dg.AssetCheckResult]:
        wanted = {key.asset_key.to_user_string() for key in context.selected_asset_check_keys}
        for one in verdicts(_plan_of(project.open())):
            if one.asset in wanted:
                yield dg.AssetCheckResult(
                    passed=one.passed,
                    asset_key=one.asset,
                    check_name=CHECK,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=one.sentence,
                    metadata={"out_of_date": one.out_of_date},
                )

    return in_sync


def _plan_of(project: Project) -> Plan:
    return Planner(project.declarations).plan(project.warehouse)


# --- the job ----------------------------------------------------------------------------------------


class BuildConfig(dg.Config):
    """How many steps are made at once, each in a process of its own."""

    jobs: int = 2


@dg.op(description="Makes everything that is missing or stale, in order, as `estner build` does.")
def bring_into_sync(context: dg.OpExecutionContext, config: BuildConfig, project: ProjectResource) -> None:
    """Build the project on the run's own instance; raise when a step failed."""

    def report(event: Event) -> None:
        context.log.info(f"{event.kind}: {event.partition or ''} {event.text}")

    # processes of their own find the instance by DAGSTER_HOME
    jobs = config.jobs if os.environ.get("DAGSTER_HOME") else 1
    outcome = build(project.open(), context.instance, report, Options(jobs=jobs))
    context.add_output_metadata({"built": len(outcome.built), "failed": len(outcome.failed)})
    if outcome.failed or outcome.failed_checks:
        texts = [f"{partition}: {text}" for partition, text in outcome.failed.items()]
        raise dg.Failure("; ".join([*texts, *outcome.failed_checks]), allow_retries=False)


@dg.job(description="Brings the whole graph into sync with its declarations.", executor_def=dg.in_process_executor)
def everything() -> None:
    """Run one build."""
    bring_into_sync()


# --- sensors ----------------------------------------------------------------------------------------


@dg.sensor(
    name="watch_declarations",
    description="Looks at declarations and tables, and reports which assets are in sync; starts nothing.",
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def watch_declarations(context: dg.SensorEvaluationContext, project: ProjectResource) -> dg.SensorResult:
    """Report the checks whose verdict moved, or whose asset was made anew since."""
    try:
        opened = project.open()
    except DeclarationError as error:
        return dg.SensorResult(skip_reason=f"the declarations have {len(error.problems)} mistake(s): {error}")
    found = verdicts(_plan_of(opened))
    # by Dagster's own record: a check that is reported before the event of its materialization counts as older
    events = context.instance.get_latest_materialization_events([dg.AssetKey(one.asset) for one in found])
    made = {key.to_user_string(): event.timestamp if event else None for key, event in events.items()}
    seen: dict[str, str] = json.loads(context.cursor or "{}")
    now = {one.asset: content_version([one.sentence, made.get(one.asset)]) for one in found}
    evaluations = [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(one.asset),
            check_name=CHECK,
            passed=one.passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=one.sentence,
            metadata={"out_of_date": one.out_of_date},
        )
        for one in found
        if seen.get(one.asset) != now[one.asset]
    ]
    return dg.SensorResult(asset_events=evaluations, cursor=json.dumps(now))


@dg.sensor(
    name="keep_in_sync",
    description="Starts the job `everything` when something is missing or stale. Off until you switch it on.",
    job_name=everything.name,
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def keep_in_sync(context: dg.SensorEvaluationContext, project: ProjectResource) -> dg.SensorResult:
    """Request a build; what failed is tried again at once when anything has moved, else after a growing pause."""
    try:
        opened = project.open()
    except DeclarationError as error:
        return dg.SensorResult(skip_reason=f"the declarations have {len(error.problems)} mistake(s): {error}")
    if context.instance.get_run_records(_IN_PROGRESS, limit=1):
        return dg.SensorResult(skip_reason="a build is at work", cursor=context.cursor)
    with opened.warehouse.reading():
        plan = _plan_of(opened)
        makings = opened.warehouse.query("select count(*) as makings from materializations")[0]["makings"]
    if not plan.steps:
        return dg.SensorResult(skip_reason="everything is in sync", cursor="{}")
    tried = json.loads(context.cursor or "{}")
    state = content_version([makings, [[str(step.partition), step.state, *step.reasons] for step in plan.steps]])
    tries = tried["tries"] if tried.get("state") == state else 0
    wait_s = tried["at"] + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (tries - 1)) - time.time() if tries else 0.0
    if wait_s > 0:
        said = f"the last build left the same plan; the next one starts in {wait_s:.0f} s, or when something moves"
        return dg.SensorResult(skip_reason=said, cursor=context.cursor)
    cursor = json.dumps({"state": state, "tries": tries + 1, "at": time.time()})
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=cursor)
