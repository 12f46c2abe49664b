"""One measurement of a client, in a process of its own: prints a JSON line with its time, CPU time and memory.

``estner`` is this package with its store; ``sdk`` a bare loop around the openai SDK's ``create``; ``transport``
what of ``estner`` is the SDK's and httpx's: the same bodies through the same endpoint, and nothing else.
"""

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, overload

import openai

from estner_assets.llm.client import Progress, ask
from estner_assets.llm.endpoints import Endpoint, open_endpoint
from estner_assets.llm.requests import Request, Response, sha256
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus, answer_schema
from estner_assets.ner.prompts import ChatMessage
from estner_assets.settings import CompatibleAnnotator

INSTRUCTION = "Find all drugs and procedures in the clinical note and answer with JSON only. " * 8
NOTE = "Patsient tuleb korduvale vastuvõtule. Kodus võtab Concor COR 5 mg. Tehti EKG, kaebusi ei ole. " * 8
SCHEMA: Any = {"name": "entities", "strict": True, "schema": answer_schema(["DRUG", "PROCEDURE"])}
PARAMETERS: dict[str, Any] = {
    "temperature": 0,
    "seed": 0,
    "max_tokens": 512,
    "response_format": {"type": "json_schema", "json_schema": SCHEMA},
}
STORED_AT_ONCE = 5000


class Questions(Sequence[Request]):
    """So many requests, made when they are looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(self._count))]
        if index >= self._count:
            raise IndexError(index)
        messages = (ChatMessage("system", INSTRUCTION), ChatMessage("user", f"{index}: {NOTE}"))
        return Request("bench", messages, PARAMETERS, str(index), sha256(str(index)))


def bodies(count: int) -> list[dict[str, Any]]:
    """Return what ``estner`` sends, as the SDK takes it."""
    return [
        {
            "model": "bench",
            "messages": [{"role": one.role, "content": one.content} for one in request.messages],
            **request.parameters,
        }
        for request in Questions(count)
    ]


def fill(path: Path, count: int) -> None:
    """Store answers to the first requests, as earlier runs would have."""
    with ResponseStore(path) as store:
        for start in range(0, count, STORED_AT_ONCE):
            keys = [Questions(count)[index].key for index in range(start, min(start + STORED_AT_ONCE, count))]
            puts = [(Response(key, AnswerStatus.ANNOTATED, "{}", created_at="2026-01-01"), "{}") for key in keys]
            store.commit("bench", puts, [], [])


def run_estner(calls: int, annotator: CompatibleAnnotator, path: Path) -> int:
    """Ask with this package; return how many were answered."""
    last: list[Progress] = []

    def keep(progress: Progress) -> None:
        last[:] = [progress]

    with ResponseStore(path) as store, open_endpoint(annotator, print) as endpoint:
        ask(Questions(calls), endpoint, annotator, store, Wall({}), keep)
    return last[0].done - last[0].failed


async def _in_workers(count: int, concurrency: int, one: Callable[[int], Awaitable[str]]) -> int:
    indexes, answered = iter(range(count)), 0

    async def work() -> None:
        nonlocal answered
        for index in indexes:
            answer = json.loads(await one(index))
            answered += bool(answer)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return answered


def run_sdk(asked: list[dict[str, Any]], concurrency: int, address: str) -> int:
    """Ask with the SDK as its manual says."""

    async def all_of_them() -> int:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:

            async def one(index: int) -> str:
                completion = await client.chat.completions.create(**asked[index])
                return str(completion.choices[0].message.content)

            return await _in_workers(len(asked), concurrency, one)

    return asyncio.run(all_of_them())


def run_transport(asked: list[dict[str, Any]], endpoint: Endpoint, concurrency: int) -> int:
    """Ask through the endpoint of this package alone: no store, no limits, no retries."""

    async def one(index: int) -> str:
        return (await endpoint.post(asked[index])).text

    return endpoint.run(_in_workers(len(asked), concurrency, one))


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=["estner", "sdk", "transport", "fill"])
    parser.add_argument("--address", default="")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    if options.client == "fill":
        fill(options.store, options.calls)
        return
    os.environ["BENCH_BASE_URL"] = options.address
    settings: dict[str, Any] = {"base_url_env": "BENCH_BASE_URL", "concurrency": options.concurrency}
    annotator = CompatibleAnnotator(
        kind="openai_compatible", key="bench", title="Bench", prompts=["p"], model="bench", **settings
    )
    asked = [] if options.client == "estner" else bodies(options.calls)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    if options.client == "estner":
        answered = run_estner(options.calls, annotator, options.store)
    elif options.client == "sdk":
        answered = run_sdk(asked, options.concurrency, options.address)
    else:
        with open_endpoint(annotator, print) as endpoint:
            answered = run_transport(asked, endpoint, options.concurrency)
    elapsed_s = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    measured = {
        "answered": answered,
        "elapsed_s": elapsed_s,
        "cpu_s": cpu_s,
        "rss_before_mib": before.ru_maxrss / 1024,
        "peak_rss_mib": after.ru_maxrss / 1024,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
