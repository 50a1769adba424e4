"""Migrations make the tables that the models describe, once, however many replicas start together."""

from __future__ import annotations

import asyncio

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from bongsu.db.migrate import (
    VERSION_TABLE,
    MigrationsPending,
    _config,
    _head,
    migrate,
    pending,
    require_migrated,
)
from bongsu.db.models import Table
from bongsu.db.session import Database

REVISIONS = ["0001", "0002", "0003", "0004"]


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
    assert names == {
        "upload",
        "upload_segment",
        "upload_usage",
        "job",
        "upload_log",
        "outbox",
        "outbox_relay",
        VERSION_TABLE,
    }


def test_the_newest_migration_is_known_by_its_file_without_alembic() -> None:
    """A start compares it with the database: were it another, migrations would be left out."""
    assert _head() == ScriptDirectory.from_config(_config()).get_current_head() == REVISIONS[-1]


async def test_of_replicas_that_start_together_one_migrates_and_the_others_wait(database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(database_url) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, len(REVISIONS)]
    assert await pending(database_url) == []


async def test_a_start_on_an_old_database_says_which_command_to_run(database_url: str) -> None:
    assert await pending(database_url) == REVISIONS
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
    assert await migrate(database_url) == REVISIONS


async def test_jobs_of_an_older_version_are_kept(database_url: str) -> None:
    """SQLite changes a column by copying the table: what waits in it must not get lost on the way."""
    database = Database(database_url)
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(upgrade_to, "0001")
        moment = "'2026-01-01 00:00:00'"
        await session.execute(
            text(
                "INSERT INTO upload (id, filename, content_type, state, epoch, size, received_by, created_at,"
                f" touched_at) VALUES ('u', 'a', 'b', 'received', 1, 5, 'r', {moment}, {moment})"
            )
        )
        await session.execute(
            text(
                "INSERT INTO job (id, upload_id, kind, state, attempts, failures, expiries, run_after,"
                f" created_at) VALUES ('j', 'u', 'finish', 'queued', 0, 0, 0, {moment}, {moment})"
            )
        )
    assert await migrate(database_url) == REVISIONS[1:]
    async with database.session() as session:
        row = (await session.execute(text("SELECT * FROM job"))).mappings().one()
    await database.stop()
    assert {name: row[name] for name in ("id", "upload_id", "kind", "state")} == {
        "id": "j",
        "upload_id": "u",
        "kind": "finish",
        "state": "queued",
    }
    assert (row["payload"], row["unique_key"], row["finished_at"]) == (None, None, None)


def upgrade_to(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
