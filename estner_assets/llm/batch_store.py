"""Which requests are in which batch, on disk: what was submitted once is collected, not submitted again."""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0
PREPARING, SUBMITTING = "preparing", "submitting"
"""Before the server was asked for a batch, and from then until its id is noted; later the server's own statuses."""
_KEYS_A_QUERY = 500

_SCHEMA = """
create table if not exists batches (
    tag text primary key, host text not null, model text not null, file_id text, batch_id text, status text not null,
    submitted_at real not null, closed_at real
) strict, without rowid;
create table if not exists submitted (key text primary key, tag text not null) strict, without rowid;
create index if not exists submitted_by_tag on submitted (tag);
"""


class BatchStoreError(RuntimeError):
    """A file of batches that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Batch:
    """A batch that may still answer. ``tag`` is our own name of it, which the server keeps as metadata."""

    tag: str
    host: str
    model: str
    batch_id: str | None
    status: str
    submitted_at: float
    """Unix time, in seconds."""


class BatchStore:
    """Open batches and the keys of their requests; a key is in one of them at most. Safe across processes.

    Who submits holds the lock ``submitting()`` from before the first key is taken until the batch's id is noted.
    So whoever has the lock and finds a batch without an id knows that its process is dead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            # one at a time: SQLite does not wait for its lock when it turns a new file to WAL
            with FileLock(self._beside("opening"), timeout=BUSY_TIMEOUT_S, poll_interval=0.005):
                self._prepare()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise BatchStoreError(
                f"{path} does not hold batches ({error}); if it is another file, move it away: "
                "a new one forgets what was submitted"
            ) from error

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{what}")

    def _prepare(self) -> None:
        self._connection.execute("pragma journal_mode = wal")
        # FULL survives a power cut: a batch that is forgotten is paid for twice
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

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Wait until no other process submits, and keep others from it; a process that dies lets go."""
        with FileLock(self._beside("submitting"), thread_local=False):
            yield

    def take(self, tag: str, host: str, model: str, keys: Sequence[str]) -> None:
        """Note, under the lock, that a batch in preparation holds these keys, which no open batch holds."""
        with self._transaction() as connection:
            connection.execute(
                "insert or ignore into batches (tag, host, model, status, submitted_at) values (?, ?, ?, ?, ?)",
                [tag, host, model, PREPARING, time.time()],
            )
            connection.executemany("insert into submitted (key, tag) values (?, ?)", [(key, tag) for key in keys])

    def drop(self, tag: str, keys: Iterable[str]) -> None:
        """Note that these requests do not go with the batch in preparation after all."""
        with self._transaction() as connection:
            connection.executemany("delete from submitted where key = ? and tag = ?", [(key, tag) for key in keys])
            connection.execute(
                "delete from batches where tag = ? and not exists (select 1 from submitted where tag = batches.tag)",
                [tag],
            )

    def submit(self, tag: str, file_id: str) -> None:
        """Note that the server is about to be asked for the batch of an uploaded file."""
        with self._transaction() as connection:
            connection.execute(
                "update batches set status = ?, file_id = ?, submitted_at = ? where tag = ?",
                [SUBMITTING, file_id, time.time(), tag],
            )

    def note(self, tag: str, batch_id: str, status: str) -> None:
        """Note the batch's id and the status that the server gave."""
        with self._transaction() as connection:
            connection.execute("update batches set batch_id = ?, status = ? where tag = ?", [batch_id, status, tag])

    def end(self, tag: str, status: str) -> None:
        """Note that the batch answers nothing any more; its keys are free."""
        with self._transaction() as connection:
            connection.execute("delete from submitted where tag = ?", [tag])
            connection.execute(
                "update batches set status = ?, closed_at = ? where tag = ? and closed_at is null",
                [status, time.time(), tag],
            )

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        """Return, of the keys that an open batch holds, its tag."""
        wanted = list(keys)
        found: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(wanted), _KEYS_A_QUERY):
                some = wanted[start : start + _KEYS_A_QUERY]
                marks = ", ".join("?" * len(some))
                query = f"select key, tag from submitted where key in ({marks})"
                found.update(self._connection.execute(query, some).fetchall())
        return found

    def held(self, tag: str) -> list[str]:
        """Return the keys of an open batch."""
        with self._lock:
            return [key for (key,) in self._connection.execute("select key from submitted where tag = ?", [tag])]

    def batch(self, tag: str) -> Batch:
        """Return what is known of a batch."""
        query = "select tag, host, model, batch_id, status, submitted_at from batches where tag = ?"
        with self._lock:
            return Batch(*self._connection.execute(query, [tag]).fetchone())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "BatchStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
