"""Laws of limits: rates, requests at once, pauses; by a clock of our own, and against a server."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from assets_tests.llm.conftest import FakeServer, annotator, request
from assets_tests.llm.fake_openai import Question, Reply, completion, error
from estner_assets.llm.client import answer
from estner_assets.llm.endpoints import open_endpoint
from estner_assets.llm.limits import Limits, Quota, Window, duration_s, read_quotas
from estner_assets.llm.requests import Response
from estner_assets.llm.store import ResponseStore
from estner_assets.llm.wall import Wall
from estner_assets.settings import LlmAnnotator

GOOD = completion("{}")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", 86400.0),
        ("500us", 0.0005),
        ("7", 7.0),
        ("1.5", 1.5),
        ("0s", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1s later", None),
        ("2026-01-01T00:00:00Z", None),
    ],
)
def test_reset_times_are_durations(text: str, seconds: float | None) -> None:
    """Go's durations and plain seconds are read, anything else is nothing."""
    assert duration_s(text) == pytest.approx(seconds)


def test_quotas_are_read_from_headers() -> None:
    """Each limit is read with what is left and when it is back; other and unreadable headers are passed over."""
    headers = [
        (b"X-RateLimit-Limit-Requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
        (b"x-ratelimit-limit-tokens", b"many"),
        (b"x-ratelimit-remaining-tokens", b"149984"),
        (b"x-ratelimit-reset-tokens", b"6m0s"),
        (b"x-ratelimit-limit-images", b"5"),
        (b"retry-after", b"3"),
    ]
    assert read_quotas(headers) == {"requests": Quota(60, 59, 1.0), "tokens": Quota(None, 149984, 360.0)}


def test_no_window_holds_more_than_the_limit() -> None:
    """However uneven the starts, any minute sees at most the limit, and hardly less than that is possible."""
    clock = Clock()
    window, starts = Window(10, 60.0, clock), list[float]()
    for number in range(200):
        clock.now_s += (number % 7) * 0.9
        clock.now_s += window.wait_s(1)
        window.take(1)
        starts.append(clock.now_s)
    assert min(later - first for first, later in zip(starts, starts[10:], strict=False)) >= 60.0
    assert starts[-1] - starts[0] < 20 * 60.0


def test_what_is_larger_than_the_limit_goes_alone() -> None:
    """A request of more tokens than a minute allows waits for an empty window and not for ever."""
    clock = Clock()
    window = Window(100, 60.0, clock)
    assert window.wait_s(1000) == 0
    window.take(1000)
    clock.now_s += (pause := window.wait_s(1000))
    assert (60.0 <= pause < 61.0, window.wait_s(1000)) == (True, 0)


def test_an_estimate_is_corrected() -> None:
    """What an answer did not use is free again at once, and the next estimate is nearer to what was seen."""
    limits = Limits(8, tokens_per_minute=1000, clock=Clock())
    first = limits.start(characters=1000, answer_tokens=400)
    assert (first.tokens, limits.wait_s(200) > 59) == (900.0, True)
    limits.answered(first, prompt_tokens=250, completion_tokens=50)
    assert (limits.wait_s(700), limits.wait_s(701) > 59) == (0, True)
    assert limits.estimate(1000, 400) == pytest.approx(875.0)


def test_overload_halves_and_answers_add_one() -> None:
    """Of requests under way together the first overload counts; as many answers as are allowed add one."""
    limits = Limits(16, clock=Clock())
    together = [limits.start() for _ in range(16)]
    seen = [limits.allowed]
    for turn in together:
        limits.overloaded(turn)
        limits.end(turn)
    seen.append(limits.allowed)
    for _ in range(5):
        limits.overloaded(turn := limits.start())
        limits.end(turn)
        seen.append(limits.allowed)
    assert seen == [16, 8, 4, 2, 1, 1, 1]
    limits.answered(limits.start())
    assert limits.allowed == 2
    for _ in range(1000):
        limits.answered(limits.start())
    assert limits.allowed == 16


def test_no_more_start_than_are_allowed() -> None:
    """A request waits for another one's end while all places are taken."""
    limits = Limits(2, clock=Clock())
    turns = [limits.start() for _ in range(2)]
    waits = [limits.wait_s(0)]
    limits.end(turns[0])
    assert [*waits, limits.wait_s(0)] == [math.inf, 0]


def test_a_pause_is_for_all() -> None:
    """Nothing starts during a pause; the longest one counts."""
    clock = Clock()
    limits = Limits(8, clock=clock)
    for pause_s in (20.0, 5.0):
        limits.overloaded(turn := limits.start(), pause_s)
        limits.end(turn)
    waits = [limits.wait_s(0)]
    clock.now_s += 20.0
    assert [*waits, limits.wait_s(0)] == [20.0, 0]


def headers(kind: str, limit: str, remaining: str, reset: str) -> list[tuple[bytes, bytes]]:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items() if value]


