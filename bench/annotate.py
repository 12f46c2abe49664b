"""How fast the annotation client is, and how much of the time is its own: ``make bench-annotate``.

Runs against a server on loopback that answers after a fixed time (``annotate_stub.py``); every measurement is a
process of its own. Prints a table and writes JSON. With ``--peers``, other annotation packages run the same number
of calls against the same server, each from a virtual environment that is removed afterwards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from annotate_peers import PEERS, Peer, installed, measured_peer  # noqa: E402

LATENCY_S = 0.2
CONCURRENCY = 64
CALLS = 4800
REPEATS = 3
FEW, MANY = 10_000, 100_000
MEMORY_LATENCY_S = 0.0
PEER_CALLS = 640


@contextmanager
def stub(latency_s: float, *answer: str) -> Iterator[str]:
    """Run the server; yield its address."""
    command = [sys.executable, str(FOLDER / "annotate_stub.py"), str(latency_s), *answer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.stdin.close()


def measured(client: str, address: str, calls: int, store: Path) -> dict[str, Any]:
    """Run ``annotate_client.py`` once."""
    command = [sys.executable, str(FOLDER / "annotate_client.py"), client, "--address", address]
    command += ["--calls", str(calls), "--concurrency", str(CONCURRENCY), "--store", str(store)]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout)) if done.stdout else {}


def speed(folder: Path, calls: int, repeats: int) -> dict[str, Any]:
    """Return calls per second (best, median) and CPU time per call in ms (least, median) of each client.

    ``transport`` runs once: it only says what of ``estner`` is not ours.
    """
    ideal = CONCURRENCY / LATENCY_S
    runs: dict[str, list[dict[str, Any]]] = {"estner": [], "sdk": [], "transport": []}
    with stub(LATENCY_S) as address:
        for repeat in range(repeats):
            for client, found in runs.items():
                if client == "transport" and repeat:
                    continue
                found.append(measured(client, address, calls, folder / f"{client}-{repeat}.sqlite3"))
    return {client: _summary(found, calls, ideal) for client, found in runs.items()}


def _summary(runs: Sequence[dict[str, Any]], calls: int, ideal: float) -> dict[str, Any]:
    rates = [calls / run["elapsed_s"] for run in runs]
    cpu_ms = [1000 * run["cpu_s"] / calls for run in runs]
    return {
        "answered": min(run["answered"] for run in runs),
        "calls": calls,
        "calls_per_s_best": max(rates),
        "calls_per_s_median": statistics.median(rates),
        "share_of_ideal_best": max(rates) / ideal,
        "share_of_ideal_median": statistics.median(rates) / ideal,
        "cpu_ms_per_call_best": min(cpu_ms),
        "cpu_ms_per_call_median": statistics.median(cpu_ms),
    }


def memory(folder: Path, all_asked: bool) -> dict[str, Any]:
    """Return the peak resident set (MiB) at a few and at many requests.

    A few thousand are asked both times; the others are in the store, unless all are to be asked.
    """
    found = {}
    with stub(MEMORY_LATENCY_S) as address:
        for calls in (FEW, MANY):
            store = folder / f"memory-{calls}.sqlite3"
            if not all_asked:
                measured("fill", address, calls - FEW, store)
            run = measured("estner", address, calls, store)
            found[str(calls)] = run
    growth = found[str(MANY)]["peak_rss_mib"] - found[str(FEW)]["peak_rss_mib"]
    return {"requests": found, "growth_mib": growth, "growth_bytes_per_request": growth * 2**20 / (MANY - FEW)}


def peers(folder: Path, chosen: Sequence[Peer]) -> dict[str, Any]:
    """Return speed and CPU time of other packages, or why there is none."""
    found: dict[str, Any] = {}
    for peer in chosen:
        python, reason = installed(peer, folder)
        if python is None:
            found[peer.name] = {"skipped": reason}
            continue
        with stub(LATENCY_S, peer.answer) as address:
            found[peer.name] = measured_peer(peer, python, address, PEER_CALLS, CONCURRENCY)
    with stub(LATENCY_S) as address:
        run = measured("estner", address, PEER_CALLS, folder / "beside-peers.sqlite3")
    found["estner"] = {
        "answered": run["answered"],
        "calls_per_s": PEER_CALLS / run["elapsed_s"],
        "cpu_ms_per_call": 1000 * run["cpu_s"] / PEER_CALLS,
    }
    return found


def table(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that people read."""
    ideal = CONCURRENCY / LATENCY_S
    yield f"{CONCURRENCY} at once, {LATENCY_S * 1000:.0f} ms a call: ideal {ideal:.0f} calls/s; load {report['load']}"
    yield f"{'':<12}{'calls/s':>10}{'median':>9}{'of ideal':>10}{'CPU ms':>9}{'median':>9}"
    for client, found in report["speed"].items():
        yield (
            f"{client:<12}{found['calls_per_s_best']:>10.1f}{found['calls_per_s_median']:>9.1f}"
            f"{found['share_of_ideal_best']:>10.1%}{found['cpu_ms_per_call_best']:>9.3f}"
            f"{found['cpu_ms_per_call_median']:>9.3f}"
        )
    for calls, found in report["memory"]["requests"].items():
        yield f"{calls:>7} requests: peak {found['peak_rss_mib']:.0f} MiB"
    yield f"growth {report['memory']['growth_bytes_per_request']:.0f} bytes a request"
    for peer, found in report.get("peers", {}).items():
        if "calls_per_s" in found:
            yield (
                f"{peer:<22}{found['calls_per_s']:>8.1f} calls/s {found['cpu_ms_per_call']:>8.2f} ms CPU a call, "
                f"{found['answered']} of {PEER_CALLS} answered {found.get('note', '')}"
            )
        else:
            yield f"{peer:<22}skipped: {found['skipped']}"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None, help="where to write the figures")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--peers", action="store_true", help="also install and measure other packages (slow)")
    parser.add_argument("--ask-all", action="store_true", help="measure memory without a filled store (slow)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-annotate-") as name:
        folder = Path(name)
        report: dict[str, Any] = {"load": [round(load, 2) for load in os.getloadavg()]}
        report["speed"] = speed(folder, options.calls, options.repeats)
        report["memory"] = memory(folder, options.ask_all)
        if options.peers:
            report["peers"] = peers(folder, PEERS)
        report["load_after"] = [round(load, 2) for load in os.getloadavg()]
    print("\n".join(table(report)))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
