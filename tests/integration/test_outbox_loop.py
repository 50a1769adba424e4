"""Transactional publishes while the replicas that relay them are killed and frozen.

Short in `make check`: 500 publishes over 100 channels, 2 kills, 2 freezes, on each database; in full under
`make soak`: 10,000 publishes, 30 kills, 20 freezes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy import func, select
from tests.contracts.test_brokers import Listener
from tests.scale import scaled
from tests.servers import RedisServer, RunningServer

from bongsu.brokers import envelope
from bongsu.brokers.redis import RedisBroker
from bongsu.db.migrate import migrate
from bongsu.db.models import Outbox
from bongsu.db.outbox import Outbox as Door
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.protocol.messages import Publication

pytestmark = pytest.mark.soak

PUBLISHES = scaled(500, 10_000)
KILLS = scaled(2, 30)
FREEZES = scaled(2, 20)
PER_TRANSACTION = 5
DEADLINE = scaled(120, 1_800)

# Half of them with history: those go through the stream, the others past it.
CHANNELS = [f"room:{number}" for number in range(50)] + [f"plain-{number}" for number in range(50)]


class Publishers:
    """Publish to each channel the numbers from 0, one transaction after the other."""

    def __init__(self, database: Database, seed: int) -> None:
        self._database = database
        self._random = random.Random(seed)
        self._door = Door()
        self._locks = {channel: asyncio.Lock() for channel in CHANNELS}
        self.published: Counter[str] = Counter()
        self.progress = asyncio.Condition()

    async def run(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._publish(count // 4))

    async def _publish(self, count: int) -> None:
        for _ in range(count // PER_TRANSACTION):
            await self.once(sorted(self._random.sample(CHANNELS, PER_TRANSACTION)))

    async def once(self, channels: list[str]) -> None:
        """One transaction, after the earlier ones on these channels have been committed."""
        async with AsyncExitStack() as locks:
            for channel in channels:  # sorted: two transactions never wait for each other
                await locks.enter_async_context(self._locks[channel])
            async with self._database.transaction() as session:
                for channel in channels:
                    await self._door.publish(session, channel, self.published[channel])
            self.published.update(channels)
        async with self.progress:
            self.progress.notify_all()

    async def until(self, total: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: self.published.total() >= total)


async def disturb(replicas: list[RunningServer], publishers: Publishers, seed: int) -> None:
    """Kills and freezes, spread over the publishes by their number, not by the clock."""
    chance = random.Random(seed)
    faults = ["kill"] * KILLS + ["freeze"] * FREEZES
    chance.shuffle(faults)
    for number, fault in enumerate(faults):
        await publishers.until((number + 1) * PUBLISHES // (len(faults) + 2))
        replica = chance.choice(replicas)
        if fault == "kill":
            await asyncio.to_thread(replica.kill)
            await asyncio.to_thread(replica.start)
            continue
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            # Longer than its turn may last: others go on with what it has in hand.
            await asyncio.sleep(2.5)
        finally:
            os.kill(replica.pid, signal.SIGCONT)


@asynccontextmanager
async def subscriber(url: str) -> AsyncIterator[Listener]:
    """Hears all channels over a connection that nobody disturbs."""
    broker, heard = RedisBroker(url), Listener()
    broker.listen(heard)
    await broker.connect()
    for channel in CHANNELS:
        await broker.want(channel)
    yield heard
    await broker.disconnect()


async def until_empty(database: Database) -> None:
    while True:
        try:
            async with database.session() as session:
                left = (await session.execute(select(func.count()).select_from(Outbox))).scalar_one()
        except DatabaseUnavailable:
            left = -1
        if left == 0:
            return
        await asyncio.sleep(0.1)


async def test_each_publication_arrives_once_and_in_order_though_relays_are_killed_and_frozen(
    database_url: str, redis_server: RedisServer, bongsu_server: Callable[..., RunningServer]
) -> None:
    await migrate(database_url)
    database = Database(database_url)
    await database.start()
    replicas = [
        bongsu_server(
            BONGSU_BROKER_URL=redis_server.url,
            BONGSU_DATABASE_URL=database_url,
            BONGSU_REPLICA=f"relay-{number}",
            BONGSU_OUTBOX__TURN="1",
            BONGSU_OUTBOX__POLL="0.1",
            BONGSU_CHANNELS__NAMESPACES__ROOM__HISTORY_SIZE="10",
            BONGSU_CHANNELS__NAMESPACES__ROOM__HISTORY_TTL="60s",
        )
        for number in range(3)
    ]
    publishers = Publishers(database, seed=5)
    async with subscriber(redis_server.url) as heard, asyncio.timeout(DEADLINE):
        async with asyncio.TaskGroup() as group:
            group.create_task(publishers.run(PUBLISHES))
            group.create_task(disturb(replicas, publishers, seed=7))
        # Last of all one more on each: what a thawed relay published late would be there before it.
        await until_empty(database)
        await publishers.once(sorted(CHANNELS))
        await until_empty(database)
        total = publishers.published.total()
        await heard.until(lambda heard: len(heard.events) >= total)
    await database.stop()
    for channel in CHANNELS:
        messages = [envelope.decode(payload) for payload in heard.payloads(channel)]
        numbers = [message.data for message in messages if isinstance(message, Publication)]
        assert numbers == [b"%d" % number for number in range(publishers.published[channel])], channel
    assert total == PUBLISHES + len(CHANNELS)
