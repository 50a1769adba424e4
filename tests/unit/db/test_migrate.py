"""Migrations make the tables that the models describe, once, however many replicas start together."""

from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from bongsu.db.migrate import VERSION_TABLE, MigrationsPending, migrate, pending, require_migrated
from bongsu.db.models import Table
from bongsu.db.session import Database


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "compare_server_default": True}
    )
    return list(compare_metadata(context, Table.metadata))


async def test_migrations_and_models_agree(database_url: str) -> None:
    await migrate(database_url)
    database = Database(database_url)
    async with database.session() as session:
        connection = await session.connection()
        assert await connection.run_sync(differences) == []
        names = set(await connection.run_sync(lambda c: inspect(c).get_table_names()))
    await database.stop()
    assert names == {"upload", "job", "upload_log", VERSION_TABLE}


async def test_of_replicas_that_start_together_one_migrates_and_the_others_wait(database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(database_url) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, 1]
    assert await pending(database_url) == []


async def test_a_start_on_an_old_database_says_which_command_to_run(database_url: str) -> None:
    assert await pending(database_url) == ["0001"]
    with pytest.raises(MigrationsPending, match="run `bongsu migrate`"):
        await require_migrated(database_url)
    await migrate(database_url)
    await require_migrated(database_url)


async def test_a_migration_that_fails_leaves_the_database_as_it_was(database_url: str) -> None:
    """`job` is in the way: the tables made before it must go again, or the next try stumbles over them."""
    database = Database(database_url)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE job (id INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        await migrate(database_url)
    async with database.transaction() as session:
        await session.execute(text("DROP TABLE job"))
    await database.stop()
    assert await migrate(database_url) == ["0001"]
