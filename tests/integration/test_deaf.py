"""A replica that is connected and hears nothing: it must say so, and only it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.model.ledger import Ledger
from tests.model.subscriber import CHANNEL, Subscriber
from tests.model.world import RULES, SIZE, Replica
from tests.servers import RedisServer

from bongsu.brokers.redis import RedisBroker
from bongsu.brokers.redis.names import Names
from bongsu.metrics import Metrics
from bongsu.node.beacon import Health
from bongsu.node.node import Node
from bongsu.protocol.messages import Publication

DEADLINE = 30.0


class Proxy:
    """Between one replica and Redis. While `deaf`, what Redis says to subscribers is thrown away.

    `mislead` has the next SUBSCRIBE to one channel arrive as one to another, and its acknowledgement come as
    if it had not.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.deaf = False
        self._wrong: tuple[bytes, bytes] | None = None
        self._serving: list[asyncio.Task[None]] = []
        self.connections = 0

    def mislead(self, channel: bytes, to: bytes) -> None:
        assert len(channel) == len(to), "or the lengths before them would be wrong"
        self._wrong = (channel, to)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*self._serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        subscriber = False
        misled: tuple[bytes, bytes] | None = None

        async def up() -> None:
            nonlocal subscriber, misled
            while data := await reader.read(65536):
                subscriber = subscriber or b"SUBSCRIBE" in data
                if self._wrong is not None and b"SUBSCRIBE" in data and self._wrong[0] in data:
                    (misled, self._wrong) = (self._wrong, None)
                    data = data.replace(misled[0], misled[1], 1)
                up_writer.write(data)

        async def down() -> None:
            nonlocal misled
            while data := await up_reader.read(65536):
                if misled is not None and misled[1] in data:
                    data = data.replace(misled[1], misled[0], 1)
                    misled = None
                # The acknowledgements pass: a replica that sees them believes that it is subscribed.
                if not (self.deaf and subscriber and b"subscribe" not in data):
                    writer.write(data)

        self.connections += 1
        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (writer, up_writer):
                end.transport.abort()
                with suppress(ConnectionError):
                    await end.wait_closed()


@asynccontextmanager
async def replica(name: str, url: str) -> AsyncIterator[Node]:
    node = Node(replica=name, broker=RedisBroker(url), metrics=Metrics())
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def until(node: Node, health: Health) -> None:
    async with asyncio.timeout(DEADLINE):
        while node.health() is not health:  # noqa: ASYNC110  # health is a judgement, not an event
            await asyncio.sleep(0.02)


async def test_the_deaf_one_says_so_the_others_stay_ready_and_it_recovers(redis_server: RedisServer) -> None:
    proxy = Proxy(redis_server.port)
    async with (
        proxy.running() as url,
        replica("a", redis_server.url) as a,
        replica("b", redis_server.url) as b,
        replica("c", url) as c,
    ):
        for node in (a, b, c):
            await until(node, Health.READY)
        assert {beat.replica for beat in a.replicas()} == {"a", "b", "c"}
        before = proxy.connections
        proxy.deaf = True
        await until(c, Health.DEAF)
        assert (a.health(), b.health()) == (Health.READY, Health.READY)
        async with asyncio.timeout(DEADLINE):
            while proxy.connections == before:  # noqa: ASYNC110  # the replacement comes with a beat
                await asyncio.sleep(0.02)
        proxy.deaf = False
        await until(c, Health.READY)


async def test_a_lost_subscription_is_noticed_by_the_number_and_repeated(redis_server: RedisServer) -> None:
    """The beacon comes through, for its channel is subscribed to; another one is not, as Redis knows."""
    proxy = Proxy(redis_server.port)
    names = Names("bongsu")
    async with proxy.running() as url, replica("a", url) as a:
        await until(a, Health.READY)
        broker, heard = a.broker, asyncio.Event()
        assert isinstance(broker, RedisBroker)
        await broker.want("kept")
        assert await broker.is_subscribed()
        alike = len(names.of("kept").channel)
        lost = next(
            name for name in map("l{:03}".format, range(1000)) if len(names.of(name).channel) == alike
        )
        proxy.mislead(names.of(lost).channel, names.of("kept").channel)
        a.hub.listen(lost, lambda payload: heard.set())
        await a.hub.ready(a.hub.reserve(lost))
        assert await broker.is_subscribed() is False
        assert a.health() is Health.READY
        async with asyncio.timeout(DEADLINE):
            while not broker.reconnects:  # noqa: ASYNC110  # with the next beat
                await asyncio.sleep(0.02)
            await a.hub.ready(a.hub.reserve(lost))
            assert await broker.is_subscribed()
            await broker.send(lost, b"at last")
            await heard.wait()
        await until(a, Health.READY)
        assert broker.reconnects == 1


async def test_a_subscription_to_something_else_is_noticed_by_a_look_at_the_stream(
    redis_server: RedisServer,
) -> None:
    """The number is right, and still nothing is heard."""
    complaints: list[str] = []
    ledger = Ledger(size=SIZE, limit=SIZE)
    proxy = Proxy(redis_server.port)
    async with proxy.running() as url:
        replica = Replica("a", RedisBroker(url), limit=SIZE)
        subscriber = Subscriber("deaf", ledger, complaints.append, delta=False, joins=False)
        await replica.node.start()
        try:
            channel = Names("bongsu").of(CHANNEL).channel
            proxy.mislead(channel, channel[:-1] + b"?")
            subscriber.connect(replica.services)
            subscriber.subscribe()
            async with asyncio.timeout(DEADLINE):
                while not subscriber.live:  # noqa: ASYNC110  # it has no event for it
                    await asyncio.sleep(0.02)
                number = ledger.number()
                published = replica.node.publish(RULES, Publication(b'{"n":%d}' % number))
                ledger.appended(number, await published)
                while subscriber.offset < 1:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.02)
            assert complaints == []
        finally:
            subscriber.drop()
            await replica.stop()


async def test_a_broker_that_stops_is_down_for_everybody_and_nobody_is_deaf(
    redis_server: RedisServer,
) -> None:
    async with replica("a", redis_server.url) as a, replica("b", redis_server.url) as b:
        for node in (a, b):
            await until(node, Health.READY)
        redis_server.kill()
        for node in (a, b):
            await until(node, Health.BROKER_DOWN)
        redis_server.start()
        for node in (a, b):
            await until(node, Health.READY)


async def test_a_replica_that_stops_well_is_gone_from_the_list_at_once(redis_server: RedisServer) -> None:
    async with replica("a", redis_server.url) as a:
        async with replica("b", redis_server.url) as b:
            await until(a, Health.READY)
            await until(b, Health.READY)
        async with asyncio.timeout(DEADLINE):
            while len(a.replicas()) != 1:  # noqa: ASYNC110  # told by the next beacon
                await asyncio.sleep(0.02)
