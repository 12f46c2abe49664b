"""Laws of asking: retries, limits, the store, and giving up."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from assets_tests.llm.conftest import SECRET, FakeServer, annotator, request
from assets_tests.llm.fake_openai import Question, Reply, completion, error, in_turn
from estner_assets.llm import client
from estner_assets.llm.client import FAILURES_IN_A_ROW, KEYS_AT_ONCE, Progress, answer
from estner_assets.llm.endpoints import EndpointError, open_endpoint
from estner_assets.llm.requests import Request, Response
from estner_assets.llm.store import Claim, Journal, ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import AzureAnnotator, LlmAnnotator

GOOD = completion("{}")


def ask(
    requests: Sequence[Request],
    store: ResponseStore,
    asker: LlmAnnotator | None = None,
    backoff_s: float = 0.01,
) -> tuple[list[Response], list[Progress]]:
    asker, seen = asker or annotator(), list[Progress]()
    with open_endpoint(asker, lambda line: None) as endpoint:
        endpoint.backoff_s = backoff_s
        return answer(requests, endpoint, asker, store, Wall({}), seen.append), seen


def outcomes(responses: Sequence[Response]) -> list[tuple[str, str]]:
    return [(response.status.value, response.reason) for response in responses]


def test_answers_come_in_the_order_of_the_requests(serve: FakeServer, store: ResponseStore) -> None:
    """Each request gets its own answer in its place, whichever is ready first; equal ones are asked once."""
    fake = serve(lambda q: completion(q["messages"][0]["content"].upper()))
    responses, seen = ask([request(text) for text in "abcabd"], store)
    assert [response.text for response in responses] == ["A", "B", "C", "A", "B", "D"]
    assert sorted(fake.notes()) == ["a", "b", "c", "d"]
    assert (seen[0].done, seen[-1].done, seen[-1].total, seen[-1].cached, seen[-1].failed) == (0, 6, 6, 0, 0)
    assert (seen[-1].prompt_tokens, seen[-1].completion_tokens) == (40, 20)


def test_all_that_was_asked_and_answered_is_kept(serve: FakeServer, store: ResponseStore) -> None:
    """The parameters reach the server, its answer is stored raw with version and usage."""
    fake = serve(in_turn(GOOD))
    one = request("x", temperature=0, seed=3, max_tokens=7, grammar="root ::= x")
    [response], _ = ask([one], store)
    assert fake.questions == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "x"}],
            "temperature": 0,
            "seed": 3,
            "max_tokens": 7,
            "grammar": "root ::= x",
        }
    ]
    assert store.get_many([one.key]) == {one.key: response}
    assert (response.finish_reason, response.model_version, response.prompt_tokens) == (
        "stop",
        "fake-1 fp_7",
        10,
    )
    assert store.raw_body(one.key) == GOOD.body


def test_a_second_run_asks_nothing(serve: FakeServer, store: ResponseStore) -> None:
    """What the store has is not asked again, and counts as cached."""
    fake = serve(in_turn(GOOD))
    first, _ = ask([request("a"), request("b")], store)
    second, seen = ask([request("a"), request("b")], store)
    assert (second, len(fake.questions), seen[-1].cached, seen[-1].prompt_tokens) == (first, 2, 2, 0)


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "slow down"),
        error(500, "oops"),
        error(502, "oops"),
        error(503, "loading"),
        error(504, "oops"),
        Reply("<html>busy</html>", 503, {"Content-Type": "text/html"}),
        Reply(GOOD.body, cut_at=40),
        Reply(GOOD.body[:40]),
        Reply('{"choices": []}'),
        Reply("<html>login</html>", headers={"Content-Type": "text/html"}),
        Reply(GOOD.body, delay_s=0.6),
    ],
)
def test_what_may_heal_is_tried_again(serve: FakeServer, store: ResponseStore, failure: Reply) -> None:
    """Rate limits, server errors, time-outs and broken bodies are tried again, and the answer counts."""
    fake = serve(in_turn(failure, GOOD))
    responses, _ = ask([request("x")], store, annotator(timeout_s=0.4))
    assert (outcomes(responses), len(fake.questions)) == ([("annotated", "")], 2)


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (error(500, "oops"), "failed", "status 500: oops (after 3 tries)"),
        (Reply(GOOD.body, delay_s=0.4), "timed_out", "no answer within 0.2 s (after 3 tries)"),
        (Reply("{", 200), "failed", "unreadable answer: the body is no JSON"),
    ],
)
def test_what_does_not_heal_fails_and_is_asked_again_next_time(
    serve: FakeServer, store: ResponseStore, failure: Reply, status: str, reason: str
) -> None:
    """After the last try the request has failed; nothing is stored, so that the next run asks again."""
    fake = serve(in_turn(failure, failure, failure, GOOD))
    [(found, why)] = outcomes(ask([request("x")], store, annotator(timeout_s=0.2))[0])
    assert (found, why[: len(reason)], len(fake.questions)) == (status, reason, 3)
    assert outcomes(ask([request("x")], store)[0]) == [("annotated", "")]


def test_a_server_that_is_away_ends_the_run(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the first request's tries are enough; the host and what to look at are said."""
    monkeypatch.setenv("FAKE_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("FAKE_API_KEY", SECRET)
    with pytest.raises(EndpointError) as caught:
        ask([request(str(number)) for number in range(100)], store)
    assert str(caught.value) == (
        "no connection to 127.0.0.1 (ConnectError) in 3 tries; is the server running, and its address right?"
    )


def test_retry_after_is_obeyed(serve: FakeServer, store: ResponseStore) -> None:
    """The pause is the one that the server asks for, not our own."""
    serve(in_turn(error(429, "slow down", retry_after="0.3"), error(503, "x", retry_after_ms="100"), GOOD))
    began = time.monotonic()
    assert outcomes(ask([request("x")], store, backoff_s=30.0)[0]) == [("annotated", "")]
    assert 0.4 <= time.monotonic() - began < 5


def test_the_backoff_doubles(serve: FakeServer, store: ResponseStore) -> None:
    """Pauses grow exponentially, within half and one and a half of the plan."""
    serve(in_turn(error(500, "x"), error(500, "x"), GOOD))
    began = time.monotonic()
    ask([request("x")], store, backoff_s=0.2)
    assert 0.3 <= time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (completion('{"DRUG": ["a'), "annotated", ""),
        (
            completion('{"DRUG": ["a', "length"),
            "truncated",
            "the answer was cut at 5 tokens; raise max_answer_tokens",
        ),
        (completion("", "content_filter"), "filtered", "the server's content filter stopped it"),
        (error(400, "filtered", "content_filter"), "filtered", "filtered"),
        (completion(None, refusal="I cannot help"), "refused", "I cannot help"),
    ],
)
def test_final_outcomes_are_stored(
    serve: FakeServer, store: ResponseStore, reply: Reply, status: str, reason: str
) -> None:
    """An outcome that was paid for, or would repeat itself, is kept with its status and not asked again."""
    fake = serve(in_turn(reply))
    assert outcomes(ask([request("x")], store)[0]) == [(status, reason)]
    assert outcomes(ask([request("x")], store)[0]) == [(status, reason)]
    assert len(fake.questions) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, f"Incorrect API key provided: {SECRET}"), "check the environment variable FAKE_API_KEY."),
        (
            error(403, f"{SECRET} has no access"),
            "ask for access or declare another model. The server says: ***",
        ),
        (error(404, "no such model"), "there is no model 'fake' at this address"),
        (error(429, "You exceeded your quota", "insufficient_quota"), "the account's quota is used up"),
    ],
)
def test_what_no_request_survives_stops_the_run(
    serve: FakeServer, store: ResponseStore, reply: Reply, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong key or model stops everything after one request, with the remedy and without the key."""
    fake = serve(in_turn(reply))
    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as caught:
        ask([request(text) for text in "abcdef"], store)
    assert message in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text
    assert len(fake.questions) == 1
    # and leaves nothing behind that would hold up the next run
    fake.answer = lambda q: GOOD
    assert outcomes(ask([request(text) for text in "abcdef"], store)[0]) == [("annotated", "")] * 6


def test_no_more_at_once_than_declared(serve: FakeServer, store: ResponseStore) -> None:
    """The server never sees more requests at once than the annotator's concurrency, and sees that many."""
    fake = serve(lambda q: Reply(GOOD.body, delay_s=0.05))
    ask([request(str(number)) for number in range(20)], store, annotator(concurrency=3))
    assert fake.most_at_once == 3


def test_a_dead_server_is_not_asked_to_the_end(serve: FakeServer, store: ResponseStore) -> None:
    """After many failures in a row the rest is accounted for as not asked."""
    fake = serve(in_turn(error(500, "oops")))
    responses, seen = ask([request(str(number)) for number in range(60)], store, annotator(retries=0))
    statuses = [response.status for response in responses]
    assert set(statuses) == {AnswerStatus.FAILED, AnswerStatus.PENDING}
    assert FAILURES_IN_A_ROW <= statuses.count(AnswerStatus.FAILED) == len(fake.questions) < 35
    assert (seen[-1].done, seen[-1].failed) == (60, 60)


def schemaless(q: Question) -> Reply:
    form = q.get("response_format", {"type": "none"})["type"]
    return error(400, f"response_format {form} is not supported") if form.startswith("json") else GOOD


def test_a_server_without_schemas_is_asked_more_simply(serve: FakeServer, store: ResponseStore) -> None:
    """A format that the server rejects is replaced by a weaker one, once for all requests."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    fake = serve(schemaless)
    responses, _ = ask([request(text, response_format=form) for text in "abcd"], store)
    assert outcomes(responses) == [("annotated", "")] * 4
    used = [question.get("response_format", {}).get("type") for question in fake.questions]
    assert used == ["json_schema", "json_object", None, None, None, None]


def test_a_request_that_the_server_rejects_fails_alone(serve: FakeServer, store: ResponseStore) -> None:
    """A note that is too long for the model costs only itself, and says why."""
    serve(lambda q: error(400, "context too long") if q["messages"][0]["content"] == "long" else GOOD)
    responses, _ = ask([request("long"), request("x")], store)
    refused = ("failed", "the server refused the request (400): context too long")
    assert outcomes(responses) == [refused, ("annotated", "")]


def test_an_unvetted_note_stops_the_run_before_anything_is_sent(
    serve: FakeServer, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall looks at all requests before the first goes out; a proxy or a redirect is no way round it."""
    fake = serve(lambda q: Reply("", 307, {"Location": "http://elsewhere.invalid/v1"}))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    [(status, reason)] = outcomes(ask([request("x")], store, annotator(retries=0))[0])
    assert (status, reason, len(fake.questions)) == ("failed", "the server refused the request (307): ", 1)


SCRIPT = """
import os, sys
from pathlib import Path
from assets_tests.llm.conftest import annotator, request
from assets_tests.llm.test_client import ask
from estner_assets.llm.store import ResponseStore
with ResponseStore(Path(sys.argv[1])) as store:
    ask([request(str(number)) for number in range(30)], store, annotator(concurrency=2))
"""


def test_a_killed_run_is_taken_up_where_it_stopped(serve: FakeServer, store: ResponseStore) -> None:
    """After a kill -9 the next run asks what has no answer yet and nothing that has one."""
    fake = serve(lambda q: Reply(GOOD.body, delay_s=0.1))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(store.path)], cwd=Path(__file__).parents[2])
    keys = [request(str(number)).key for number in range(30)]
    while len(stored := store.get_many(keys)) < 6 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = store.get_many(keys)
    assert 6 <= len(stored) < 30
    before = len(fake.questions)
    fake.answer = lambda q: GOOD
    responses, seen = ask([request(str(number)) for number in range(30)], store)
    assert outcomes(responses) == [("annotated", "")] * 30
    assert (len(fake.questions) - before, seen[-1].cached) == (30 - len(stored), len(stored))


