"""A replica that is connected and hears nothing: it must say so, and only it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.servers import RedisServer

from bongsu.brokers.redis import RedisBroker
from bongsu.metrics import Metrics
from bongsu.node.beacon import Health
from bongsu.node.node import Node

DEADLINE = 30.0


class Proxy:
    """Between one replica and Redis. While `deaf`, what Redis says to subscribers is thrown away."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.deaf = False
        self.connections = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        subscriber = False

        async def up() -> None:
            nonlocal subscriber
            while data := await reader.read(65536):
                subscriber = subscriber or b"SUBSCRIBE" in data
                up_writer.write(data)

        async def down() -> None:
            while data := await up_reader.read(65536):
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
            writer.transport.abort()
            up_writer.transport.abort()


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
