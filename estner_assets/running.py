"""Runs single steps of a build: in this process, or in worker processes that stay warm between steps."""

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import dagster as dg

from estner_assets.declarations import DeclarationError
from estner_assets.defs.everything import graph_definitions
from estner_assets.defs.partitions import partition_key
from estner_assets.defs.table_asset import BUILD_TAG, PROGRESS_LOG
from estner_assets.project import PATIENCE_S, Project
from estner_assets.resources.lineage import Partition

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_PR_SET_PDEATHSIG = 1

Report = Callable[[Partition, str], None]
"""Takes what a step says while it runs."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a step ended: why it failed, if it did, and what its failed checks say."""

    failure: str | None
    failed_checks: tuple[str, ...] = ()


class Runner:
    """Materialises one asset partition at a time as a run of the instance.

    Declarations are looked at again before every run: a prompt file that came meanwhile is a partition.
    """

    def __init__(self, project: Project, instance: dg.DagsterInstance, build_id: str) -> None:
        self._project, self._instance, self._build_id = project, instance, build_id
        self._job = _whole_graph(project)

    def run(self, partition: Partition, report: Report) -> Result:
        """Return how the run ended."""
        while True:
            try:
                self._reopen()
            except DeclarationError as error:
                return Result(f"the declarations broke meanwhile: {error.problems[0]}")
            result = self._execute(partition, report)
            if not _failed_with(result, DeclarationError.__name__):
                break
        if _failed_with(result, "DagsterExecutionInterruptedError"):
            raise KeyboardInterrupt  # Dagster takes Ctrl-C for a failure of the step
        return Result(None if result.success else _failure(result), tuple(_failed_checks(result)))

    def _reopen(self) -> None:
        project = self._project.reopened(PATIENCE_S)
        if project.declarations is not self._project.declarations:
            self._project, self._job = project, _whole_graph(project)

    def _execute(self, partition: Partition, report: Report) -> dg.ExecuteInProcessResult:
        with _forwarded(lambda text: report(partition, text)):
            return self._job.execute_in_process(
                instance=self._instance,
                partition_key=partition_key(partition),
                asset_selection=[dg.AssetKey(partition.asset)],
                run_config=_QUIET,
                tags={BUILD_TAG: self._build_id},
                raise_on_error=False,
            )


def _whole_graph(project: Project) -> dg.JobDefinition:
    return graph_definitions(project.declarations).resolve_implicit_global_asset_job_def()


class InThisProcess:
    """Runs a step when it is submitted; for one job at a time, and for instances that live in memory."""

    def __init__(self, runner: Runner, report: Report) -> None:
        self._runner, self._report = runner, report

    def start(self, partition: Partition) -> Future[Result]:
        """Run the step and return its finished future."""
        future: Future[Result] = Future()
        future.set_result(self._runner.run(partition, self._report))
        return future


@dataclass
class Workers:
    """Runs steps in processes of their own, several at once."""

    pool: ProcessPoolExecutor

    def start(self, partition: Partition) -> Future[Result]:
        """Hand the step to a worker; the pool may start a new one for it."""
        with _deaf_to_interrupts():
            return self.pool.submit(_run_in_worker, partition)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C from their first moment on: they inherit it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def workers(project: Project, jobs: int, report: Report, build_id: str) -> Iterator[Workers]:
    """Start worker processes on the instance of DAGSTER_HOME; they end with this process, whatever ends it."""
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[Partition, str] | None] = context.Queue()
    listener = threading.Thread(target=_listen, args=(messages, report), daemon=True)
    listener.start()
    # Every worker computes on its share of the cores; waiting threads sleep instead of spinning.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=context,
        initializer=_start_worker,
        initargs=(project.root, project.declarations.profile.key, messages, build_id),
    )
    try:
        yield Workers(pool)
    except BaseException:
        # interrupted: what is being made now is made again by the next build
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        messages.put(None)
        listener.join(timeout=5)


def _listen(messages: "Queue[tuple[Partition, str] | None]", report: Report) -> None:
    while (message := messages.get()) is not None:
        report(*message)


_worker: tuple[Runner, Report] | None = None


def _start_worker(root: Path, profile: str, messages: "Queue[tuple[Partition, str] | None]", build_id: str) -> None:
    global _worker
    # The parent may be killed without a word; a worker must not write on after it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches a whole process group; the parent alone answers it, and ends the workers.
    os.setpgid(0, 0)
    instance = dg.DagsterInstance.get()
    _worker = (Runner(Project.open(root, profile), instance, build_id), lambda *message: messages.put(message))


def _run_in_worker(partition: Partition) -> Result:
    assert _worker is not None
    runner, report = _worker
    return runner.run(partition, report)


def _failed_checks(result: dg.ExecuteInProcessResult) -> Iterator[str]:
    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                yield f"{evaluation.asset_key.to_user_string()}, {evaluation.check_name}: {evaluation.description}"


def _failed_with(result: dg.ExecuteInProcessResult, error: str) -> bool:
    """Whether a step failed with an error of this class."""
    errors = (event.step_failure_data.error for event in result.all_events if event.is_step_failure)
    return any(one is not None and error in (one.cls_name, one.cause and one.cause.cls_name) for one in errors)


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
def _forwarded(report: Callable[[str], None]) -> Iterator[None]:
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
