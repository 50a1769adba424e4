"""Sessions of the shared database: one `Database` per replica, made from a URL.

Two doors: `session()` to read, `transaction()` to write. On SQLite a write begins with BEGIN IMMEDIATE:
a transaction that reads first and then writes cannot upgrade its snapshot once somebody else has
committed, and would fail with "database is locked" no matter how long it waits.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.util import await_only

from bongsu.db import sqlite
from bongsu.db.outbox import BELL

__all__ = ["Database", "DatabaseUnavailable"]

_BUSY_TIMEOUT: Final = 10.0  # seconds a SQLite connection waits for another process's write to end
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or did not answer in time. The caller may try again.

    When it is raised while a transaction commits, whether it took effect is unknown.
    """


class Database:
    """The engine behind one database URL. `start()` before use, `stop()` at the end.

    `url` is `sqlite+aiosqlite:///path` (three slashes: relative to the working directory, four: absolute)
    or `postgresql+asyncpg://user:password@host/name`. `pool_size` bounds the connections.
    Raises `ValueError` for any other URL; the message holds no password.
    """

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = _checked(url)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        # One writer at a time within the process, first come first served. SQLite would make the others
        # poll for the lock while they hold the pool's connections, and the readers would starve.
        self._writing = asyncio.Lock() if self._sqlite else None
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 10}
        if self._sqlite:
            options["connect_args"] = {"timeout": _BUSY_TIMEOUT, "async_creator_fn": sqlite.connect}
        else:
            # A ping before each use: a restarted PostgreSQL costs a reconnect and not a failed request.
            options |= {"pool_pre_ping": True, "pool_recycle": 1800}
            options["connect_args"] = {
                "timeout": 5,
                "command_timeout": 30,
                "server_settings": {"application_name": "bongsu"},
            }
        self.engine = create_async_engine(self.url, **options)
        self._write_engine = self.engine
        if self._sqlite:
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
            self._write_engine = self.engine.execution_options(bongsu_write=True)
        self.on_publication: Callable[[], None] | None = None
        """Called after the commit of a `transaction` that published to the outbox."""

    @property
    def is_sqlite(self) -> bool:
        return self._sqlite

    async def start(self) -> None:
        """Create SQLite's directory and prove that the database answers. Raises `DatabaseUnavailable`."""
        if self._sqlite:
            path = Path(self.url.database or "").parent
            try:
                await asyncio.to_thread(path.mkdir, parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(f"cannot make {path}: {error.strerror}") from error
        await self.ping()

    async def ping(self) -> None:
        """One round trip. Raises `DatabaseUnavailable`."""
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    async def stop(self) -> None:
        """Close all connections. Sessions in use keep theirs until they end."""
        await self.engine.dispose()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session for reading; nothing is committed. Raises `DatabaseUnavailable`."""
        with _translated():
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session for writing: committed when the block ends, rolled back when it raises.

        Raises `DatabaseUnavailable`; see there for what a failed commit means.
        """
        async with AsyncExitStack() as stack:
            if self._writing is not None:
                await stack.enter_async_context(self._writing)
            stack.enter_context(_translated())
            session = await stack.enter_async_context(
                AsyncSession(self._write_engine, expire_on_commit=False, info={BELL: self.on_publication})
            )
            async with session.begin():
                yield session


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(
            "the database URL cannot be read; write sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        ) from error
    wanted = _DRIVERS.get(parsed.get_backend_name())
    if wanted is None:
        raise ValueError(f"database {parsed.drivername!r} is not supported; use SQLite or PostgreSQL")
    if parsed.drivername != wanted:
        raise ValueError(f"the database URL must begin with {wanted}://, not {parsed.drivername}://")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        # One connection would be shared by all sessions, and their transactions would mix.
        raise ValueError(
            "SQLite in memory is not supported; give a file, as in sqlite+aiosqlite:///var/bongsu.db"
        )
    return parsed


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the two drivers raise when the database is away into `DatabaseUnavailable`."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout, ConnectionError, TimeoutError) as error:
        raise DatabaseUnavailable(_reason(error)) from error
    except DBAPIError as error:
        if error.connection_invalidated or _is_server_going(error.orig):
            raise DatabaseUnavailable(_reason(error)) from error
        raise
    except Exception as error:
        # asyncpg's own errors pass SQLAlchemy untranslated while a connection is being made.
        if _is_server_going(error):
            raise DatabaseUnavailable(_reason(error)) from error
        raise


def _is_server_going(error: BaseException | None) -> bool:
    """PostgreSQL's SQLSTATE classes 08 (connection), 53 (resources), 57P (shut down, starting up)."""
    state = getattr(error, "sqlstate", None)
    return isinstance(state, str) and state.startswith(("08", "53", "57P"))


def _reason(error: Exception) -> str:
    """The driver's words without SQLAlchemy's (which repeat the statement and its parameters)."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(orig).__name__}: {orig}"


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Python's sqlite3 would begin transactions by itself, late and never IMMEDIATE: we say BEGIN.
    connection.isolation_level = None
    cursor = connection.cursor()
    _enter_wal(cursor)
    # FULL: in WAL mode NORMAL loses acknowledged transactions at a power failure.
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _enter_wal(cursor: Any) -> None:
    """Of replicas that start together on a new file one changes its mode; the busy timeout does not make the
    others wait for that, so they try again.
    """
    until = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        await_only(asyncio.sleep(0.02))


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("bongsu_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
