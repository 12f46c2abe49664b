"""The money that LLMs cost: reserved before a request is sent, so that no number of workers exceeds a limit.

A reservation counts as spent until it is settled or released. A process that dies leaves its own behind: the
provider may have charged for them, so they stay counted until a stored answer says what they did cost.
"""

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias
from uuid import uuid4

from filelock import FileLock, Timeout

from estner_assets.llm.prices import cost, micros, price_of, worst_case
from estner_assets.llm.requests import Request, Response
from estner_assets.settings import BudgetSettings, LlmAnnotator, Price

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0

_SCHEMA = """
create table if not exists calls (
    id integer primary key, key text not null, owner text not null, build_id text not null, cell text not null,
    day text not null, currency text, reserved_micros integer not null, settled_micros integer
) strict;
create index if not exists calls_by_key on calls (key);
create index if not exists open_calls on calls (owner, key) where settled_micros is null;
create table if not exists totals (
    currency text not null, scope text not null, name text not null, micros integer not null,
    primary key (currency, scope, name)
) strict, without rowid;
"""
# a currency that is null says that the price is unknown
_OPEN = """
select id, reserved_micros, key, owner, currency, build_id, cell, day from calls where settled_micros is null
"""
_SPENT = """
select currency, count(*), sum(coalesce(settled_micros, reserved_micros)), sum(settled_micros is null),
    sum(iif(settled_micros is null, reserved_micros, 0))
from calls
where build_id = coalesce(:build_id, build_id) and cell = coalesce(:cell, cell) and day = coalesce(:day, day)
group by currency order by currency
"""
_Total: TypeAlias = tuple[str, str, str]
"""Currency, scope (cell, build or day) and name of a running total."""


class BudgetError(ValueError):
    """A budget that cannot be kept; the message says what to declare."""


class LedgerError(RuntimeError):
    """A ledger that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Account:
    """Who pays: a cell of a build, in a currency (``None``: price unknown), up to limits in millionths of its unit."""

    build_id: str
    cell: str
    currency: str | None
    limits: Mapping[str, int]
    """By scope: ``cell``, ``build``, ``day``."""


@dataclass(frozen=True)
class OverBudget:
    """Why a request may not be sent. Amounts are in millionths of the currency's unit."""

    scope: str
    limit: int
    counted: int
    wanted: int
    currency: str | None

    def __str__(self) -> str:
        limit, counted, wanted = (f"{_amount(one)} {self.currency}" for one in (self.limit, self.counted, self.wanted))
        return (
            f"not asked: max_cost_per_{self.scope} is {limit}, {counted} are spent or reserved, and this request "
            f"may cost {wanted}; raise the limit in the profile's `budget` to go on"
        )


@dataclass(frozen=True)
class Spending:
    """What calls in one currency cost; ``cost`` counts those at their worst case that are not settled."""

    currency: str | None
    calls: int
    cost: Decimal | None
    """``None`` where the price is unknown, which is not zero."""
    unsettled_calls: int
    unsettled_cost: Decimal

    @property
    def unknown_price_calls(self) -> int:
        return self.calls if self.cost is None else 0

    def __str__(self) -> str:
        if self.cost is None:
            return f"price unknown (calls: {self.calls})"
        unsettled = f"; without a known end: {self.unsettled_calls}, {self.unsettled_cost} {self.currency}"
        return f"{self.cost} {self.currency} (calls: {self.calls}{unsettled if self.unsettled_calls else ''})"


def utc_now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


class _Call(NamedTuple):
    """An open reservation, in the order of ``_OPEN``."""

    id: int
    reserved: int
    key: str
    owner: str
    currency: str | None
    build_id: str
    cell: str
    day: str

    @property
    def totals(self) -> list[_Total]:
        return _totals(self.currency, self.build_id, self.cell, self.day)


