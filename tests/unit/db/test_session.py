"""Sessions and time, the same on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from sqlmodel import col
from tests.servers import free_port

from bongsu.db.columns import clock
from bongsu.db.migrate import migrate
from bongsu.db.models import Upload, new_id
from bongsu.db.session import Database, DatabaseUnavailable


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url)
    database = Database(database_url)
    await database.start()
    yield database
    await database.stop()


async def add_upload(database: Database, **values: object) -> str:
    upload_id = new_id()
    async with database.transaction() as session:
        await session.execute(
            insert(Upload).values(
                {
                    "id": upload_id,
                    "filename": "a",
                    "content_type": "text/plain",
                    "state": "receiving",
                    "received_by": "r",
                    "created_at": clock(),
                    "touched_at": clock(),
                    **values,
                }
            )
        )
    return upload_id


async def test_the_clock_goes_on_within_a_transaction_and_can_be_shifted(database: Database) -> None:
    async with database.session() as session:
        first, later = (await session.execute(select(clock(), clock(30)))).one()
        deadline = asyncio.get_running_loop().time() + 10
        while (again := (await session.execute(select(clock()))).scalar_one()) == first:
            assert asyncio.get_running_loop().time() < deadline, "the clock stands still"
    assert first.tzinfo is not None
    assert again > first
    assert timedelta(seconds=29.9) < later - first < timedelta(seconds=30.1)


async def test_times_of_any_zone_come_back_as_the_same_instant_in_utc(database: Database) -> None:
    moment = datetime(2026, 3, 1, 9, 0, 0, 123456, tzinfo=timezone(timedelta(hours=9)))
    upload_id = await add_upload(database, created_at=moment)
    async with database.session() as session:
        found = (await session.execute(select(Upload).where(col(Upload.created_at) == moment))).scalar_one()
    assert found.id == upload_id
    assert found.created_at == moment
    assert found.created_at.tzinfo is UTC


async def test_a_time_from_the_clock_compares_with_one_from_python(database: Database) -> None:
    """SQLite compares times as text: both must be written in one form, or equal ones differ."""
    upload_id = await add_upload(database)
    async with database.session() as session:
        stored = (await session.execute(select(Upload))).scalar_one().created_at
        equal = select(col(Upload.id)).where(col(Upload.created_at) == stored)
        assert (await session.execute(equal)).scalar_one() == upload_id


async def test_writers_that_read_first_wait_for_each_other_and_lose_nothing(database_url: str) -> None:
    """Two engines stand for two replicas. With a plain BEGIN SQLite fails here with "database is locked"."""
    await migrate(database_url)
    replicas = [Database(database_url), Database(database_url)]
    upload_id = await add_upload(replicas[0], size=0)

    async def increment(database: Database) -> None:
        for _ in range(15):
            async with database.transaction() as session:
                row = select(Upload).where(col(Upload.id) == upload_id).with_for_update()
                size = (await session.execute(row)).scalar_one().size
                await session.execute(update(Upload).values(size=size + 1))

    await asyncio.gather(*(increment(replica) for replica in replicas for _ in range(2)))
    async with replicas[0].session() as session:
        assert (await session.execute(select(col(Upload.size)))).scalar_one() == 60
    for replica in replicas:
        await replica.stop()


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    upload_id = await add_upload(database, size=1)

    async def fail() -> None:
        async with database.transaction() as session:
            await session.execute(update(Upload).values(size=2))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()
    async with database.session() as session:
        row = (await session.execute(select(Upload).where(col(Upload.id) == upload_id))).scalar_one()
    assert row.size == 1


async def test_sqlite_is_durable_concurrent_and_checks_references(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/not/there/yet/a.sqlite")
    await database.start()
    async with database.session() as session:
        found = [
            (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await database.stop()
    assert found == ["wal", 2, 1, 10_000]


async def test_a_database_that_does_not_answer_is_reported_as_unavailable_without_its_password() -> None:
    database = Database(f"postgresql+asyncpg://somebody:secret@127.0.0.1:{free_port()}/nothing")
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.start()
    assert "secret" not in str(caught.value)
    await database.stop()


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mysql://h/d", "use SQLite or PostgreSQL"),
        ("postgresql://h/d", r"must begin with postgresql\+asyncpg://"),
        ("sqlite:///a.db", r"must begin with sqlite\+aiosqlite://"),
        ("sqlite+aiosqlite://", "give a file"),
        ("sqlite+aiosqlite:///:memory:", "give a file"),
        ("::", "cannot be read"),
    ],
)
def test_an_unusable_url_is_refused_with_advice(url: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        Database(url)


def test_ids_are_uuids_of_version_7_that_sort_by_time_and_never_repeat() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(made) == 32 and made[12] == "7" and made[16] in "89ab" for made in ids)
    assert [made[:12] for made in ids] == sorted(made[:12] for made in ids)
