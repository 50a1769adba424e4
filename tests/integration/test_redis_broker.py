"""The Redis broker when Redis goes away, comes back, and misbehaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import hiredis
import pytest
import redis
from redis.asyncio import Redis
from tests.contracts.test_brokers import DEADLINE, Listener
from tests.servers import RedisServer, free_port

from bongsu.brokers.base import BrokerError, BrokerState, BrokerUnavailable, OutcomeUnknown
from bongsu.brokers.redis import RedisBroker
from bongsu.brokers.redis.link import Link, Supervisor, opener


@asynccontextmanager
async def connected(url: str, *, prefix: str = "bongsu") -> AsyncIterator[tuple[RedisBroker, Listener]]:
    broker, listener = RedisBroker(url, prefix=prefix), Listener()
    broker.listen(listener)
    await broker.connect()
    try:
        yield broker, listener
    finally:
        await broker.disconnect()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  # the broker has states, not events
            await asyncio.sleep(0.005)


def test_redis_py_is_the_version_that_this_run_is_about() -> None:
    """`make test` runs these tests over the older major version too (see Makefile)."""
    assert redis.__version__.startswith(os.environ.get("BONGSU_TEST_REDIS_PY", "8."))


async def test_every_wish_is_granted_again_after_a_restart(redis_server: RedisServer) -> None:
    """More channels than one SUBSCRIBE may carry; some wished and some dropped while Redis was away."""
    async with connected(redis_server.url) as (broker, heard):
        kept = [f"kept-{number}" for number in range(1300)]
        await asyncio.gather(*[broker.want(name) for name in kept])
        await broker.want("dropped while away")
        redis_server.kill()
        await until(lambda: broker.state is BrokerState.CONNECTING)
        wished = broker.want("wished while away")
        broker.drop("dropped while away")
        redis_server.start()
        async with asyncio.timeout(DEADLINE):
            await wished
        await until(lambda: broker.state is BrokerState.CONNECTED)
        for name in [*kept, "dropped while away", "wished while away"]:
            await broker.send(name, name.encode())
        await heard.until(lambda heard: len(heard.events) >= 1301)
        assert sorted(name for name, _ in heard.events) == sorted([*kept, "wished while away"])


async def test_sending_while_redis_is_away_fails_at_once_and_works_again_after(
    redis_server: RedisServer,
) -> None:
    async with connected(redis_server.url) as (broker, heard):
        await broker.want("news")
        redis_server.kill()
        await until(lambda: not broker.pipeline.connected)
        failed = broker.send("news", b"lost")
        assert failed.done()
        assert isinstance(failed.exception(), BrokerUnavailable)
        redis_server.start()
        await until(lambda: broker.state is BrokerState.CONNECTED)
        await broker.send("news", b"heard")
        await heard.until(lambda heard: bool(heard.events))
        assert heard.events == [("news", b"heard")]


async def test_a_start_without_redis_connects_as_soon_as_it_is_there(redis_server: RedisServer) -> None:
    redis_server.kill()
    async with connected(redis_server.url) as (broker, heard):
        assert broker.state is BrokerState.CONNECTING
        ready = broker.want("news")
        redis_server.start()
        async with asyncio.timeout(DEADLINE):
            await ready
        await until(lambda: broker.state is BrokerState.CONNECTED)
        await broker.send("news", b"1")
        await heard.until(lambda heard: bool(heard.events))


@asynccontextmanager
async def toy_server(publish: Callable[[bytes], bool]) -> AsyncIterator[str]:
    """Claims to be a master and answers OK to everything but PUBLISH; there `publish` says whether the
    connection lives on.
    """
    info = b"run_id:1\r\nrole:master\r\nmaster_replid:2\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        try:
            while data := await reader.read(4096):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if command[0] == b"INFO":
                        writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
                    elif command == [b"CLIENT", b"ID"]:
                        writer.write(b":1\r\n")
                    elif command[0] != b"PUBLISH":
                        writer.write(b"+OK\r\n")
                    elif not publish(command[2]):
                        return
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_commands_lost_with_their_connection_have_an_unknown_outcome() -> None:
    """The server takes the publish and dies before the answer: it may have happened, and we say so."""
    took: list[bytes] = []

    def take_and_die(payload: bytes) -> bool:
        took.append(payload)
        return False

    async with toy_server(take_and_die) as url, connected(url) as (broker, _):
        with pytest.raises(OutcomeUnknown):
            await broker.send("news", b"1")
        assert took == [b"1"]


async def test_a_server_that_stops_answering_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open: the connection stands, nothing comes back. Without a watchdog a publish hangs for ever."""
    monkeypatch.setattr("bongsu.brokers.redis.pipeline.IO_TIMEOUT", 0.2)
    async with toy_server(lambda _: True) as url, connected(url) as (broker, _), asyncio.timeout(DEADLINE):
        with pytest.raises(OutcomeUnknown):
            await broker.send("news", b"1")


async def test_an_error_answer_reaches_only_its_own_command(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (broker, _):
        good = broker.pipeline.execute("SET", "key", "text")
        wrong = broker.pipeline.execute("LPUSH", "key", "x")
        after = broker.pipeline.execute("GET", "key")
        assert await good == b"OK"
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await wrong
        assert await after == b"text"


async def test_a_replaced_reading_connection_hears_again(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (broker, heard):
        await broker.want("news")
        broker.restart_reading()
        await until(lambda: not broker.pump.connected)
        await until(lambda: broker.pump.connected)
        await broker.send("news", b"1")
        await heard.until(lambda heard: bool(heard.events))


async def test_deployments_with_different_prefixes_do_not_hear_each_other(redis_server: RedisServer) -> None:
    async with (
        connected(redis_server.url, prefix="one") as (one, heard_one),
        connected(redis_server.url, prefix="two") as (two, heard_two),
    ):
        await one.want("news")
        await two.want("news")
        await one.send("news", b"1")
        await two.send("news", b"2")
        await heard_one.until(lambda heard: bool(heard.events))
        await heard_two.until(lambda heard: bool(heard.events))
        assert (heard_one.events, heard_two.events) == ([("news", b"1")], [("news", b"2")])


async def test_names_in_redis_are_partitioned(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as (broker, _), Redis.from_url(redis_server.url) as redis:
        await broker.want("a}b{c")
        await broker.renew("replica", b"{}", 30.0)
        names = cast("list[bytes]", [*await redis.pubsub_channels(), *await redis.keys("*")])
    assert len(names) == 3
    for name in names:
        prefix, tag, what, _ = name.decode().split(":", 3)
        assert (prefix, what in ("channel", "leases")) == ("bongsu", True)
        assert 0 <= int(tag.removeprefix("{").removesuffix("}")) < 1024


async def test_an_address_where_nobody_listens_is_told_and_tried_again() -> None:
    async with connected(f"redis://127.0.0.1:{free_port()}") as (broker, _):
        assert broker.state is BrokerState.CONNECTING


async def test_a_connection_that_dies_while_it_is_made_is_made_again(redis_server: RedisServer) -> None:
    """On uvloop redis-py raises RuntimeError then, which ended the supervisor: deaf for good."""
    failures = iter([RuntimeError("the handler is closed"), AttributeError("no reader")])

    async def open_badly(link: Link) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        await opener(redis_server.url)(link)

    up = asyncio.Event()
    supervisor = Supervisor(
        "commands", open_badly, on_replies=lambda _: None, up=lambda _: up.set(), down=lambda: None
    )
    await supervisor.start()
    try:
        async with asyncio.timeout(DEADLINE):
            await up.wait()
    finally:
        await supervisor.stop()
