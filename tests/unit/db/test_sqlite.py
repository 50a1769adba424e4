"""What SQLAlchemy asks of a connection, and that it costs one trip to the thread for a statement."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bongsu.db.sqlite import connect


async def test_a_statement_is_one_trip_and_brings_all_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection: Any = await connect(str(tmp_path / "db"), isolation_level=None)
    trips = 0
    execute = connection._execute

    async def counted(*args: Any) -> Any:
        nonlocal trips
        trips += 1
        return await execute(*args)

    monkeypatch.setattr(connection, "_execute", counted)
    try:
        async with connection.cursor() as cursor:
            await cursor.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)")
            await cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
            assert cursor.rowcount == 2
            with pytest.raises(sqlite3.IntegrityError):
                await cursor.execute("INSERT INTO t VALUES (1)")
            await cursor.execute("UPDATE t SET x = x + ? RETURNING x", (10,))
            assert [field[0] for field in cursor.description] == ["x"]
            assert await cursor.fetchall() == [(11,), (12,)]
            assert cursor.rowcount == 2
        assert trips == 4
    finally:
        await connection.close()
