"""Makes what is out of date, level by level, and plans again after each level.

A level is everything whose inputs are up to date. When a remade asset comes out as it was, nothing after it is
stale any more, and the next plan is empty.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dagster as dg

from estner_assets.definitions import definitions_of
from estner_assets.defs.declared import publish_moved
from estner_assets.defs.partitions import partition_key
from estner_assets.defs.table_asset import PROGRESS_LOG
from estner_assets.planner import Plan, Planner, Step
from estner_assets.project import Project
from estner_assets.resources.locks import file_lock
from estner_assets.resources.warehouse import Partition

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
BUILD_LOCK_TIMEOUT_S = 24 * 3600.0
MOST_ATTEMPTS = 3


@dataclass
class Outcome:
    """What a build did."""

    built: list[Partition] = field(default_factory=list)
    failed: dict[Partition, str] = field(default_factory=dict)
    blocked: list[Partition] = field(default_factory=list)
    not_configured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a build wants to be seen."""

    partition: Partition
    kind: str
    text: str


def build(project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None]) -> Outcome:
    """Bring the project up to date; a step that fails holds back only what is made from it."""
    with file_lock(project.warehouse.path.with_suffix(".build.lock"), exclusive=True, timeout_s=BUILD_LOCK_TIMEOUT_S):
        return _Build(project, instance, report).run()


class _Build:
    def __init__(self, project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None]) -> None:
        self.project = project
        self.instance = instance
        self.report = report
        self.outcome = Outcome()
        self.definitions = definitions_of(project.declarations)
        self.job = self.definitions.resolve_implicit_global_asset_job_def()
        self.attempts: Counter[Partition] = Counter()

    def run(self) -> Outcome:
        while True:
            plan = Planner(self.project.declarations).plan(self.project.warehouse)
            level = list(self._level(plan))
            if not level:
                self._close(plan)
                return self.outcome
            for step in level:
                self._make(step)

    def _level(self, plan: Plan) -> Iterator[Step]:
        """Yield the steps that can be made now; a failed input of a fan-in is done without."""
        for step in plan.steps:
            if step.partition in self.outcome.failed:
                continue
            waits = [one for one in step.waits_for if not self._is_given_up(one, step.partition, plan)]
            if not waits and step.reasons:
                yield step

    def _is_given_up(self, source: Partition, partition: Partition, plan: Plan) -> bool:
        """Whether a fan-in need not wait for this cell, because it failed or waits for one that did."""
        return Planner(self.project.declarations).is_fan_in(partition, source) and self._has_failed(source, plan)

    def _has_failed(self, partition: Partition, plan: Plan) -> bool:
        if partition in self.outcome.failed:
            return True
        waits = next((step.waits_for for step in plan.steps if step.partition == partition), ())
        return any(self._has_failed(one, plan) for one in waits)

    def _make(self, step: Step) -> None:
        partition = step.partition
        if partition.asset in ("prompts", "annotators"):
            publish_moved(self.project, self.instance, [partition])
            self._done(partition, "published")
            return
        self.attempts[partition] += 1
        if self.attempts[partition] > MOST_ATTEMPTS:
            self._fail(partition, "its inputs keep changing while it is made; build again when they are at rest")
            return
        self.report(Event(partition, "start", step.explanation))
        started = time.monotonic()
        with _progress(lambda text: self.report(Event(partition, "progress", text))):
            result = self.job.execute_in_process(
                instance=self.instance,
                partition_key=partition_key(partition),
                asset_selection=[dg.AssetKey(partition.asset)],
                run_config=QUIET,
                raise_on_error=False,
            )
        if result.success:
            self._done(partition, f"{time.monotonic() - started:.1f} s")
        else:
            self._fail(partition, _failure(result))

    def _fail(self, partition: Partition, text: str) -> None:
        self.outcome.failed[partition] = text
        self.report(Event(partition, "failed", text))

    def _done(self, partition: Partition, text: str) -> None:
        self.outcome.built.append(partition)
        self.report(Event(partition, "done", text))

    def _close(self, plan: Plan) -> None:
        self.outcome.blocked = [
            step.partition for step in plan.steps if step.partition not in (*self.outcome.failed, *self.outcome.built)
        ]
        self.outcome.not_configured = {str(cell): text for cell, text in plan.not_configured.items()}


def _failure(result: dg.ExecuteInProcessResult) -> str:
    """Return what the failed step says, without the traceback that the run's log keeps."""
    texts: list[str] = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                texts.append(data.user_failure_data.description)
            elif data.error:
                cause = data.error.cause or data.error
                texts.append(f"{cause.cls_name}: {_message(cause.message)}")
    return "; ".join(texts) or "the run failed before any step; see its log in the UI"


def _message(text: str) -> str:
    return text.partition(": ")[2].strip() or text.strip()


@contextmanager
def _progress(report: Callable[[str], None]) -> Iterator[None]:
    """Pass on what steps log while they run."""
    handler = _Forwarding(report)
    PROGRESS_LOG.addHandler(handler)
    try:
        yield
    finally:
        PROGRESS_LOG.removeHandler(handler)


class _Forwarding(logging.Handler):
    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report(record.getMessage())