@pytest.mark.parametrize("limit", ["50", ""])
def test_what_others_have_used_is_respected(limit: str) -> None:
    """When the server says that nothing is left, nothing starts before it gives something back."""
    clock = Clock()
    limits = Limits(8, clock=clock)
    limits.learn(headers("requests", limit, "0", "12s"))
    waits = [limits.wait_s(0)]
    clock.now_s += 12.0
    assert [*waits, limits.wait_s(0)] == [12.0, 0]


def test_the_stricter_limit_counts() -> None:
    """A declared limit holds against a server that allows more, and not against one that allows less."""
    found = []
    for stated in ("3", "9"):
        limits = Limits(99, requests_per_minute=5, clock=Clock())
        limits.learn(headers("requests", stated, stated, "0s"))
        found.append(next(count for count in range(10) if limits.wait_s(0) or not limits.start()))
    assert found == [3, 5]


# --- against a server -------------------------------------------------------------------------------


def run(count: int, store: ResponseStore, asker: LlmAnnotator, limits: Limits, **parameters: object) -> list[Response]:
    requests = [request(str(number), **parameters) for number in range(count)]
    with open_endpoint(asker, print) as endpoint:
        endpoint.limits, endpoint.backoff_s = limits, 0.01
        return answer(requests, endpoint, asker, store, Wall({}), lambda progress: None)


def statuses(responses: list[Response]) -> list[str]:
    return [response.status.value for response in responses]


def test_a_server_that_takes_few_at_once_gets_few(serve: FakeServer, store: ResponseStore) -> None:
    """Whoever answers 429 beyond some at once loses no request, and is soon asked about as many as it takes."""
    at_once: list[int] = []

    def reply(question: Question) -> Reply:
        at_once.append(fake.at_once)
        return replace(error(429, "too many at once") if fake.at_once > 3 else GOOD, delay_s=0.1)

    fake = serve(reply)
    limits = Limits(16)
    responses = run(60, store, annotator(concurrency=16, retries=2), limits)
    assert statuses(responses) == ["annotated"] * 60
    assert (max(at_once) > 8, max(at_once[-30:]) <= 8, limits.allowed < 8) == (True, True, True)


def arrivals(serve: FakeServer, reply: Callable[[int], Reply]) -> list[float]:
    """Serve replies by the number of the request, and return when they arrive."""
    times: list[float] = []

    def timed(question: Question) -> Reply:
        times.append(time.monotonic())
        return reply(len(times))

    serve(timed)
    return times


def test_requests_a_minute_are_kept(serve: FakeServer, store: ResponseStore) -> None:
    """No window, here of half a second, sees more requests than declared, tries that failed included."""
    times = arrivals(serve, lambda number: error(500, "oops") if number % 5 == 0 else GOOD)
    limits = Limits(8, requests_per_minute=10, window_s=0.5)
    assert statuses(run(30, store, annotator(concurrency=8, retries=9), limits)) == ["annotated"] * 30
    # a twentieth for the way: what started in order may arrive a little late
    assert min(later - first for first, later in zip(times, times[10:], strict=False)) >= 0.95 * 0.5
    assert times[-1] - times[0] < 3 * len(times) / 10 * 0.5


def test_tokens_a_minute_are_kept(serve: FakeServer, store: ResponseStore) -> None:
    """No window sees more tokens than declared; a fake answer says that it cost fifteen."""
    times = arrivals(serve, lambda number: GOOD)
    limits = Limits(8, tokens_per_minute=90, window_s=0.5)
    assert statuses(run(18, store, annotator(concurrency=8), limits, max_tokens=15)) == ["annotated"] * 18
    assert min(later - first for first, later in zip(times, times[6:], strict=False)) >= 0.95 * 0.5


def test_retry_after_stops_all_workers(serve: FakeServer, store: ResponseStore) -> None:
    """After a 429 with Retry-After no worker sends anything until the pause is over."""
    times = arrivals(serve, lambda number: error(429, "slow", retry_after="0.5") if number == 9 else GOOD)
    assert statuses(run(40, store, annotator(concurrency=4), Limits(4))) == ["annotated"] * 40
    refused = times[8]
    assert [moment for moment in times if refused + 0.1 < moment < refused + 0.45] == []
    assert sum(moment > refused + 0.45 for moment in times) > 20


def test_a_server_says_when_it_has_room(serve: FakeServer, store: ResponseStore) -> None:
    """When an answer's headers say that no request is left, all wait until the server's reset."""
    full = {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "400ms",
    }
    times = arrivals(serve, lambda number: replace(GOOD, headers=full) if number == 1 else GOOD)
    assert statuses(run(5, store, annotator(), Limits(4))) == ["annotated"] * 5
    assert times[1] - times[0] >= 0.4