def test_two_processes_do_not_ask_the_same(serve: FakeServer, store: ResponseStore) -> None:
    """A run that meets another one's question waits for its answer."""
    fake = serve(lambda q: Reply(GOOD.body, delay_s=0.05))
    command = [sys.executable, "-c", SCRIPT, str(store.path)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(fake.notes()) == sorted(map(str, range(30)))


def test_asking_returns_only_what_is_not_stored(serve: FakeServer, store: ResponseStore) -> None:
    """Of many requests those come back, by key, that failed; the others are in the store."""
    serve(lambda q: error(500, "oops") if q["messages"][0]["content"] == "b" else GOOD)
    requests = [request(text) for text in "abcb"]
    with open_endpoint(asker := annotator(retries=0), print) as endpoint:
        lost = client.ask(requests, endpoint, asker, store, Wall({}), lambda progress: None)
    failed = request("b").key
    assert [(key, one.reason) for key, one in lost.items()] == [(failed, "status 500: oops (after 1 tries)")]
    assert store.known([one.key for one in requests]) == {request("a").key, request("c").key}


class Rendered(Sequence[Request]):
    """Requests that are made when they are looked at; counts how many are alive."""

    def __init__(self, count: int) -> None:
        self._count, self.alive, self.most_alive = count, 0, 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Request:  # type: ignore[override]
        if index >= self._count:
            raise IndexError(index)
        made = request(str(index))
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(made, self._gone)
        return made

    def _gone(self) -> None:
        self.alive -= 1


def test_few_requests_are_held_at_once(serve: FakeServer, store: ResponseStore) -> None:
    """However many there are, only those under way are rendered, and none is kept."""
    serve(lambda q: GOOD)
    requests = Rendered(3 * KEYS_AT_ONCE)
    puts = [(Response(request(str(one)).key, AnswerStatus.ANNOTATED, "{}"), "{}") for one in range(1400)]
    store.commit("earlier", puts, [], [])
    with open_endpoint(asker := annotator(), print) as endpoint:
        lost = client.ask(requests, endpoint, asker, store, Wall({}), lambda progress: None)
    assert (lost, requests.most_alive < 20, requests.alive) == ({}, True, 0)


def test_only_the_first_request_goes_alone(serve: FakeServer, store: ResponseStore) -> None:
    """When the first answer is there, as many as are allowed are sent together."""
    at_once: list[int] = []

    def reply(question: Question) -> Reply:
        at_once.append(fake.at_once)
        return replace(GOOD, delay_s=0.5)

    fake = serve(reply)
    ask([request(str(number)) for number in range(9)], store, annotator(concurrency=8))
    # on a busy machine not all eight arrive before the first of them is answered
    assert (at_once[:2], max(at_once) > 4) == ([1, 1], True)


@pytest.mark.parametrize("kind", ["openai_compatible", "azure_openai"])
def test_all_requests_go_where_the_first_went(
    kind: str, serve: FakeServer, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later requests have the path and the headers of the one that the SDK built, but for its telemetry."""
    fake = serve(lambda q: GOOD)
    asker: LlmAnnotator = annotator(concurrency=1)
    if kind == "azure_openai":
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", fake.url.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", SECRET)
        asker = AzureAnnotator.model_validate(
            {"key": "a", "title": "A", "prompts": ["p"], "kind": kind, "model": "mine", "api_version": "2024-10-21"}
        )
    ask([request(text) for text in ("first", "second õ")], store, asker)
    assert fake.notes() == ["first", "second õ"]
    first, second = (
        {name.lower(): value for name, value in found.items() if name.lower() != "content-length"}
        for found in fake.headers
    )
    assert fake.paths[0] == fake.paths[1]
    assert second == {name: value for name, value in first.items() if not name.startswith("x-stainless-")}
    assert SECRET in second["api-key" if kind == "azure_openai" else "authorization"]


def test_a_proxy_is_used_for_other_hosts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to this machine have connections of their own; where a proxy is set, others are left to the SDK."""
    monkeypatch.setenv("FAKE_API_KEY", SECRET)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    found = []
    for address in ("http://127.0.0.1:9/v1", "https://llm.invalid/v1"):
        monkeypatch.setenv("FAKE_BASE_URL", address)
        with open_endpoint(annotator(), print) as endpoint:
            found.append(endpoint.spread is None)
    assert found == [False, True]


def test_what_waits_for_the_disk_is_stored_when_the_run_ends(store: ResponseStore) -> None:
    """An answer whose worker was cancelled before it was written is written all the same, and claims nothing."""
    response = Response("k", AnswerStatus.ANNOTATED, "{}")

    async def cancelled() -> None:
        journal = Journal(store, "owner", size=100, linger_s=60.0)
        tasks = [asyncio.create_task(journal.put(response, "{}")), asyncio.create_task(journal.claim("other"))]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        journal.close()

    asyncio.run(cancelled())
    assert (store.get_many(["k", "other"]), store.claim("other", "heir")) == ({"k": response}, True)


def test_wishes_are_granted_together(store: ResponseStore) -> None:
    """Claims, answers and releases that wait together are written together; each hears what became of it."""
    with ResponseStore(store.path) as other:
        other.claim("theirs", "somebody")
        store.put(Response("stored", AnswerStatus.ANNOTATED), "")
        store.claim("left", "owner")

        async def wishes() -> list[object]:
            journal = Journal(store, "owner", size=5, linger_s=60.0)
            claims = [journal.claim(key) for key in ("free", "theirs", "stored")]
            put = journal.put(Response("new", AnswerStatus.ANNOTATED), "raw")
            found = await asyncio.gather(*claims, put, journal.release("left"))
            journal.close()
            return list(found)

        assert asyncio.run(wishes()) == [Claim.OURS, Claim.TAKEN, Claim.STORED, None, None]
        assert (other.raw_body("new"), other.claim("left", "heir"), other.claim("free", "heir")) == ("raw", True, False)
        store.retire("owner")
