"""Other annotation packages: where they come from, and how each is measured in an environment of its own."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL_TIMEOUT_S = 1200
RUN_TIMEOUT_S = 600


@dataclass(frozen=True)
class Peer:
    """A package, the answer that it can read (the server gives no other), and what to know of its figures."""

    name: str
    requirements: tuple[str, ...]
    answer: str
    note: str


PEERS = (
    Peer(
        "langextract",
        ("langextract[openai]==1.7.1",),
        json.dumps({"extractions": [{"drug": "Concor COR", "drug_attributes": {}}]}),
        "a thread per call; nothing stored; one call that fails after the SDK's two retries ends the run",
    ),
    Peer(
        "bespokelabs-curator",
        ("bespokelabs-curator==0.1.31",),
        json.dumps({"DRUG": ["Concor"], "PROCEDURE": ["EKG"]}),
        "answers are written without fsync and not parsed here",
    ),
    Peer(
        "refuel-autolabel",
        # its LangChain knows the SDK before 1.0 only
        ("refuel-autolabel[openai]==0.0.16", "openai<1"),
        "Concor COR % drug",
        "one call at a time",
    ),
    Peer("spacy-llm", ("spacy-llm==0.7.4",), "1. Concor COR | True | DRUG | a drug\n", "one call at a time"),
)


def installed(peer: Peer, folder: Path) -> tuple[Path | None, str]:
    """Make an environment with the peer below ``folder``; return its Python, or ``None`` and why there is none."""
    home = folder / f"venv-{peer.name}"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None, f"pip took longer than {INSTALL_TIMEOUT_S} s"
    if done.returncode:
        return None, f"pip cannot install it: {_last_line(done.stderr)}"
    return python, ""


def measured_peer(peer: Peer, python: Path, address: str, calls: int, concurrency: int) -> dict[str, Any]:
    """Run the peer once; return calls per second and CPU time per call in ms, or why it did not run."""
    script = str(Path(__file__).with_name("annotate_peer_runs.py"))
    command = [str(python), script, peer.name, address, str(calls), str(concurrency)]
    environment = os.environ | {"TMPDIR": str(python.parents[2])}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {RUN_TIMEOUT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"answered"')]
    if done.returncode or not lines:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"skipped": f"it failed: {_last_line(done.stderr)}"}
    run = json.loads(lines[-1])
    return {
        "answered": run["answered"],
        "calls_per_s": calls / run["elapsed_s"],
        "cpu_ms_per_call": 1000 * run["cpu_s"] / calls,
        "note": peer.note,
    }


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1][:200] if lines else "it said nothing"
