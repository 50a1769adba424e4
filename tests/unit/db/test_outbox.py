"""What is published inside a transaction is committed with it or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from bongsu.db import outbox
from bongsu.db.migrate import migrate
from bongsu.db.models import Outbox, OutboxRelay
from bongsu.db.session import Database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url)
    database = Database(database_url)
    yield database
    await database.stop()


async def rows(database: Database) -> list[tuple[int, str, bytes]]:
    async with database.session() as session:
        found = await session.execute(select(Outbox).order_by(col(Outbox.id)))
        return [(row.partition, row.channel, row.data) for row in found.scalars()]


async def test_a_publication_is_committed_with_its_transaction(database: Database) -> None:
    async with database.transaction() as session:
        await outbox.publish(session, "뉴스", b'{"a":1}')
        assert await rows(database) == []
    assert await rows(database) == [(outbox.partition_of("뉴스"), "뉴스", b'{"a":1}')]


async def test_a_publication_is_rolled_back_with_its_transaction(database: Database) -> None:
    async with database.session() as session:
        await outbox.publish(session, "news", b"1")
        await session.rollback()
    assert await rows(database) == []


async def test_ids_are_not_used_twice_after_the_table_was_empty(database: Database) -> None:
    """SQLite gives the largest id plus one, and so the first one again, unless it is told to count on."""
    seen = set()
    for _ in range(3):
        async with database.transaction() as session:
            await outbox.publish(session, "news", b"1")
        async with database.transaction() as session:
            seen.add((await session.execute(delete(Outbox).returning(col(Outbox.id)))).scalar_one())
    assert len(seen) == 3


async def test_the_bell_rings_after_each_commit_and_never_after_a_rollback(database: Database) -> None:
    rung = []
    async with database.transaction() as session:
        session.info[outbox.BELL] = lambda: rung.append("rung")
        await outbox.publish(session, "news", b"1")
        await outbox.publish(session, "news", b"2")
        assert rung == []
    assert rung == ["rung"]
    async with database.session() as session:
        session.info[outbox.BELL] = lambda: rung.append("rung again")
        await outbox.publish(session, "news", b"3")
        await session.rollback()
        assert rung == ["rung"]
        await outbox.publish(session, "news", b"4")
        await session.commit()
    assert rung == ["rung", "rung again"]


async def test_every_partition_has_its_relay_row(database: Database) -> None:
    async with database.session() as session:
        found = (await session.execute(select(col(OutboxRelay.partition)))).scalars().all()
    assert sorted(found) == list(range(outbox.PARTITIONS))


def test_channels_are_spread_over_the_partitions_the_same_way_everywhere() -> None:
    assert [outbox.partition_of(name) for name in ("uploads:feed", "news", "채널")] == [15, 0, 8]
    counts = Counter(outbox.partition_of(f"room:{number}") for number in range(1600))
    assert set(counts) == set(range(outbox.PARTITIONS))
    assert max(counts.values()) < 200
