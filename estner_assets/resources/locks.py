"""A file lock that many readers share and one writer holds alone; the system frees it when a process dies."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.005


class LockTimeoutError(TimeoutError):
    """Somebody else has held the lock for too long; ``holder`` is the last writer's process."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


@contextmanager
def file_lock(path: Path, *, exclusive: bool, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a file; raise ``LockTimeoutError`` that names the last writer after ``timeout_s``.

    Who waits stands in the gate, a second lock that everybody passes: a process that locks again and again
    cannot starve the others, and a stream of readers cannot starve a writer.
    """
    deadline = time.monotonic() + timeout_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        gate = os.open(path.with_name(f"{path.name}.gate"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if exclusive or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        # who may not write here can only read; a writer is kept out by the database's own lock
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _acquire(gate, fcntl.LOCK_EX, deadline)
            _acquire(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, deadline)
        except TimeoutError:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            raise LockTimeoutError(
                f"{path} has been locked for {timeout_s:.0f} s, last by process {holder}; "
                "wait for it to finish or stop it",
                holder,
            ) from None
        finally:
            os.close(gate)
        if exclusive:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, mode: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(_POLL_S)