class Ledger:
    """Reservations and what they came to. Safe across threads and processes.

    As in the response store, an owner is alive as long as it holds the lock of its file beside the database.
    ``clock`` returns times with a time zone; a day is a day in UTC.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._clock, self._lock, self._owner = clock, threading.RLock(), uuid4().hex
        self._owners = path.with_name(path.name + ".owners")
        self._alive: FileLock | None = None
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # one at a time: SQLite does not wait for its lock when it turns a new file to WAL
            with FileLock(path.with_name(path.name + ".opening"), timeout=BUSY_TIMEOUT_S, poll_interval=0.005):
                self._prepare()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise LedgerError(
                f"{path} cannot be used as a ledger ({error}); if it is none, move it away: "
                "a new one forgets what was spent"
            ) from error

    def _prepare(self) -> None:
        self._connection.execute("pragma journal_mode = wal")
        version = self._connection.execute("pragma user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"its schema has version {version}, expected {SCHEMA_VERSION}")
        with self._transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._connection.execute(statement)
            self._connection.execute(f"pragma user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self, survives_power_cut: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(f"pragma synchronous = {'full' if survives_power_cut else 'normal'}")
            # immediate: what is read here is still true when it is written
            self._connection.execute("begin immediate")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("rollback")
                raise
            self._connection.execute("commit")

    def reserve(self, account: Account, key: str, amount: int) -> OverBudget | None:
        """Reserve the worst case of one try of a request, or return which limit it would exceed."""
        return self.reserve_many(account, [(key, amount)])[0]

    def reserve_many(self, account: Account, amounts: Sequence[tuple[str, int]]) -> list[OverBudget | None]:
        """Do ``reserve`` for each key and amount, in their order, as one write that is on disk at the return.

        An open reservation of the same key stays counted: that try may have been charged.
        """
        self._come_alive()
        day = self._clock().astimezone(UTC).date().isoformat()
        with self._transaction() as connection:
            totals = _totals(account.currency, account.build_id, account.cell, day)
            counted = {total[1]: self._counted(total) for total in totals}
            verdicts = [_judged(account, counted, amount) for _, amount in amounts]
            granted = [pair for pair, verdict in zip(amounts, verdicts, strict=True) if verdict is None]
            who = (self._owner, account.build_id, account.cell, day, account.currency)
            connection.executemany(
                "insert into calls (key, owner, build_id, cell, day, currency, reserved_micros) "
                "values (?, ?, ?, ?, ?, ?, ?)",
                [(key, *who, amount) for key, amount in granted],
            )
            self._add({total: sum(amount for _, amount in granted) for total in totals})
        return verdicts

    def settle(self, key: str, actual: int | None) -> None:
        """Say what the newest own reservation of a key came to; ``None`` keeps the worst case."""
        self.settle_many({key: actual})

    def settle_many(self, actual: Mapping[str, int | None]) -> None:
        """Do ``settle`` for many keys as one write. After a power cut the reservation may stand here instead."""
        with self._transaction(survives_power_cut=False):
            changes: Counter[_Total] = Counter()
            for key, amount in actual.items():
                self._close(self._own(key), amount, changes)
            self._add(changes)

    def release(self, key: str) -> None:
        """Take the newest own reservation of a key back: nothing was sent, or refused before any work."""
        with self._transaction(survives_power_cut=False) as connection:
            call = self._own(key)
            connection.execute("delete from calls where id = ?", [call.id])
            self._add({total: -call.reserved for total in call.totals})

    def abandoned(self, cell: str | None = None) -> list[str]:
        """Return the keys, oldest first, of reservations whose process is gone: they may have been charged."""
        with self._lock:
            return [call.key for call in self._abandoned() if cell in (None, call.cell)]

    def recover(self, actual: Mapping[str, int | None]) -> int:
        """Settle abandoned reservations whose answer turned up, and return how many.

        An answer settles one try of its key, the last; where that is settled or still under way, none.
        """
        changes: Counter[_Total] = Counter()
        recovered = 0
        with self._transaction(survives_power_cut=False) as connection:
            last_tries = {call.key: call for call in self._abandoned() if call.key in actual}
            for key, call in last_tries.items():
                query = "select 1 from calls where key = ? and (settled_micros is not null or id > ?)"
                if connection.execute(query, [key, call.id]).fetchone() is None:
                    self._close(call, actual[key], changes)
                    recovered += 1
            self._add(changes)
        return recovered

    def spent(self, *, build_id: str | None = None, cell: str | None = None, day: date | None = None) -> list[Spending]:
        """Return what was spent, by currency; calls of unknown price, if any, come first."""
        chosen = {"build_id": build_id, "cell": cell, "day": day and day.isoformat()}
        with self._lock:
            rows = self._connection.execute(_SPENT, chosen).fetchall()
        return [
            Spending(currency, calls, _amount(spent) if currency is not None else None, unsettled, _amount(open_micros))
            for currency, calls, spent, unsettled, open_micros in rows
        ]

    def close(self) -> None:
        """Close the file. What is still reserved stays counted, as abandoned."""
        with self._lock:
            self._connection.close()
            if self._alive is not None:
                (self._owners / self._owner).unlink(missing_ok=True)
                self._alive.release()
                self._alive = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own(self, key: str) -> _Call:
        query = f"{_OPEN} and owner = ? and key = ? order by id desc limit 1"
        row = self._connection.execute(query, [self._owner, key]).fetchone()
        if row is None:
            raise ValueError(f"nothing is reserved for {key}; reserve before each try, then settle or release it once")
        return _Call(*row)

    def _close(self, call: _Call, amount: int | None, changes: Counter[_Total]) -> None:
        settled = call.reserved if amount is None else amount
        self._connection.execute("update calls set settled_micros = ? where id = ?", [settled, call.id])
        for total in call.totals:
            changes[total] += settled - call.reserved

    def _counted(self, total: _Total) -> int:
        query = "select micros from totals where currency = ? and scope = ? and name = ?"
        row = self._connection.execute(query, total).fetchone()
        return int(row[0]) if row else 0

    def _add(self, changes: Mapping[_Total, int]) -> None:
        self._connection.executemany(
            "insert into totals (currency, scope, name, micros) values (?, ?, ?, ?) "
            "on conflict do update set micros = micros + excluded.micros",
            [(*total, change) for total, change in changes.items() if change],
        )

    def _abandoned(self) -> list[_Call]:
        calls = [_Call(*row) for row in self._connection.execute(f"{_OPEN} order by id")]
        living = {owner for owner in {call.owner for call in calls} if self._is_alive(owner)}
        return [call for call in calls if call.owner not in living]

    def _come_alive(self) -> None:
        with self._lock:
            if self._alive is None:
                self._owners.mkdir(exist_ok=True)
                self._alive = FileLock(self._owners / self._owner, thread_local=False)
                self._alive.acquire(timeout=0)

    def _is_alive(self, owner: str) -> bool:
        path = self._owners / owner
        if owner == self._owner or not path.exists():
            return owner == self._owner
        try:
            with FileLock(path, timeout=0, thread_local=False):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
        return False


def _totals(currency: str | None, build_id: str, cell: str, day: str) -> list[_Total]:
    if currency is None:
        return []
    return [(currency, "cell", f"{build_id}\n{cell}"), (currency, "build", build_id), (currency, "day", day)]


def _judged(account: Account, counted: dict[str, int], wanted: int) -> OverBudget | None:
    for scope, limit in account.limits.items():
        if counted[scope] + wanted > limit:
            return OverBudget(scope, limit, counted[scope], wanted, account.currency)
    for scope in counted:
        counted[scope] += wanted
    return None


def _amount(millionths: int) -> Decimal:
    return Decimal(millionths).scaleb(-6)


@dataclass(frozen=True)
class Budget:
    """The money of one cell in one build, as the client asks for it. What is free is not written down."""

    ledger: Ledger
    account: Account
    price: Price | None
    is_batch: bool = False

    def reserve(self, request: Request) -> OverBudget | None:
        """Reserve one try of a request, or return why it may not be sent."""
        return self.reserve_many([request])[0]

    def reserve_many(self, requests: Sequence[Request]) -> list[OverBudget | None]:
        """Do ``reserve`` for each request, in their order, as one write."""
        if self._is_free:
            return [None] * len(requests)
        return self.ledger.reserve_many(self.account, [(request.key, self._most(request)) for request in requests])

    def settle(self, *responses: Response) -> None:
        """Say what answered requests came to; an answer without token counts keeps its worst case."""
        if not self._is_free:
            self.ledger.settle_many({response.key: self._actual(response) for response in responses})

    def release(self, key: str) -> None:
        """Take back the reservation of a request that was not sent, or refused before any work."""
        if not self._is_free:
            self.ledger.release(key)

    def recover(self, stored: Mapping[str, Response]) -> int:
        """Settle what dead processes reserved for requests that have an answer by now; return how many."""
        abandoned = self.abandoned()
        answered = {key: self._actual(stored[key]) for key in abandoned if key in stored}
        return self.ledger.recover(answered) if answered else 0

    def abandoned(self) -> list[str]:
        """Return the keys that dead processes reserved for this cell: those of others have other prices."""
        return [] if self._is_free else self.ledger.abandoned(self.account.cell)

    def spent(self) -> list[Spending]:
        """Return what the cell has cost in this build, by currency; nothing where it is free."""
        return self.ledger.spent(build_id=self.account.build_id, cell=self.account.cell)

    @property
    def _is_free(self) -> bool:
        return self.price is not None and self.price.is_free

    def _most(self, request: Request) -> int:
        return 0 if self.price is None else micros(worst_case(self.price, request, self.is_batch))

    def _actual(self, response: Response) -> int | None:
        if self.price is None or response.prompt_tokens <= 0 or (response.text and response.completion_tokens <= 0):
            return None
        tokens = response.prompt_tokens, response.completion_tokens
        return micros(cost(self.price, *tokens, is_batch=self.is_batch))


def budget_of(
    ledger: Ledger,
    annotator: LlmAnnotator,
    prices: Mapping[str, Price],
    settings: BudgetSettings,
    build_id: str,
    cell: str,
    is_batch: bool = False,
) -> Budget:
    """Return the budget of a cell; raise ``BudgetError`` where its limits cannot be checked."""
    price = price_of(annotator, prices)
    if settings.is_limited and price is None:
        raise BudgetError(
            f"the profile has a budget, but the price of {annotator.model!r} is unknown, so nothing is asked: add it "
            f"to declarations/prices.yaml, or say `price: free` at the annotator {annotator.key!r} if it costs nothing"
        )
    if settings.is_limited and price and not price.is_free and price.currency != settings.currency:
        raise BudgetError(
            f"the budget is in {settings.currency}, but the price of {annotator.model!r} in {price.currency}, so "
            "nothing is asked: state both in one currency"
        )
    account = Account(build_id, cell, price.currency if price else None, _limits(settings))
    return Budget(ledger, account, price, is_batch)


def _limits(settings: BudgetSettings) -> dict[str, int]:
    limits = {
        "cell": settings.max_cost_per_cell,
        "build": settings.max_cost_per_build,
        "day": settings.max_cost_per_day,
    }
    # exact: a limit has at most six decimal places
    return {scope: micros(limit) for scope, limit in limits.items() if limit is not None}
