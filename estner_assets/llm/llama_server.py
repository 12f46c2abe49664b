"""llama.cpp's own server in a child process that cannot outlive us."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO
from urllib.error import URLError

from estner_assets.llm.weights import find_weights
from estner_assets.settings import LlamaCppAnnotator

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
_LOG_LINES = 15


class ServerError(RuntimeError):
    """The local LLM's server did not start; the message ends with its log."""


@contextmanager
def running_server(annotator: LlamaCppAnnotator, progress: Callable[[str], None]) -> Iterator[str]:
    """Start a server for the annotator's weights, yield its address (``http://127.0.0.1:port``), stop it.

    Raises ``WeightsError`` for weights that are absent or not the declared ones, ``ServerError`` for a server
    that does not come up.
    """
    path = find_weights(annotator.weights)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = _spawn(annotator, path, log)
        try:
            address = _ready(process, log)
            progress(f"{annotator.key}: {path.name} answers at {address}")
            yield address
        finally:
            _stop(process)


def _spawn(annotator: LlamaCppAnnotator, path: Path, log: IO[str]) -> "subprocess.Popen[str]":
    settings = {
        "model": str(path),
        "context_tokens": annotator.context_tokens,
        "slots": annotator.concurrency,
        "threads": annotator.threads,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "estner_assets.llm.llama_child", json.dumps(settings)],
        # a lifeline: the child ends when this pipe closes, so also when we are killed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    return process


def _ready(process: "subprocess.Popen[str]", log: IO[str]) -> str:
    """Wait for the address that the child prints, then for ``/health`` (503 while the model loads)."""
    deadline = time.monotonic() + START_TIMEOUT_S
    lines: Queue[str] = Queue()
    Thread(target=lambda: lines.put(process.stdout.readline() if process.stdout else ""), daemon=True).start()
    try:
        address = lines.get(timeout=START_TIMEOUT_S).strip()
    except Empty:
        address = ""
    while address and process.poll() is None and time.monotonic() < deadline:
        if _is_healthy(address):
            return address
        time.sleep(0.1)
    _stop(process)
    raise ServerError(f"the local LLM did not start (exit status {process.returncode}). Its log:\n{_tail(log)}")


def _is_healthy(address: str) -> bool:
    # no proxy from the environment: the address is this machine's
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, TimeoutError, ConnectionError):
        return False


def _tail(log: IO[str]) -> str:
    log.seek(0)
    return "\n".join(log.read().splitlines()[-_LOG_LINES:])


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.stdin is not None:
        process.stdin.close()  # the lifeline: the child ends by itself
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
