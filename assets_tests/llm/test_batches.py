"""Laws of asking by batches: each request is paid for once, whatever happens to the process or the server."""

import json
import logging
import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from assets_tests.llm.conftest import SECRET, annotator, request
from assets_tests.llm.fake_batches import FakeBatches, fake_batches
from assets_tests.llm.fake_openai import Question, Reply, completion, error
from estner_assets.llm.batch_store import BatchStore, BatchStoreError
from estner_assets.llm.batches import BatchLimits, ask_in_batches
from estner_assets.llm.budget import Account, Budget, Ledger
from estner_assets.llm.client import FAILURES_IN_A_ROW, Progress
from estner_assets.llm.endpoints import EndpointError, open_endpoint
from estner_assets.llm.prices import micros, worst_case
from estner_assets.llm.requests import Request, Response
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import EgressRefused, Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import LlamaCppAnnotator, LlmAnnotator, Price

ROOT = Path(__file__).parents[2]
Serve = Callable[[FakeBatches], FakeBatches]


def asker(**changes: object) -> LlmAnnotator:
    return annotator(**{"mode": "batch", "batch_poll_s": 0.02, "batch_max_wait_s": 20.0} | changes)


def shout(question: Question) -> Reply:
    return completion(question["messages"][0]["content"].upper())


def ask(
    requests: Sequence[Request],
    store: ResponseStore,
    asking: LlmAnnotator | None = None,
    /,
    budget: Budget | None = None,
    report: Callable[[Progress], object] = id,
    **limits: float,
) -> tuple[dict[str, Response], list[Progress]]:
    """Ask by batches that are noted beside the store."""
    asking, seen = asking or asker(), list[Progress]()
    state, allowed = store.path.with_name("batches.sqlite"), BatchLimits(**{"find_s": 0.2} | limits)  # type: ignore[arg-type]
    with open_endpoint(asking, lambda line: None) as endpoint:
        endpoint.backoff_s = 0.01

        def progress(counts: Progress) -> None:
            seen.append(counts)
            report(counts)

        return ask_in_batches(requests, endpoint, asking, store, Wall({}), budget, progress, state, allowed), seen


def texts(store: ResponseStore, names: Sequence[str]) -> dict[str, str]:
    """Return the stored answers by the text that they are about."""
    stored = store.get_many(request(name).key for name in names)
    return {name: stored[request(name).key].text for name in names if request(name).key in stored}


