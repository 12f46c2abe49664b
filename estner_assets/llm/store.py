"""The responses of LLMs on disk: what was paid for is never asked again, whatever happens to the process."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from operator import attrgetter
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from estner_assets.llm.requests import Response, now
from estner_assets.ner.parsing import AnswerStatus

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0
_KEYS_A_QUERY = 500

_SCHEMA = """
create table if not exists responses (
    key text primary key, status text not null, text text not null, reason text not null, finish_reason text,
    model_version text, prompt_tokens integer not null, completion_tokens integer not null,
    latency_s real not null, created_at text not null, raw_body text not null
) strict, without rowid;
create table if not exists set_aside (
    set_aside_at text not null, key text not null, status text not null, text text not null, reason text not null,
    finish_reason text, model_version text, prompt_tokens integer not null, completion_tokens integer not null,
    latency_s real not null, created_at text not null, raw_body text not null
) strict;
create table if not exists claims (key text primary key, owner text not null) strict, without rowid;
"""
_COLUMNS = ", ".join(field.name for field in fields(Response))
_values = attrgetter(*(field.name for field in fields(Response)))
_PUT = (
    f"insert or replace into responses ({_COLUMNS}, raw_body) values ({', '.join('?' * (len(fields(Response)) + 1))})"
)
_RELEASE = "delete from claims where key = ? and owner = ?"


class StoreError(RuntimeError):
    """A response store that cannot be used; the message says what to do."""


class Claim(Enum):
    """What became of a claim: it is ours, another living owner has it, or there is nothing left to ask."""

    OURS = "ours"
    TAKEN = "taken"
    STORED = "stored"


class ResponseStore:
    """Responses by request key, and who is asking for which key right now. Safe across threads and processes.

    An owner is alive as long as it holds the lock of its file beside the database; the operating system frees
    the lock when the process dies, however it dies, and its claims with it. No clock is involved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._owners = path.with_name(path.name + ".owners")
        self._alive: dict[str, FileLock] = {}
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StoreError(f"{path} is no response store ({error}); move it away to start a new one") from error

    def _prepare(self) -> None:
        # WAL lets readers go on while one writes; FULL survives a power cut, for these rows cost money
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = full")
        version = self._connection.execute("pragma user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"its schema has version {version}, expected {SCHEMA_VERSION}")
        with self._transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._connection.execute(statement)
            self._connection.execute(f"pragma user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            # immediate: take the write lock at once, so that two processes never deadlock on an upgrade
            self._connection.execute("begin immediate")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("rollback")
                raise
            self._connection.execute("commit")

    def get_many(self, keys: Iterable[str]) -> dict[str, Response]:
        """Return the stored responses of those keys that have one."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Response] = {}
        with self._lock:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                some = wanted[start : start + _KEYS_A_QUERY]
                marks = ", ".join("?" * len(some))
                rows = self._connection.execute(f"select {_COLUMNS} from responses where key in ({marks})", some)
                found |= {row[0]: Response(row[0], AnswerStatus(row[1]), *row[2:]) for row in rows}
        return found

    def known(self, keys: Sequence[str]) -> set[str]:
        """Return those keys that have a response, without reading it."""
        found: set[str] = set()
        with self._lock:
            for start in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[start : start + _KEYS_A_QUERY]
                marks = ", ".join("?" * len(some))
                found.update(
                    key
                    for (key,) in self._connection.execute(f"select key from responses where key in ({marks})", some)
                )
        return found

    def put(self, response: Response, raw_body: str) -> None:
        """Store a final response with the server's body; it is on disk when this returns."""
        _check_final(response)
        with self._transaction() as connection:
            connection.execute(_PUT, _row(response, raw_body))

    def set_aside(self, keys: Iterable[str]) -> int:
        """Keep the responses of these keys out of the way, so that they are asked again; return how many there were.

        They were paid for, so they are moved to ``set_aside`` and not deleted.
        """
        moved = 0
        with self._transaction() as connection:
            for key in dict.fromkeys(keys):
                connection.execute(
                    f"insert into set_aside select ?, {_COLUMNS}, raw_body from responses where key = ?", [now(), key]
                )
                moved += connection.execute("delete from responses where key = ?", [key]).rowcount
        return moved

    def raw_body(self, key: str) -> str | None:
        """Return what the server sent for this key, to the letter."""
        with self._lock:
            row = self._connection.execute("select raw_body from responses where key = ?", [key]).fetchone()
        return row[0] if row else None

    def claim(self, key: str, owner: str) -> bool:
        """Say that ``owner`` asks for this key now; return ``False`` while another living owner does."""
        self._keep_alive(owner)
        with self._transaction():
            return self._claim(key, owner)

    def _claim(self, key: str, owner: str) -> bool:
        row = self._connection.execute("select owner from claims where key = ?", [key]).fetchone()
        if row is not None and row[0] != owner and self._is_alive(row[0]):
            return False
        self._connection.execute("insert or replace into claims (key, owner) values (?, ?)", [key, owner])
        return True

    def release(self, key: str, owner: str) -> None:
        """Take the claim back; a claim of somebody else stays."""
        with self._transaction() as connection:
            connection.execute(_RELEASE, [key, owner])

    def commit(
        self, owner: str, puts: Sequence[tuple[Response, str]], releases: Sequence[str], claims: Sequence[str]
    ) -> dict[str, Claim]:
        """Do at once what ``put``, ``release`` and ``claim`` do one by one, and say what became of the claims.

        A put releases its key, too. All is on disk when this returns.
        """
        self._keep_alive(owner)
        with self._transaction() as connection:
            connection.executemany(_PUT, [_row(response, raw_body) for response, raw_body in puts])
            freed = [*releases, *(response.key for response, _ in puts)]
            connection.executemany(_RELEASE, [(key, owner) for key in freed])
            # looked up under the claim: another process may have answered since the run began
            stored = self.known(claims)
            return {key: Claim.STORED if key in stored else self._tried(key, owner) for key in claims}

    def _tried(self, key: str, owner: str) -> Claim:
        return Claim.OURS if self._claim(key, owner) else Claim.TAKEN

    def _keep_alive(self, owner: str) -> None:
        with self._lock:
            if owner not in self._alive:
                self._owners.mkdir(exist_ok=True)
                lock = FileLock(self._owners / owner, thread_local=False)
                lock.acquire(timeout=0)
                self._alive[owner] = lock

    def _is_alive(self, owner: str) -> bool:
        if owner in self._alive:
            return True
        path = self._owners / owner
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0, thread_local=False):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    def retire(self, owner: str) -> None:
        """Give up all claims of an owner, which asks no more."""
        with self._transaction() as connection:
            connection.execute("delete from claims where owner = ?", [owner])
            lock = self._alive.pop(owner, None)
            if lock is not None:
                (self._owners / owner).unlink(missing_ok=True)
                lock.release()

    def close(self) -> None:
        """Give up all claims and close the file."""
        with self._lock:
            for owner in list(self._alive):
                self.retire(owner)
            self._connection.close()

    def __enter__(self) -> "ResponseStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_final(response: Response) -> None:
    if not response.is_final:
        raise ValueError(f"a response that {response.status} is not final; storing it would stop the next try")


def _row(response: Response, raw_body: str) -> list[object]:
    return [_storable(value) for value in (*_values(response), raw_body)]


def _storable(value: object) -> object:
    if isinstance(value, AnswerStatus):
        return value.value
    # a lone surrogate has no UTF-8 and would make SQLite refuse the row
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value


@dataclass(frozen=True)
class _Wish:
    """What a worker wants of the store, and where it waits: a claim, a release, or with ``put`` a response."""

    key: str
    done: "asyncio.Future[Claim]"
    is_claim: bool = False
    put: tuple[Response, str] | None = None


class Journal:
    """Groups what many workers want of a store into few transactions; each waits until its own is on disk.

    A transaction starts when ``size`` wishes wait, or the first has waited for ``linger_s`` seconds; while one is
    written the next ones gather. Used on one event loop, writes in a thread of its own.
    """

    def __init__(self, store: ResponseStore, owner: str, size: int, linger_s: float) -> None:
        self._store, self._owner, self._size, self._linger_s = store, owner, size, linger_s
        self._wishes: list[_Wish] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_writing = False
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "journal")

    async def claim(self, key: str) -> Claim:
        """Claim a key that has no response yet."""
        return await self._wish(_Wish(key, self._loop.create_future(), is_claim=True))

    async def release(self, key: str) -> None:
        """Take a claim back."""
        await self._wish(_Wish(key, self._loop.create_future()))

    async def put(self, response: Response, raw_body: str) -> None:
        """Store a final response, and take the claim of its key back."""
        _check_final(response)
        await self._wish(_Wish(response.key, self._loop.create_future(), put=(response, raw_body)))

    def close(self) -> None:
        """Store what still waits to be stored, also when its worker was cancelled: it was paid for."""
        if self._timer is not None:
            self._timer.cancel()
        # first the transaction under way: nothing may claim after this
        self._thread.shutdown(wait=True)
        puts = [wish.put for wish in self._wishes if wish.put]
        self._wishes = []
        if puts:
            self._store.commit(self._owner, puts, [], [])

    async def _wish(self, wish: _Wish) -> Claim:
        self._wishes.append(wish)
        self._consider()
        return await wish.done

    def _consider(self) -> None:
        if self._is_writing or not self._wishes:
            return
        if len(self._wishes) >= self._size:
            self._write()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._linger_s, self._write)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wishes, self._wishes, self._is_writing = self._wishes, [], True
        puts = [wish.put for wish in wishes if wish.put]
        claims = [wish.key for wish in wishes if wish.is_claim]
        releases = [wish.key for wish in wishes if not wish.is_claim and not wish.put]
        work = self._loop.run_in_executor(self._thread, self._store.commit, self._owner, puts, releases, claims)
        work.add_done_callback(lambda done: self._written(wishes, done))

    def _written(self, wishes: list[_Wish], work: "asyncio.Future[dict[str, Claim]]") -> None:
        self._is_writing = False
        error = None if work.cancelled() else work.exception()
        for wish in wishes:
            if wish.done.done():
                continue  # its worker was cancelled
            if work.cancelled():
                wish.done.cancel()
            elif error is not None:
                wish.done.set_exception(error)
            else:
                wish.done.set_result(work.result().get(wish.key, Claim.OURS))
        self._consider()
