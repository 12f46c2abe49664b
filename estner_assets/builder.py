"""Makes what is out of date, and plans again after everything that is made.

A step is made once all that it is made from is up to date. When a remade asset comes out as it was, nothing
after it is stale any more, and the next plan is empty.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import dagster as dg

from estner_assets.defs.declared import DECLARED, publish_moved
from estner_assets.frontier import Frontier, frontier
from estner_assets.planner import Plan, Planner, Step
from estner_assets.project import PATIENCE_S, Project
from estner_assets.resources.lineage import Partition
from estner_assets.resources.locks import LockTimeoutError, file_lock
from estner_assets.running import InThisProcess, Result, Runner, Workers, workers
from estner_assets.selection import Selection

_WAIT_FOR_OTHER_BUILD_S = 24 * 3600.0
_MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class Options:
    """How a build goes about it.

    ``jobs`` steps are made at once. ``forced`` partitions are made although they may be up to date. With
    ``fail_fast`` nothing new is started after the first failure.
    """

    jobs: int = 1
    selection: Selection = field(default_factory=Selection)
    forced: frozenset[Partition] = frozenset()
    fail_fast: bool = False


@dataclass
class Outcome:
    """What a build did. ``skipped`` steps were planned, and turned out to be up to date."""

    built: list[Partition] = field(default_factory=list)
    skipped: list[Partition] = field(default_factory=list)
    failed: dict[Partition, str] = field(default_factory=dict)
    held_back: dict[Partition, str] = field(default_factory=dict)
    failed_checks: list[str] = field(default_factory=list)
    not_configured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something to be seen; ``kind`` is ``waiting``, ``start``, ``progress``, ``done``, ``failed`` or ``check``."""

    partition: Partition | None
    kind: str
    text: str


def build(
    project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None], options: Options | None = None
) -> Outcome:
    """Bring the project up to date, or the part of it that is selected.

    A step that fails holds back only what is made from it. A second build waits for the first.
    Raises ``SelectionError`` for a selection that names nothing.
    """
    options = options or Options()
    _check(project, options.selection)
    with (
        _lock(project, report),
        _executor(project, instance, report, options.jobs) as executor,
    ):
        return _Build(project, instance, report, executor, options).run()


def _check(project: Project, selection: Selection) -> None:
    """Raise ``SelectionError`` for words that name nothing, before waiting for anybody."""
    if not selection.is_everything:
        planner = Planner(project.declarations)
        selection.partitions(planner, planner.plan(project.warehouse).steps)


@contextmanager
def _lock(project: Project, report: Callable[[Event], None]) -> Iterator[None]:
    """Let one build at a time work on a database; say so before waiting."""
    path = project.warehouse.path.with_suffix(".build.lock")
    try:
        with file_lock(path, exclusive=True, timeout_s=0):
            yield
            return
    except LockTimeoutError as error:
        report(Event(None, "waiting", f"another build, process {error.holder}, is at work; waiting for its end"))
    with file_lock(path, exclusive=True, timeout_s=_WAIT_FOR_OTHER_BUILD_S):
        yield


@contextmanager
def _executor(
    project: Project, instance: dg.DagsterInstance, report: Callable[[Event], None], jobs: int
) -> Iterator[InThisProcess | Workers]:
    def progress(partition: Partition, text: str) -> None:
        report(Event(partition, "progress", text))

    build_id = uuid4().hex
    if instance.is_ephemeral:
        # it lives in this process alone
        yield InThisProcess(Runner(project, instance, build_id), progress)
    else:
        with workers(project, jobs, progress, build_id) as pool:
            yield pool


class _Build:
    def __init__(
        self,
        project: Project,
        instance: dg.DagsterInstance,
        report: Callable[[Event], None],
        executor: InThisProcess | Workers,
        options: Options,
    ) -> None:
        self.project, self.instance, self.report = project, instance, report
        self.executor, self.options = executor, options
        self.forced = set(options.forced)
        self.selected: set[Partition] | None = None
        self.outcome = Outcome()
        self.attempts: Counter[Partition] = Counter()
        self.running: dict[Future[Result], tuple[Partition, float]] = {}
        self.is_broken = False

    def run(self) -> Outcome:
        """Make what is due, plan again, until nothing is due any more."""
        planner, plan = self._plan()
        self.project.warehouse.retire(planner.declared_partitions())
        if not self.options.selection.is_everything:
            self.selected = self.options.selection.partitions(planner, plan.steps)
        first = [step.partition for step in plan.steps if self.selected is None or step.partition in self.selected]
        while True:
            found = frontier(plan, self.selected, self.outcome.failed, planner.is_fan_in)
            if not self._publish(found) and not self._start(found):
                return self._closed(found, plan, first)
            planner, plan = self._plan()

    def _plan(self) -> tuple[Planner, Plan]:
        self.project = self.project.reopened(PATIENCE_S)
        planner = Planner(self.project.declarations)
        return planner, planner.plan(self.project.warehouse, self.forced)

    def _publish(self, found: Frontier) -> bool:
        """Publish the declarations that are due; return whether there were any."""
        declared = [step.partition for step in found.due if step.partition.asset in DECLARED and not self._is_stopped()]
        if declared:
            publish_moved(self.project, self.instance, declared)
        for partition in declared:
            self._done(partition, "published")
        return bool(declared)

    def _is_stopped(self) -> bool:
        return self.is_broken or (self.options.fail_fast and bool(self.outcome.failed))

    def _start(self, found: Frontier) -> bool:
        """Start what is due as far as there is room, then wait for an end; return False where nothing runs."""
        is_stopped = self._is_stopped()
        busy = {partition for partition, _ in self.running.values()}
        for step in found.due:
            if step.partition not in busy and len(self.running) < self.options.jobs and not is_stopped:
                self._submit(step)
        if not self.running:
            return False
        self._collect()
        return True

    def _submit(self, step: Step) -> None:
        partition = step.partition
        self.attempts[partition] += 1
        if self.attempts[partition] > _MOST_ATTEMPTS:
            self._fail(partition, "its inputs keep changing while it is made; build again when they are at rest")
            return
        self.report(Event(partition, "start", step.explanation))
        self.running[self.executor.start(partition)] = (partition, time.monotonic())

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
        self.forced.discard(partition)
        self.outcome.built.append(partition)
        self.report(Event(partition, "done", text))

    def _fail(self, partition: Partition, text: str) -> None:
        self.outcome.failed[partition] = text
        self.report(Event(partition, "failed", text))

    def _closed(self, found: Frontier, plan: Plan, first: Sequence[Partition]) -> Outcome:
        """Return what became of every step."""
        outcome = self.outcome
        stopped = {step.partition: "the build stopped before it" for step in (*found.due, *found.waiting)}
        outcome.held_back = {
            partition: text for partition, text in (found.held_back | stopped).items() if partition not in outcome.built
        }
        ended = {*outcome.built, *outcome.failed, *outcome.held_back}
        outcome.skipped = [partition for partition in first if partition not in ended]
        outcome.not_configured = {str(cell): text for cell, text in plan.not_configured.items()}
        return outcome