def outcomes(lost: dict[str, Response], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    found = {name: lost.get(request(name).key) for name in names}
    return {name: (one.status.value, one.reason) for name, one in found.items() if one}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a fake server and point the annotator of ``asker()`` at it."""
    with ExitStack() as running:

        def start(fake: FakeBatches) -> FakeBatches:
            running.enter_context(fake_batches(fake))
            monkeypatch.setenv("FAKE_BASE_URL", fake.url)
            monkeypatch.setenv("FAKE_API_KEY", SECRET)
            return fake

        yield start


# --- asking -----------------------------------------------------------------------------------------


def test_each_request_gets_its_own_answer(serve: Serve, store: ResponseStore) -> None:
    """Whatever the order of the results, each answer is stored under its key, raw; equal requests go once."""
    fake = serve(FakeBatches(shout, polls=3, order=lambda lines: lines[::-1]))
    lost, seen = ask([request(name) for name in "abcab"], store)
    assert (lost, texts(store, "abc"), fake.asked()) == ({}, {"a": "A", "b": "B", "c": "C"}, [["a", "b", "c"]])
    assert (seen[0].done, seen[-1].done, seen[-1].total, seen[-1].cached, seen[-1].failed) == (0, 5, 5, 0, 0)
    assert (seen[-1].prompt_tokens, seen[-1].completion_tokens) == (30, 15)
    raw = json.loads(store.raw_body(request("b").key) or "")
    assert (raw["custom_id"], raw["response"]["body"]) == (request("b").key, json.loads(completion("B").body))


def test_what_is_stored_is_not_asked(serve: Serve, store: ResponseStore) -> None:
    """A second call makes no call at all, and one with more requests asks for those only."""
    fake = serve(FakeBatches(shout))
    ask([request("a"), request("b")], store)
    before = len(fake.calls)
    lost, seen = ask([request("a"), request("b")], store)
    assert (lost, seen[-1].cached, len(fake.calls)) == ({}, 2, before)
    ask([request(name) for name in "abc"], store)
    assert fake.asked() == [["a", "b"], ["c"]]


def test_the_upload_says_all_that_a_chat_says(serve: Serve, store: ResponseStore) -> None:
    """A line of the file holds the key, the model, the messages and the parameters; the batch carries our tag."""
    fake = serve(FakeBatches(lambda q: completion("{}")))
    one = request("x \u2028 õ \ud83d", temperature=0, seed=3, max_tokens=7)
    ask([one], store)
    [batch] = fake.batches.values()
    body = {"model": "fake", "messages": [{"role": "user", "content": "x \u2028 õ \ud83d"}]}
    assert fake.lines(batch) == [
        {
            "custom_id": one.key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body | {"temperature": 0, "seed": 3, "max_tokens": 7},
        }
    ]
    assert (batch["endpoint"], list(batch["metadata"])) == ("/v1/chat/completions", ["estner"])
    assert fake.names == {"file-1": f"estner-{batch['metadata']['estner']}.jsonl"}
    assert {header.get("authorization") for header in fake.headers} == {f"Bearer {SECRET}"}


def test_an_answer_may_hold_any_character(serve: Serve, store: ResponseStore) -> None:
    """What other alphabets take for the end of a line does not cut a result."""
    serve(FakeBatches(lambda q: completion("a\u2028b\u0085c\x1ed\re")))
    assert (ask([request("x")], store)[0], texts(store, ["x"])) == ({}, {"x": "a\u2028b\u0085c\x1ed\re"})


FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


@pytest.mark.parametrize(
    ("declared", "asked"), [("json_schema", FORM), ("json_object", {"type": "json_object"}), ("none", None)]
)
def test_the_declared_format_is_asked_for(
    serve: Serve, store: ResponseStore, declared: str, asked: dict[str, str] | None
) -> None:
    """A batch asks for the output format that is declared and tries no other."""
    fake = serve(FakeBatches(shout))
    ask([request("x", response_format=FORM)], store, asker(structured_output=declared))
    [line] = fake.lines(fake.batches["batch_1"])
    assert line["body"].get("response_format") == asked


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (completion("{", "length"), "truncated", "the answer was cut at 5 tokens; raise max_answer_tokens"),
        (completion("", "content_filter"), "filtered", "the server's content filter stopped it"),
        (error(400, f"filtered, {SECRET}", "content_filter"), "filtered", "filtered, ***"),
        (completion(None, refusal="I cannot help"), "refused", "I cannot help"),
    ],
)
def test_final_outcomes_are_stored(serve: Serve, store: ResponseStore, reply: Reply, status: str, reason: str) -> None:
    """An outcome that was paid for, or would repeat itself, is kept with its status and not asked again."""
    fake = serve(FakeBatches(lambda q: reply))
    assert [ask([request("x")], store)[0], ask([request("x")], store)[0]] == [{}, {}]
    stored = store.get_many([request("x").key])[request("x").key]
    assert (stored.status, stored.reason, len(fake.batches)) == (status, reason, 1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (error(429, f"slow down, {SECRET}"), "status 429: slow down, ***"),
        (error(500, "oops"), "status 500: oops"),
        (Reply('{"choices": []}'), "unreadable answer: the body holds no chat completion: '{\"choices\": []}'"),
        (None, "batch batch_1 is completed and has no line for this request; build again to ask again"),
        (
            error(400, "response_format is not supported"),
            "status 400: response_format is not supported; declare another `structured_output` for the annotator, "
            "for a batch cannot try a weaker one",
        ),
    ],
)
def test_a_request_fails_alone_and_is_asked_again(
    serve: Serve, store: ResponseStore, reply: Reply | None, reason: str
) -> None:
    """An error, a broken answer or a missing line costs one request, which the next call asks again."""
    fake = serve(FakeBatches(lambda q: reply if q["messages"][0]["content"] == "bad" else shout(q)))
    lost, seen = ask([request("bad"), request("x")], store)
    assert (outcomes(lost, ["bad"]), len(lost), texts(store, ["x"])) == ({"bad": ("failed", reason)}, 1, {"x": "X"})
    assert (seen[-1].done, seen[-1].failed) == (2, 1)
    fake.answer = shout
    assert (ask([request("bad"), request("x")], store)[0], fake.asked()[1:]) == ({}, [["bad"]])


def test_a_result_for_nobody_is_not_stored(serve: Serve, store: ResponseStore) -> None:
    """A key that was not submitted in a batch gets no answer from it, and a line that is no result is skipped."""
    fake = serve(FakeBatches(shout, polls=2))
    stranger = json.dumps({"custom_id": request("y").key, "response": {"status_code": 200, "body": {"x": 1}}})

    def spoilt(call: str) -> Reply | None:
        if call != "GET /files/file-2/content":
            return None
        good = fake.files["file-2"].decode()
        foreign = good.replace(request("x").key, request("y").key)
        return Reply("\n".join(["{", "[]", stranger, foreign, good]))

    fake.after = spoilt
    assert ask([request("x")], store)[0] == {}
    assert texts(store, ["x", "y"]) == {"x": "X"}


def chatted(name: str) -> Response:
    """Return the answer to a request that was asked by chat."""
    return Response(request(name).key, AnswerStatus.ANNOTATED, f"chat about {name}")


def test_what_is_answered_meanwhile_is_not_submitted(serve: Serve, store: ResponseStore) -> None:
    """An answer that another process stores after this one began is used, and counted as done."""
    fake, stored = serve(FakeBatches(shout)), list[Progress]()

    def store_b(counts: Progress) -> None:
        if not stored:
            stored.append(counts)
            store.put(chatted("b"), "")

    lost, seen = ask([request(name) for name in "abc"], store, report=store_b)
    assert (lost, fake.asked(), seen[-1].done, seen[-1].cached) == ({}, [["a", "c"]], 3, 0)


def test_a_stored_answer_is_not_replaced(serve: Serve, store: ResponseStore) -> None:
    """What was made from an answer stays true: the first one stored counts, also where a batch brings another."""
    serve(FakeBatches(shout))
    ask([request("a"), request("b")], store, asker(batch_max_wait_s=0))
    store.put(chatted("b"), "")
    assert (ask([request("a"), request("b")], store)[0], texts(store, "ab")) == ({}, {"a": "A", "b": "chat about b"})


def test_an_unvetted_note_stops_everything_before_an_upload(serve: Serve, store: ResponseStore) -> None:
    """The wall looks at all requests before the first file leaves, or is written."""
    fake, asking = serve(FakeBatches(shout)), asker()
    vetted = {f"id-{name}": request(name).text_sha256 for name in "abc"}
    with open_endpoint(asking, lambda line: None) as endpoint:
        endpoint.is_loopback = False
        state = store.path.with_name("batches.sqlite")

        def run(names: str) -> dict[str, Response]:
            some = [request(name) for name in names]
            return ask_in_batches(some, endpoint, asking, store, Wall(vetted), None, lambda seen: None, state)

        with pytest.raises(EgressRefused, match="note id-x may not leave this machine"):
            run("abcx")
        assert (fake.calls, state.exists()) == ([], False)
        assert (run("abc"), fake.asked()) == ({}, [["a", "b", "c"]])


# --- files ------------------------------------------------------------------------------------------


def test_many_requests_are_split(serve: Serve, store: ResponseStore) -> None:
    """No batch holds more requests than allowed, by the provider or the declaration; all are answered."""
    fake = serve(FakeBatches(shout, max_requests=3))
    assert (ask([request(name) for name in "abcdefg"], store, requests=3)[0], fake.asked()) == (
        {},
        [["a", "b", "c"], ["d", "e", "f"], ["g"]],
    )
    ask([request(name) for name in "hijk"], store, asker(batch_requests=2), requests=3)
    assert (fake.asked()[3:], len(texts(store, "abcdefghijk"))) == ([["h", "i"], ["j", "k"]], 11)


def test_no_file_is_larger_than_allowed(serve: Serve, store: ResponseStore) -> None:
    """Files are filled up to the allowed bytes and not beyond."""
    fake = serve(FakeBatches(shout))
    ask([request(name) for name in "abcde"], store)
    size = len(fake.files["file-1"]) // 5
    ask([request(name) for name in "fghij"], store, bytes=2 * size)
    uploaded = [len(fake.files[batch["input_file_id"]]) for batch in fake.batches.values()]
    assert (uploaded, fake.asked()[1:]) == ([5 * size, 2 * size, 2 * size, size], [["f", "g"], ["h", "i"], ["j"]])


def test_more_requests_than_are_written_at_once(serve: Serve, store: ResponseStore) -> None:
    """Groups of writing, storing and splitting do not lose or repeat a request where their borders meet."""
    fake, names = serve(FakeBatches(shout)), [f"n{number}" for number in range(1203)]
    lost, seen = ask([request(name) for name in names], store, requests=501)
    assert (lost, [len(some) for some in fake.asked()]) == ({}, [501, 501, 201])
    assert texts(store, names) == {name: name.upper() for name in names}
    assert (seen[-1].done, seen[-1].total) == (1203, 1203)


def test_the_file_of_requests_has_no_name(serve: Serve, store: ResponseStore) -> None:
    """While notes are uploaded, and afterwards, no file beside the stores holds them."""
    fake = serve(FakeBatches(shout))
    seen: list[str] = []

    def look(call: str) -> Reply | None:
        seen.extend(path.name for path in store.path.parent.iterdir() if path.is_file())
        return None

    fake.before = look
    ask([request("a rare word")], store)
    assert {name.split(".")[0] for name in seen} == {"batches", "responses"}
    beside = [path for path in store.path.parent.iterdir() if path.is_file() and path.name.startswith("batches")]
    assert not any(b"a rare word" in path.read_bytes() for path in beside)


# --- how batches end --------------------------------------------------------------------------------


def test_a_process_may_stop_waiting(serve: Serve, store: ResponseStore) -> None:
    """What has no answer in time is pending, and names its batch; the next call collects it and submits nothing."""
    fake = serve(FakeBatches(shout, polls=10_000))
    lost, seen = ask([request("a"), request("b")], store, asker(batch_max_wait_s=0.1))
    reason = "batch batch_1 at 127.0.0.1 is in_progress; build again later to collect its answers"
    assert outcomes(lost, "ab") == {"a": ("pending", reason), "b": ("pending", reason)}
    assert (seen[-1].done, seen[-1].failed, fake.count("POST /batches")) == (2, 2, 1)
    fake.polls = 0
    lost, seen = ask([request(name) for name in "abc"], store)
    assert (lost, texts(store, "abc"), fake.asked()) == ({}, {"a": "A", "b": "B", "c": "C"}, [["a", "b"], ["c"]])
    assert (seen[-1].done, seen[-1].failed, seen[-1].prompt_tokens) == (3, 0, 30)


def test_a_process_need_not_wait_at_all(serve: Serve, store: ResponseStore) -> None:
    """With no time to wait the batch is submitted and left alone."""
    fake = serve(FakeBatches(shout))
    lost, _ = ask([request("a")], store, asker(batch_max_wait_s=0))
    assert ([one.status for one in lost.values()], fake.calls) == (["pending"], ["POST /files", "POST /batches"])
    assert (ask([request("a")], store, asker(batch_max_wait_s=0))[0], texts(store, "a")) == ({}, {"a": "A"})


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("expired", "the batch expired before this request was answered; build again to ask again"),
        ("cancelled", "the batch did not ask: This request was cancelled."),
    ],
)
def test_a_batch_that_ends_early_keeps_what_it_answered(
    serve: Serve, store: ResponseStore, end: str, reason: str
) -> None:
    """Finished lines are used, the others fail and are asked again by the next call, alone."""
    fake = serve(FakeBatches(shout, end=end, answered=2))
    lost, _ = ask([request(name) for name in "abcd"], store)
    assert outcomes(lost, "abcd") == {"c": ("failed", reason), "d": ("failed", reason)}
    fake.end, fake.answered = "completed", None
    assert (ask([request(name) for name in "abcd"], store)[0], fake.asked()[1:]) == ({}, [["c", "d"]])
    assert texts(store, "abcd") == {name: name.upper() for name in "abcd"}


def test_what_failed_in_an_earlier_batch_is_asked_again_at_once(serve: Serve, store: ResponseStore) -> None:
    """A call that collects an expired batch of an earlier one submits what that did not answer."""
    fake = serve(FakeBatches(shout, end="expired", answered=1))
    ask([request("a"), request("b")], store, asker(batch_max_wait_s=0))

    def recover(call: str) -> Reply | None:
        fake.end, fake.answered = "completed", None
        return None

    fake.after = recover
    assert (ask([request("a"), request("b")], store)[0], fake.asked()) == ({}, [["a", "b"], ["b"]])


def test_a_mistake_in_a_file_is_said(serve: Serve, store: ResponseStore) -> None:
    """A batch that fails validation stops the run with the server's words and the line, without the key."""
    wrong: list[dict[str, Any]] = [
        {"code": "invalid", "message": f"bad model, {SECRET}", "line": 2},
        {"code": "more", "line": None},
    ]
    fake = serve(FakeBatches(shout, wrong=lambda lines: list(wrong)))
    with pytest.raises(EndpointError) as caught:
        ask([request("a"), request("b")], store)
    said = "127.0.0.1 refused batch batch_1: line 2: bad model, ***; more. Change what it names, then build again"
    assert str(caught.value) == said
    wrong.clear()
    assert (ask([request("a"), request("b")], store)[0], fake.asked()) == ({}, [["a", "b"], ["a", "b"]])


def test_a_full_queue_is_waited_for(serve: Serve, store: ResponseStore) -> None:
    """A batch for which the provider's queue is full is submitted again when one before it has ended."""
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
    fake = serve(FakeBatches(shout, polls=3))

    def others(lines: Sequence[object]) -> list[dict[str, Any]]:
        waiting = [one for one in fake.batches.values() if one["status"] == "in_progress"]
        return [full] if waiting else []

    fake.wrong = others
    lost, seen = ask([request(name) for name in "abcdef"], store, requests=2)
    assert (lost, texts(store, "abcdef")) == ({}, {name: name.upper() for name in "abcdef"})
    assert (seen[-1].done, seen[-1].failed) == (6, 0)
    completed = [batch["status"] for batch in fake.batches.values()].count("completed")
    assert (completed, len(fake.batches) > 3) == (3, True)


def test_a_queue_that_stays_full_is_left_to_the_next_build(serve: Serve, store: ResponseStore) -> None:
    """Where no batch of ours can make room, the requests are pending, and the reason says what to declare."""
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
    fake = serve(FakeBatches(shout, wrong=lambda lines: [full]))
    lost, _ = ask([request("a")], store)
    reason = "not asked: Enqueued token limit reached; build again later, or declare smaller `batch_requests`"
    assert (outcomes(lost, "a"), len(fake.batches)) == ({"a": ("pending", reason)}, 1)


# --- a server that fails ----------------------------------------------------------------------------


def at_first(call: str, reply: Reply, times: int = 1) -> Callable[[str], Reply | None]:
    """Answer a call with ``reply`` so many times, then let it take its course."""
    left = [reply] * times
    return lambda made: left.pop() if made == call and left else None


@pytest.mark.parametrize(
    "call", ["POST /files", "POST /batches", "GET /batches", "GET /batches/batch_1", "GET /files/file-2/content"]
)
@pytest.mark.parametrize(
    "reply",
    [
        error(429, "slow down", retry_after="0.05"),
        error(503, "busy"),
        Reply('{"id": "f', cut_at=4),
        Reply("<html>", headers={"Content-Type": "text/html"}),
    ],
)
def test_what_may_heal_is_tried_again(serve: Serve, store: ResponseStore, call: str, reply: Reply) -> None:
    """Every call survives a rate limit, a server error, a body that is cut off and one that is no JSON."""
    fake = serve(FakeBatches(shout, before=at_first(call, reply)))
    if call == "GET /batches":
        fake.after = at_first("POST /batches", error(500, "oops"))
    assert ask([request("a"), request("b")], store)[0] == {}
    assert (texts(store, "ab"), fake.asked()) == ({"a": "A", "b": "B"}, [["a", "b"]])


@pytest.mark.parametrize("reply", [error(500, "oops"), Reply("{", cut_at=0), Reply("", delay_s=1.5)])
def test_a_batch_whose_id_got_lost_is_found(serve: Serve, store: ResponseStore, reply: Reply) -> None:
    """When the server makes a batch and its reply does not arrive, the batch is found by its tag, not made twice."""
    fake = serve(FakeBatches(shout, after=at_first("POST /batches", reply)))
    assert ask([request("a")], store, asker(timeout_s=0.5))[0] == {}
    assert (fake.count("POST /batches"), fake.asked()) == (1, [["a"]])


def test_a_batch_is_found_among_many(serve: Serve, store: ResponseStore) -> None:
    """The list of batches is read page by page."""
    fake = serve(FakeBatches(shout))

    def crowd(call: str) -> Reply | None:
        if call != "POST /batches":
            return None
        for number in range(250):
            other = fake.batches["batch_1"] | {"id": f"other_{number}", "metadata": None}
            fake.batches[f"other_{number}"] = other
        return error(500, "oops")

    fake.after = crowd
    assert (ask([request("a")], store)[0], fake.count("GET /batches")) == ({}, 3)
    assert fake.count("POST /batches") == 1


def test_a_server_that_takes_no_file_fails_the_requests(serve: Serve, store: ResponseStore) -> None:
    """After the declared tries the batch has failed, those behind it are not tried, and the next call may ask."""
    fake = serve(FakeBatches(shout, before=at_first("POST /files", error(500, "oops"), 3)))
    lost, _ = ask([request(name) for name in "abc"], store, requests=2)
    reason = "status 500: oops (after 3 tries)"
    failed, behind = ("failed", reason), ("pending", f"not asked: {reason}")
    assert outcomes(lost, "abc") == {"a": failed, "b": failed, "c": behind}
    assert (ask([request(name) for name in "abc"], store)[0], fake.asked()) == ({}, [["a", "b", "c"]])


def test_a_server_that_is_away_while_a_batch_runs(serve: Serve, store: ResponseStore) -> None:
    """When it cannot be looked at for long, the batch is left to the next call, which does not submit again."""
    fake = serve(FakeBatches(shout))
    fake.before = lambda call: error(503, "down") if call == "GET /batches/batch_1" else None
    lost, _ = ask([request("a")], store)
    reason = "batch batch_1 at 127.0.0.1 is validating (status 503: down); build again later to collect its answers"
    assert outcomes(lost, "a") == {"a": ("pending", reason)}
    assert fake.count("GET /batches/batch_1") == FAILURES_IN_A_ROW
    fake.before = lambda call: None
    assert (ask([request("a")], store)[0], fake.count("POST /batches")) == ({}, 1)


def test_nobody_knows_whether_there_is_a_batch(serve: Serve, store: ResponseStore) -> None:
    """When neither the reply to a batch nor the list can be had, nothing is submitted again until the list can."""
    fake = serve(FakeBatches(shout, after=at_first("POST /batches", error(500, "oops"))))
    fake.before = lambda call: error(503, "down") if call == "GET /batches" else None
    unknown = ("pending", "status 503: down (after 3 tries), so a batch may be under way or not; build again later")
    for _ in range(2):
        assert outcomes(ask([request("a")], store)[0], "a") == {"a": unknown}
    fake.before = lambda call: None
    assert (ask([request("a")], store)[0], fake.count("POST /batches"), texts(store, "a")) == ({}, 1, {"a": "A"})


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, f"Incorrect API key provided: {SECRET[:9]}"), "check the environment variable FAKE_API_KEY."),
        (error(403, f"{SECRET} may not"), "declare `mode: chat`. The server says: *** may not"),
        (error(404, "no such path"), "there is no Batch API at this address; declare `mode: chat`"),
        (error(400, "File is too large."), "declare `mode: chat`. The server says: File is too large."),
        (error(429, "You exceeded your quota", "insufficient_quota"), "the account's quota is used up"),
    ],
)
@pytest.mark.parametrize("call", ["POST /files", "POST /batches"])
def test_what_no_batch_survives_stops_the_run(
    serve: Serve, store: ResponseStore, call: str, reply: Reply, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong key, right or address stops everything, with the remedy; the key is in no message, log or file."""
    fake = serve(FakeBatches(shout, before=at_first(call, reply)))
    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as caught:
        ask([request("a")], store)
    assert message in str(caught.value)
    files = [path.read_bytes() for path in store.path.parent.glob("batches*")]
    assert files
    # a 401 quotes the key's beginning
    assert SECRET[:9] not in str(caught.value) + caplog.text
    assert SECRET[:9].encode() not in b"".join(files)
    # and leaves nothing behind that would hold up the next run
    assert (ask([request("a")], store)[0], fake.asked()) == ({}, [["a"]])


def test_results_that_are_gone(serve: Serve, store: ResponseStore) -> None:
    """Requests whose results the server has deleted fail, and are asked again."""
    fake = serve(FakeBatches(shout))
    fake.before = lambda call: error(404, "No such File") if call == "GET /files/file-2/content" else None
    reason = "the results of batch batch_1 are not on the server any more; build again to ask again"
    assert outcomes(ask([request("a")], store)[0], "a") == {"a": ("failed", reason)}
    assert (ask([request("a")], store)[0], fake.asked()) == ({}, [["a"], ["a"]])


def test_a_batch_that_the_server_does_not_know(serve: Serve, store: ResponseStore) -> None:
    """It is not submitted again while it may still answer somebody else's key; after a day it is."""
    fake = serve(FakeBatches(shout))
    ask([request("a")], store, asker(batch_max_wait_s=0))
    known, fake.batches = fake.batches, {}
    with pytest.raises(EndpointError, match=r"does not know the batch batch_1, .* use the address and the key of then"):
        ask([request("a")], store)
    assert (len(known), fake.count("POST /batches")) == (1, 1)
    connection = sqlite3.connect(store.path.with_name("batches.sqlite"))
    with connection:
        connection.execute("update batches set submitted_at = submitted_at - 100000")
    connection.close()
    assert (ask([request("a")], store)[0], fake.count("POST /batches")) == ({}, 2)


# --- restarts ---------------------------------------------------------------------------------------


SCRIPT = """
import os, signal, sys
from pathlib import Path
from assets_tests.llm.conftest import request
from assets_tests.llm.test_batches import ask
from estner_assets.llm.store import ResponseStore
def die(counts):
    if counts.done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
with ResponseStore(Path(sys.argv[1])) as store:
    print(len(ask([request(f"n{number}") for number in range(int(sys.argv[2]))], store, report=die)[0]))
"""
NEVER = 10**9


def child(store: ResponseStore, count: int, dies_at: int = NEVER) -> "subprocess.Popen[str]":
    """Ask ``count`` requests in a process of its own, which kills itself when ``dies_at`` of them are done."""
    command = [sys.executable, "-c", SCRIPT, str(store.path), str(count), str(dies_at)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("has_worked", [False, True])
@pytest.mark.parametrize("call", ["POST /files", "POST /batches", "GET /batches/batch_1", "GET /files/file-2/content"])
def test_a_killed_process_submits_nothing_twice(
    serve: Serve, store: ResponseStore, call: str, has_worked: bool
) -> None:
    """After a kill -9 during any call, also one that the server has carried out, each request is in one batch."""
    fake, reached, gone = serve(FakeBatches(shout)), threading.Event(), threading.Event()

    def hang(made: str) -> Reply | None:
        if made != call or reached.is_set():
            return None
        reached.set()
        gone.wait(60)
        return error(500, "nobody is there any more")

    if has_worked:
        fake.after = hang
    else:
        fake.before = hang
    with child(store, 3) as process:
        assert reached.wait(60)
        process.kill()
    gone.set()
    names = ["n0", "n1", "n2"]
    assert (ask([request(name) for name in names], store)[0], fake.asked()) == ({}, [names])
    assert texts(store, names) == {name: name.upper() for name in names}


def test_a_batch_that_is_made_after_the_kill_is_found(serve: Serve, store: ResponseStore) -> None:
    """A call that is still on its way when its process dies makes a batch that the next run waits for."""
    fake, reached, gone = serve(FakeBatches(shout)), threading.Event(), threading.Event()

    def dawdle(made: str) -> Reply | None:
        if made == "POST /batches" and not reached.is_set():
            reached.set()
            gone.wait(60)
            time.sleep(0.5)
        return None

    fake.before = dawdle
    with child(store, 3) as process:
        assert reached.wait(60)
        process.kill()
    gone.set()
    names = ["n0", "n1", "n2"]
    assert ask([request(name) for name in names], store, find_s=30.0)[0] == {}
    assert (fake.asked(), fake.count("POST /batches"), fake.count("GET /batches") > 1) == ([names], 1, True)


def test_a_process_that_is_killed_while_it_collects(serve: Serve, store: ResponseStore) -> None:
    """What it had stored stays, the rest is collected by the next run, and nothing is submitted again."""
    fake, names = serve(FakeBatches(shout)), [f"n{number}" for number in range(1200)]
    with child(store, 1200, dies_at=1) as process:
        assert process.wait(60) == -signal.SIGKILL
    kept = len(texts(store, names))
    lost, seen = ask([request(name) for name in names], store)
    assert (lost, kept, seen[0].cached, seen[-1].done, len(fake.batches)) == ({}, 500, 500, 1200, 1)
    assert texts(store, names) == {name: name.upper() for name in names}


def test_two_processes_submit_nothing_twice(serve: Serve, store: ResponseStore) -> None:
    """A run that meets requests in another one's batch waits for that batch, also while it is submitted."""
    fake = serve(FakeBatches(shout, polls=20))

    def slow(call: str) -> Reply | None:
        if call == "POST /files":
            time.sleep(0.5)
        return None

    fake.before = slow
    with child(store, 30) as first, child(store, 40) as second:
        assert [process.communicate()[0] for process in (first, second)] == ["0\n", "0\n"]
    asked = sorted(name for some in fake.asked() for name in some)
    assert asked == sorted(f"n{number}" for number in range(40))


# --- money ------------------------------------------------------------------------------------------

PRICE = Price.model_validate(
    {"input_per_million": 2, "output_per_million": 8, "currency": "USD", "as_of": "2025-06-01"}
)
ONE_ANSWER = Decimal("0.00003")
"""Half of the price of 10 + 5 tokens, which the fake server counts."""


def paid(name: str) -> Request:
    return request(name, max_tokens=7)


def budget(ledger: Ledger, **limits: int) -> Budget:
    return Budget(ledger, Account("b1", "a/p", "USD", limits), PRICE, is_batch=True)


def spent(ledger: Ledger) -> list[tuple[Decimal | None, int]]:
    """Return what was spent, and how many calls have no known end."""
    return [(one.cost, one.unsettled_calls) for one in ledger.spent()]


def test_answers_are_paid_and_failures_are_not(serve: Serve, store: ResponseStore, tmp_path: Path) -> None:
    """What was reserved is settled with what the answers came to; what failed, or expired, costs nothing."""
    serve(FakeBatches(shout, end="expired", answered=2))
    with Ledger(tmp_path / "spending.sqlite") as ledger:
        lost, _ = ask([paid(name) for name in "abc"], store, budget=budget(ledger))
        assert ([one.status for one in lost.values()], spent(ledger)) == (["failed"], [(2 * ONE_ANSWER, 0)])


def test_what_is_over_the_budget_is_not_uploaded(serve: Serve, store: ResponseStore, tmp_path: Path) -> None:
    """Requests beyond a limit stay out of the file, and are asked when there is money again."""
    fake, most = serve(FakeBatches(shout)), micros(worst_case(PRICE, paid("a"), is_batch=True))
    with Ledger(tmp_path / "spending.sqlite") as ledger:
        lost, _ = ask([paid(name) for name in "abc"], store, budget=budget(ledger, cell=2 * most))
        [(key, over)] = lost.items()
        assert (key, over.status, fake.asked()) == (paid("c").key, "over_budget", [["a", "b"]])
        assert over.reason.startswith("not asked: max_cost_per_cell is ")
        assert ask([paid("c")], store, budget=budget(ledger, cell=0))[0].keys() == {key}
        assert (len(fake.batches), fake.count("POST /files")) == (1, 1)
        assert ask([paid(name) for name in "abc"], store, budget=budget(ledger))[0] == {}
        assert (fake.asked(), spent(ledger)) == ([["a", "b"], ["c"]], [(3 * ONE_ANSWER, 0)])


def test_what_an_earlier_process_reserved_is_settled(serve: Serve, store: ResponseStore, tmp_path: Path) -> None:
    """Who collects a batch settles what its dead submitter reserved: answers as they came out, the rest as nothing."""
    fake, path = serve(FakeBatches(shout, end="expired", answered=1)), tmp_path / "spending.sqlite"
    with Ledger(path) as ledger:
        ask([paid("a"), paid("b")], store, asker(batch_max_wait_s=0), budget=budget(ledger))
        assert [unsettled for _, unsettled in spent(ledger)] == [2]

    def recover(call: str) -> Reply | None:
        if call == "POST /files":
            fake.answered = None
        return None

    fake.before = recover
    with Ledger(path) as ledger:
        assert ask([paid("a"), paid("b")], store, budget=budget(ledger))[0] == {}
        assert (fake.asked(), spent(ledger)) == ([["a", "b"], ["b"]], [(2 * ONE_ANSWER, 0)])


def test_what_could_not_be_sent_is_not_counted(serve: Serve, store: ResponseStore, tmp_path: Path) -> None:
    """A reservation for a file that no server took is taken back, also when the run stops over it."""
    fake = serve(FakeBatches(shout, before=at_first("POST /files", error(500, "oops"), 3)))
    with Ledger(tmp_path / "spending.sqlite") as ledger:
        ask([paid("a")], store, budget=budget(ledger))
        fake.before = at_first("POST /batches", error(401, "who are you?"))
        with pytest.raises(EndpointError):
            ask([paid("a")], store, budget=budget(ledger))
        assert (spent(ledger), len(fake.batches)) == ([], 0)


def test_results_that_are_read_again_are_paid_once(serve: Serve, store: ResponseStore, tmp_path: Path) -> None:
    """A download that breaks off after some answers were stored is made again, and settles none of them twice."""
    fake = serve(FakeBatches(shout))

    def broken(call: str) -> Reply | None:
        if call != "GET /files/file-2/content" or fake.count(call) > 1:
            return None
        whole = fake.files["file-2"].decode()
        return Reply(whole, cut_at=len(whole) * 9 // 10)

    fake.after = broken
    with Ledger(tmp_path / "spending.sqlite") as ledger:
        lost, seen = ask([paid(f"n{number}") for number in range(1100)], store, budget=budget(ledger))
        assert (lost, seen[-1].done, seen[-1].prompt_tokens, fake.count("POST /batches")) == ({}, 1100, 11000, 1)
        assert (fake.count("GET /files/file-2/content"), spent(ledger)) == (2, [(1100 * ONE_ANSWER, 0)])


# --- the file of batches ----------------------------------------------------------------------------


def open_new_files(folder: Path, together: Barrier) -> None:
    for number in range(60):
        together.wait()
        BatchStore(folder / f"{number}.sqlite").close()


def test_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Whoever comes first prepares the file, and nobody fails over it."""
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(4, timeout=20)
    processes = [spawn.Process(target=open_new_files, args=(tmp_path, together)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_key_is_in_one_open_batch(tmp_path: Path) -> None:
    """It cannot be taken again until its batch has ended or has dropped it."""
    with BatchStore(tmp_path / "batches.sqlite") as state:
        state.take("t1", "host", "model", ["a", "b", "c"])
        with pytest.raises(sqlite3.IntegrityError):
            state.take("t2", "host", "model", ["d", "a"])
        state.drop("t1", ["b"])
        state.take("t2", "host", "model", ["b"])
        assert state.holders("abcd") == {"a": "t1", "b": "t2", "c": "t1"}
        state.end("t1", "completed")
        assert (state.holders("abcd"), state.held("t2")) == ({"b": "t2"}, ["b"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file that holds no batches is named, not overwritten."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(BatchStoreError, match=r"x\.sqlite does not hold batches .* move it away"):
        BatchStore(path)
    assert path.read_bytes() == b"not a database" * 100


def test_an_llm_on_this_machine_has_no_batches() -> None:
    """What llama.cpp's server cannot do is refused when it is declared."""
    weights = {"package": "p", "version": "1", "file": "f", "sha256": "0" * 64, "licence": "MIT"}
    declared = {"key": "k", "title": "t", "prompts": ["p"], "model": "m", "kind": "llama_cpp", "weights": weights}
    assert LlamaCppAnnotator.model_validate(declared).mode == "chat"
    with pytest.raises(ValidationError, match="Input should be 'chat'"):
        LlamaCppAnnotator.model_validate(declared | {"mode": "batch"})
