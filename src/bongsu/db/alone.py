"""Whether a SQLite file has other servers: they share its rows, but hear of each other only by a broker."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bongsu.db.session import Database

__all__ = ["used_alone"]


@contextmanager
def used_alone(database: Database) -> Iterator[bool]:
    """False when another server is in this block with the same file; True where nobody can tell.

    The lock is the kernel's, which lets go of it however a process ends. Its file stays: whoever removed it
    could leave two servers with a lock each. Not SQLite's own file: its locks go when any descriptor closes.
    """
    if not database.is_sqlite:
        yield True
        return
    try:
        descriptor = os.open(f"{database.url.database}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield True
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
