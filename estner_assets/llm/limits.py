"""How fast an endpoint may be asked: requests and tokens per minute, requests at once, and pauses for all.

The rates are declared or learnt from the server's ``x-ratelimit-*`` headers (OpenAI's guide "Rate limits", whose
reset times are Go durations such as ``6m0s`` or ``20ms``). The number at once follows AIMD: Chiu and Jain 1989,
"Analysis of the increase and decrease algorithms for congestion avoidance in computer networks".
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

WINDOW_S = 60.0
MIN_ALLOWED = 1.0
_STEPS_A_WINDOW = 240
_DECREASE = 0.5
_FIRST_TOKENS_A_CHARACTER = 0.5
_MEMORY = 0.1
"""Weight of the newest answer in the moving average of tokens per character."""
_PREFIX = b"x-ratelimit-"
_KNOWN = re.compile(r"(limit|remaining|reset)-(requests|tokens)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class Quota:
    """What a server says of one limit: units a minute, units left, and the seconds until all are back."""

    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None


def duration_s(text: str) -> float | None:
    """Return the seconds of a duration such as ``6m0s``, ``20ms`` or ``1.5``; ``None`` for anything else."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def read_quotas(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, Quota]:
    """Return the quotas of ``requests`` and ``tokens`` that the headers state; what is unreadable is left out."""
    stated: dict[str, dict[str, float]] = {}
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        match = _KNOWN.fullmatch(name[len(_PREFIX) :].decode("ascii", "replace")) if name.startswith(_PREFIX) else None
        value = duration_s(raw_value.decode("ascii", "replace")) if match else None
        if match and value is not None:
            stated.setdefault(match[2], {})[match[1]] = value
    return {kind: _quota(values) for kind, values in stated.items()}


def _quota(values: Mapping[str, float]) -> Quota:
    limit, remaining = (int(values[name]) if name in values else None for name in ("limit", "remaining"))
    return Quota(limit or None, remaining, values.get("reset"))


class Window:
    """Lets at most ``limit`` units through in any ``window_s`` seconds; ``None``: any number.

    What began within one step (a 240th of the window) is remembered together, until its last moment has left the
    window: memory is bounded, and the limit is kept from the safe side.
    """

    def __init__(self, limit: int | None, window_s: float, clock: Callable[[], float]) -> None:
        self.limit, self._declared, self._window_s, self._clock = limit, limit, window_s, clock
        self._step_s = window_s / _STEPS_A_WINDOW
        self._entries: deque[list[float]] = deque()
        self._used = 0.0
        self._foreign_until, self._foreign = -math.inf, 0.0

    def wait_s(self, units: float) -> float:
        """Return the seconds until so many units fit; more than the limit fit into an empty window."""
        now = self._forget()
        if self.limit is None:
            return max(0.0, self._foreign_until - now)
        free = self.limit - min(units, self.limit) - self._used - self._foreign
        if free >= 0:
            return 0.0
        until = now
        for expires, amount in sorted([*self._entries, [self._foreign_until, self._foreign]]):
            if free >= 0:
                break
            free, until = free + amount, max(until, expires)
        return until - now

    def take(self, units: float) -> list[float]:
        """Count units that go out now; return the entry that ``correct`` may change."""
        now = self._forget()
        # a step more than it needs: the server's clock starts when the request arrives, sometimes a little late
        expires = (math.floor(now / self._step_s) + 2) * self._step_s + self._window_s
        if not self._entries or self._entries[-1][0] < expires:
            self._entries.append([expires, 0.0])
        self._entries[-1][1] += units
        self._used += units
        return self._entries[-1]

    def correct(self, entry: list[float], units: float) -> None:
        """Add units, or with a negative number take some back, that an entry had been counted without."""
        if entry[0] > self._clock():
            entry[1] += units
            self._used += units

    def learn(self, quota: Quota) -> None:
        """Take over a stricter limit, and count what others have used of it until the server gives it back."""
        if quota.limit is not None:
            self.limit = min(self._declared or quota.limit, quota.limit)
        if quota.remaining is None:
            return
        now = self._forget()
        # without a known limit there is only all or nothing
        gap = -float(quota.remaining) + (1 if self.limit is None else self.limit - self._used)
        reset_s = self._window_s if quota.reset_s is None else min(quota.reset_s, self._window_s)
        self._foreign, self._foreign_until = (gap, now + reset_s) if gap > 0 else (0.0, -math.inf)

    def _forget(self) -> float:
        now = self._clock()
        while self._entries and self._entries[0][0] <= now:
            self._used -= self._entries.popleft()[1]
        if self._foreign_until <= now:
            self._foreign = 0.0
        return now


