"""What the relays of the outbox promise, over each database and each broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select, text, update
from tests.contracts.test_brokers import DEADLINE, Listener
from tests.servers import RedisServer

from bongsu.brokers import envelope
from bongsu.brokers.base import BrokerUnavailable, Relayed, StreamOptions
from bongsu.brokers.memory import MemoryBroker
from bongsu.brokers.redis import RedisBroker
from bongsu.db import outbox
from bongsu.db.migrate import migrate
from bongsu.db.models import Outbox, OutboxRelay
from bongsu.db.session import Database
from bongsu.jobs.relay import Relay, Unpublishable
from bongsu.jobs.turns import BATCH
from bongsu.metrics import Metrics
from bongsu.protocol.messages import Publication

OPTIONS = StreamOptions(size=1000, ttl=300.0, meta_ttl=3600.0)

Sent = Awaitable[object]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await holds():  # noqa: ASYNC110  # a row in a database is no event
            await asyncio.sleep(0.02)


class World:
    """A database, a broker whose listener is never away, and relays that publish what the test lets them."""

    def __init__(self, database: Database, broker: MemoryBroker | RedisBroker) -> None:
        self.database = database
        self.broker = broker
        self.heard = Listener()
        broker.listen(self.heard)

    def publish(self, channel: str, data: bytes, relayed: Relayed) -> Sent:
        return self.broker.append(channel, Publication(data), OPTIONS, relayed=relayed)

    async def settle(self, channel: str, keys: Sequence[str]) -> None:
        await self.broker.settle(channel, keys)

    def relay(
        self, publish: Callable[[str, bytes, Relayed], Sent] | None = None, *, limit: float = 10.0
    ) -> Relay:
        """One that finds what is there without being rung, within a moment."""
        return Relay(
            self.database,
            publish or self.publish,
            self.settle,
            Metrics(CollectorRegistry()),
            "r",
            poll=0.05,
            limit=limit,
        )

    async def commit(self, *rows: tuple[str, bytes]) -> None:
        async with self.database.transaction() as session:
            for channel, data in rows:
                await outbox.publish(session, channel, data)

    async def left(self) -> int:
        async with self.database.session() as session:
            return (await session.execute(select(func.count()).select_from(Outbox))).scalar_one()

    async def until_relayed(self) -> None:
        """Nothing is left in the outbox: what was published, was published before."""

        async def none_left() -> bool:
            return await self.left() == 0

        await until(none_left)

    def data(self, channel: str) -> list[bytes]:
        found = []
        for payload in self.heard.payloads(channel):
            message = envelope.decode(payload)
            assert isinstance(message, Publication)
            found.append(message.data)
        return found

    async def until_heard(self, channel: str, *data: bytes) -> None:
        await self.heard.until(lambda heard: len(heard.payloads(channel)) >= len(data))
        assert self.data(channel) == list(data)


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        await migrate(database_url)
        database = Database(database_url)
        stack.push_async_callback(database.stop)
        broker: MemoryBroker | RedisBroker = MemoryBroker()
        if request.param == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            broker = RedisBroker(server.url)
        await broker.connect()
        stack.push_async_callback(broker.disconnect)
        world = World(database, broker)
        for channel in ("news", "other"):
            await broker.want(channel)
        yield world


async def test_what_was_committed_is_published_in_its_order_and_deleted(world: World) -> None:
    numbers = [b"%d" % number for number in range(2 * BATCH + 10)]
    await world.commit(*[("news", number) for number in numbers])
    relay = world.relay()
    await relay.start()
    await world.until_relayed()
    await relay.stop()
    await world.until_heard("news", *numbers)


async def test_a_ring_makes_the_relay_look_at_once(world: World) -> None:
    relay = Relay(world.database, world.publish, world.settle, Metrics(CollectorRegistry()), "r", poll=3600)
    world.database.on_publication = relay.ring
    await relay.start()
    for number in (b"1", b"2", b"3"):
        await world.commit(("news", number))
        await world.until_heard("news", *[b"%d" % earlier for earlier in range(1, int(number) + 1)])
    await world.until_relayed()
    await relay.stop()


async def test_relays_together_publish_each_row_once_and_in_order(world: World) -> None:
    relays = [world.relay() for _ in range(3)]
    for relay in relays:
        await relay.start()
    for number in range(60):
        await world.commit(("news", b"%d" % number), ("other", b"%d" % number))
    await world.until_relayed()
    for relay in relays:
        await relay.stop()
    for channel in ("news", "other"):
        await world.until_heard(channel, *[b"%d" % number for number in range(60)])


async def test_while_the_broker_is_away_rows_wait_and_the_relay_says_so(world: World) -> None:
    away = True

    def publish(channel: str, data: bytes, relayed: Relayed) -> Sent:
        if away:
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(BrokerUnavailable("away"))
            return refused
        return world.publish(channel, data, relayed)

    relay = world.relay(publish)
    await relay.start()
    await world.commit(("news", b"1"))

    async def in_trouble() -> bool:
        return relay.trouble is not None

    async def out_of_it() -> bool:
        return relay.trouble is None

    await until(in_trouble)
    assert (relay.trouble, relay.alive, await world.left()) == ("away", True, 1)
    await world.commit(("news", b"2"))
    away = False
    await world.until_relayed()
    await until(out_of_it)
    await relay.stop()
    await world.until_heard("news", b"1", b"2")


async def test_rows_that_were_published_before_their_relay_died_are_not_published_again(
    world: World,
) -> None:
    """
    Setup: a relay is killed between the broker's answer and the deletion of the rows.
    Expect: its successor deletes them, and nobody hears them twice.
    """
    published = asyncio.Event()

    async def die(sent: Sent) -> None:
        await sent
        published.set()
        await asyncio.Event().wait()

    await world.commit(("news", b"1"), ("news", b"2"))
    killed = world.relay(lambda *row: die(world.publish(*row)), limit=1.0)
    await killed.start()
    async with asyncio.timeout(DEADLINE):
        await published.wait()
    await killed.stop()
    assert await world.left() == 2
    await world.commit(("news", b"3"))
    successor = world.relay()
    await successor.start()
    await world.until_relayed()
    await successor.stop()
    await world.until_heard("news", b"1", b"2", b"3")


async def test_a_relay_that_froze_in_its_turn_publishes_nothing_when_it_thaws(world: World) -> None:
    """
    Setup: a relay freezes with the rows in hand, before it publishes the second one, until another one has
    published them, and has deleted them.
    Do: it thaws.
    Expect: it is refused; it goes on, and what is committed later is published once.
    """
    in_hand, thaw = asyncio.Event(), asyncio.Event()

    async def freeze(channel: str, data: bytes, relayed: Relayed) -> object:
        if data == b"2" and not in_hand.is_set():
            in_hand.set()
            await thaw.wait()
        return await world.publish(channel, data, relayed)

    await world.commit(("news", b"1"), ("news", b"2"))
    # The limit as the database sees it is short. The relay's own patience is longer: as if its clock had
    # stood still.
    frozen = world.relay(freeze, limit=0.5)
    frozen._patience = DEADLINE
    await frozen.start()
    async with asyncio.timeout(DEADLINE):
        await in_hand.wait()
    other = world.relay()
    await other.start()
    await world.until_relayed()
    await other.stop()
    thaw.set()
    await world.commit(("news", b"3"), ("news", b"4"))
    await world.until_relayed()
    assert frozen.alive
    await frozen.stop()
    await world.until_heard("news", b"1", b"2", b"3", b"4")


async def test_rows_of_a_channel_that_does_not_exist_are_held_until_a_relay_starts_that_knows_it(
    world: World,
) -> None:
    def publish(channel: str, data: bytes, relayed: Relayed) -> Sent:
        if channel == "news":
            raise Unpublishable("no such channel")
        return world.publish(channel, data, relayed)

    await world.commit(("news", b"1"), ("news", b"2"))
    await world.commit(*[("other", b"%d" % number) for number in range(5)])
    relay = world.relay(publish)
    await relay.start()
    await world.until_heard("other", *[b"%d" % number for number in range(5)])

    async def only_held_rows_are_left() -> bool:
        return await world.left() == 2

    await until(only_held_rows_are_left)
    await relay.stop()
    assert world.data("news") == []
    knows = world.relay()
    await knows.start()
    await world.until_relayed()
    await knows.stop()
    await world.until_heard("news", b"1", b"2")


async def test_a_new_database_beside_an_old_broker_is_not_taken_for_the_old_one(world: World) -> None:
    """Ids and terms begin again at 1 there: the broker would know the first rows, and refuse the terms."""
    relay = world.relay()
    await relay.start()
    await world.commit(("news", b"old"))
    await world.until_relayed()
    await relay.stop()
    async with world.database.transaction() as session:
        await session.execute(update(OutboxRelay).values(term=0, owner=None, lease_until=None))
        if world.database.is_sqlite:
            await session.execute(text("DELETE FROM sqlite_sequence WHERE name = 'outbox'"))
        else:
            await session.execute(text("ALTER SEQUENCE outbox_id_seq RESTART"))
    again = world.relay()
    await again.start()
    await world.commit(("news", b"new"))
    await world.until_relayed()
    await again.stop()
    await world.until_heard("news", b"old", b"new")


async def test_a_transaction_that_began_first_and_committed_last_is_not_passed_over(
    postgres_url: str,
) -> None:
    """With a cursor on the ids its row would be: a later id was published before. SQLite has one writer."""
    await migrate(postgres_url)
    database, broker = Database(postgres_url), MemoryBroker()
    await broker.connect()
    world = World(database, broker)
    await broker.want("news")
    relay = world.relay()
    await relay.start()
    async with database.transaction() as session:
        await outbox.publish(session, "news", b"first to begin")
        await world.commit(("news", b"first to commit"))
        await world.until_heard("news", b"first to commit")
    await world.until_heard("news", b"first to commit", b"first to begin")
    await relay.stop()
    await broker.disconnect()
    await database.stop()


async def test_an_unexpected_error_ends_the_relay_for_readiness_to_see(world: World) -> None:
    def publish(channel: str, data: bytes, relayed: Relayed) -> Sent:
        raise RuntimeError("a bug")

    relay = world.relay(publish)
    await relay.start()
    task = relay._task
    assert task is not None
    await world.commit(("news", b"1"))
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(task, DEADLINE)
    assert not relay.alive
    await relay.stop()
    assert await world.left() == 1
