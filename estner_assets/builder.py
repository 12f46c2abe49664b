"""Makes what is out of date, and plans again after everything that is made.

A step is made once all that it is made from is up to date. When a remade asset comes out as it was, nothing
after it is stale any more, and the next plan is empty.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

import dagster as dg

from estner_assets.defs.declared import DECLARED, publish_moved
from estner_assets.planner import Plan, Planner, Step
from estner_assets.project import Project
from estner_assets.resources.locks import file_lock
from estner_assets.resources.warehouse import Partition
from estner_assets.running import InThisProcess, Result, Runner, Workers, workers

_WAIT_FOR_OTHER_BUILD_S = 24 * 3600.0
_MOST_ATTEMPTS = 3


@dataclass
class Outcome:
    """What a build did."""

    built: list[Partition] = field(default_factory=list)
    failed: dict[Partition, str] = field(default_factory=dict)
    blocked: list[Partition] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)
    not_configured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a build wants to be seen: ``start``, ``progress``, ``done``, ``failed`` or ``check``."""

    partition: Partition
    kind: str
    text: str


def build(project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None], jobs: int = 1) -> Outcome:
    """Bring the project up to date, several steps at once where ``jobs`` says so.

    A step that fails holds back only what is made from it. A second build waits for the first.
    """
    lock = project.warehouse.path.with_suffix(".build.lock")
    with (
        file_lock(lock, exclusive=True, timeout_s=_WAIT_FOR_OTHER_BUILD_S),
        _executor(project, instance, report, jobs) as executor,
    ):
        return _Build(project, instance, report, executor, jobs).run()


@contextmanager
def _executor(
    project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None], jobs: int
) -> Iterator[InThisProcess | Workers]:
    def progress(partition: Partition, text: str) -> None:
        report(Event(partition, "progress", text))

    if jobs == 1:
        yield InThisProcess(Runner(project, instance), progress)
    else:
        with workers(project, jobs, progress) as pool:
            yield pool


class _Build:
    def __init__(
        self,
        project: Project,
        instance: dg.DagsterInstance,
        report: Callable[[Event], None],
        executor: InThisProcess | Workers,
        jobs: int,
    ) -> None:
        self.project, self.instance, self.report = project, instance, report
        self.executor, self.jobs = executor, jobs
        self.outcome = Outcome()
        self.attempts: Counter[Partition] = Counter()
        self.running: dict[Future[Result], tuple[Partition, float]] = {}
        self.is_broken = False

    def run(self) -> Outcome:
        while True:
            self.project = self.project.reopened()
            plan = Planner(self.project.declarations).plan(self.project.warehouse)
            due = self._due(plan)
            declared = [step for step in due if step.partition.asset in DECLARED]
            for step in declared:
                self._publish(step)
            if declared:
                continue
            for step in due:
                if len(self.running) < self.jobs and not self.is_broken:
                    self._start(step)
            if not self.running:
                self._close(plan)
                return self.outcome
            self._collect()

    def _due(self, plan: Plan) -> list[Step]:
        """Return the steps that can be made now.

        A fan-in does without cells that failed, and when it is up to date but for those, it holds nothing back.
        """
        is_fan_in = Planner(self.project.declarations).is_fan_in
        given_up = set(self.outcome.failed)
        settled: set[Partition] = set()
        due: list[Step] = []
        for step in plan.steps:
            waits = [source for source in step.waits_for if source not in settled]
            open_waits = [one for one in waits if not (one in given_up and is_fan_in(step.partition, one))]
            if given_up.intersection(open_waits):
                given_up.add(step.partition)
            elif not open_waits and not step.reasons:
                settled.add(step.partition)
            elif not open_waits and step.partition not in given_up:
                due.append(step)
        busy = {partition for partition, _ in self.running.values()}
        return [step for step in due if step.partition not in busy]

    def _publish(self, step: Step) -> None:
        publish_moved(self.project, self.instance, [step.partition])
        self._done(step.partition, "published")

    def _start(self, step: Step) -> None:
        partition = step.partition
        self.attempts[partition] += 1
        if self.attempts[partition] > _MOST_ATTEMPTS:
            self._fail(partition, "its inputs keep changing while it is made; build again when they are at rest")
            return
        self.report(Event(partition, "start", step.explanation))
        started = time.monotonic()
        self.running[self.executor.start(partition)] = (partition, started)

    def _collect(self) -> None:
        """Wait until at least one running step has ended."""
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            partition, started = self.running.pop(future)
            try:
                result = future.result()
            except BrokenExecutor:
                result = Result("its process was killed, for want of memory perhaps; build again with --jobs 1")
                self.is_broken = True
            for text in result.failed_checks:
                self.outcome.failed_checks.append(text)
                self.report(Event(partition, "check", text))
            if result.failure is None:
                self._done(partition, f"{time.monotonic() - started:.1f} s")
            else:
                self._fail(partition, result.failure)

    def _done(self, partition: Partition, text: str) -> None:
        self.outcome.built.append(partition)
        self.report(Event(partition, "done", text))

    def _fail(self, partition: Partition, text: str) -> None:
        self.outcome.failed[partition] = text
        self.report(Event(partition, "failed", text))

    def _close(self, plan: Plan) -> None:
        settled = {*self.outcome.failed, *self.outcome.built}
        self.outcome.blocked = [step.partition for step in plan.steps if step.partition not in settled]
        self.outcome.not_configured = {str(cell): text for cell, text in plan.not_configured.items()}