@dataclass
class Turn:
    """One try of one request, from its start to ``Limits.end``; ``tokens`` were estimated for it."""

    number: int
    characters: int
    answer_tokens: int
    tokens: float
    entry: list[float] | None = field(default=None, repr=False)


class Limits:
    """What all workers of an endpoint share. Used on one event loop; ``clock`` gives seconds that never go back.

    ``concurrency`` bounds the requests at once from above. A server that is overloaded halves the number, once
    for all requests that were under way together; a number of answers as large as it adds one again.
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.concurrency, self.allowed, self.at_once, self.answers = concurrency, float(concurrency), 0, 0
        self._clock = clock
        self._requests = Window(requests_per_minute, window_s, clock)
        self._tokens = Window(tokens_per_minute, window_s, clock)
        self._tokens_a_character = _FIRST_TOKENS_A_CHARACTER
        self._paused_until, self._started, self._slowed_at = -math.inf, 0, 0
        self._queue, self._changed = asyncio.Lock(), asyncio.Event()

    def estimate(self, characters: int, answer_tokens: int) -> float:
        """Return the tokens that a request may cost at most: its text by the ratio seen so far, and the answer."""
        return characters * self._tokens_a_character + answer_tokens

    def wait_s(self, tokens: float) -> float:
        """Return the seconds until a request may start; infinite while it waits for another one's end."""
        pause_s = self._paused_until - self._clock()
        if pause_s > 0:
            return pause_s
        if self.at_once >= int(self.allowed):
            return math.inf
        return max(self._requests.wait_s(1), self._tokens.wait_s(tokens))

    def start(self, characters: int = 0, answer_tokens: int = 0) -> Turn:
        """Count a request as under way from now on."""
        tokens = self.estimate(characters, answer_tokens)
        turn = Turn(self._started, characters, answer_tokens, tokens)
        self._started += 1
        self.at_once += 1
        self._requests.take(1)
        if self._tokens.limit is not None:
            turn.entry = self._tokens.take(tokens)
        return turn

    async def turn(self, characters: int = 0, answer_tokens: int = 0) -> Turn:
        """Wait until a request may start, first come first served, and start it. ``end`` must follow."""
        # the short way, when nobody waits: a lock and an estimate for each request would be a tenth of our time
        if not self._queue.locked() and self.wait_s(self.estimate(characters, answer_tokens)) <= 0:
            return self.start(characters, answer_tokens)
        async with self._queue:
            while (pause_s := self.wait_s(self.estimate(characters, answer_tokens))) > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if pause_s == math.inf else pause_s):
                        await self._changed.wait()
            return self.start(characters, answer_tokens)

    def end(self, turn: Turn) -> None:
        """Count a request as over, whatever became of it."""
        self.at_once -= 1
        self._changed.set()

    def answered(self, turn: Turn, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Correct the estimate by what the server counted (0: it did not), and allow a little more at once."""
        self.answers += 1
        self.allowed = min(float(self.concurrency), self.allowed + 1 / self.allowed)
        if not prompt_tokens:
            return
        if turn.entry is not None:
            self._tokens.correct(turn.entry, prompt_tokens + completion_tokens - turn.tokens)
        if turn.characters:
            seen = prompt_tokens / turn.characters
            self._tokens_a_character += _MEMORY * (seen - self._tokens_a_character)

    def overloaded(self, turn: Turn, pause_s: float | None = None) -> None:
        """Allow half as many at once; with a pause, in seconds, let no worker start anything before it is over."""
        # those under way together met the same overload; each of them would halve the number once more
        if turn.number >= self._slowed_at:
            self.allowed = max(MIN_ALLOWED, self.allowed * _DECREASE)
            self._slowed_at = self._started
        if pause_s is not None:
            self._paused_until = max(self._paused_until, self._clock() + pause_s)

    def learn(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over what the headers of an answer say of the limits."""
        quotas = read_quotas(headers)
        for kind, window in (("requests", self._requests), ("tokens", self._tokens)):
            if kind in quotas:
                window.learn(quotas[kind])
