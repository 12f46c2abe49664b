"""The responses of LLMs on disk: what was paid for is never asked again, whatever happens to the process."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from estner_assets.llm.requests import Response
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
create table if not exists claims (key text primary key, owner text not null) strict, without rowid;
"""
_COLUMNS = ", ".join(field.name for field in fields(Response))


class StoreError(RuntimeError):
    """A response store that cannot be used; the message says what to do."""


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

    def put(self, response: Response, raw_body: str) -> None:
        """Store a final response with the server's body; it is on disk when this returns."""
        if not response.is_final:
            raise ValueError(f"a response that {response.status} is not final; storing it would stop the next try")
        values = [_storable(value) for value in astuple(response)]
        with self._transaction() as connection:
            marks = ", ".join("?" * (len(values) + 1))
            connection.execute(
                f"insert or replace into responses ({_COLUMNS}, raw_body) values ({marks})",
                [*values, _storable(raw_body)],
            )

    def raw_body(self, key: str) -> str | None:
        """Return what the server sent for this key, to the letter."""
        with self._lock:
            row = self._connection.execute("select raw_body from responses where key = ?", [key]).fetchone()
        return row[0] if row else None

    def claim(self, key: str, owner: str) -> bool:
        """Say that ``owner`` asks for this key now; return ``False`` while another living owner does."""
        self._keep_alive(owner)
        with self._transaction() as connection:
            row = connection.execute("select owner from claims where key = ?", [key]).fetchone()
            if row is not None and row[0] != owner and self._is_alive(row[0]):
                return False
            connection.execute("insert or replace into claims (key, owner) values (?, ?)", [key, owner])
        return True

    def release(self, key: str, owner: str) -> None:
        """Take the claim back; a claim of somebody else stays."""
        with self._transaction() as connection:
            connection.execute("delete from claims where key = ? and owner = ?", [key, owner])

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


def _storable(value: object) -> object:
    # a lone surrogate has no UTF-8 and would make SQLite refuse the row
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
