"""Connections to SQLite that take one trip to their thread for a statement, where aiosqlite's take four.

A trip is two switches of threads and a turn of the event loop, most of what a small statement costs.
SQLAlchemy reads all rows at once in any case, so making the cursor, executing, reading and closing can go
together.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Self

import aiosqlite

__all__ = ["connect"]


def connect(database: str, **options: Any) -> aiosqlite.Connection:
    """As `aiosqlite.connect`; for SQLAlchemy's `async_creator_fn`. Nothing is streamed from it."""
    connection = _Connection(lambda: sqlite3.connect(database, **options), iter_chunk_size=64)
    # As SQLAlchemy does with those it makes: one that was lost must not hold up the end of the process.
    thread: Any = getattr(connection, "_thread", connection)  # before aiosqlite 0.22 it is one itself
    thread.daemon = True
    return connection


class _Connection(aiosqlite.Connection):
    def cursor(self) -> _Cursor:  # type: ignore[override]  # what SQLAlchemy needs of one
        return _Cursor(self)


class _Cursor:
    """What one statement has left; the database's own cursor is closed when this one has anything to tell."""

    arraysize = 1

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Any = ()) -> Self:
        await self._connection._execute(self._run, sqlite3.Cursor.execute, statement, parameters)  # type: ignore[no-untyped-call]
        return self

    async def executemany(self, statement: str, parameters: Any) -> Self:
        await self._connection._execute(self._run, sqlite3.Cursor.executemany, statement, parameters)  # type: ignore[no-untyped-call]
        return self

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._rows = []

    def _run(self, execute: Any, statement: str, parameters: Any) -> None:
        """In the connection's thread."""
        cursor = self._connection._conn.cursor()
        try:
            execute(cursor, statement, parameters)
            self.description = cursor.description
            self._rows = cursor.fetchall()
            self.rowcount, self.lastrowid = cursor.rowcount, cursor.lastrowid
        finally:
            cursor.close()
