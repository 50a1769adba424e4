"""Streams on a Redis that forgets, moves, hangs and dies.

Whatever happens to it, no pair of epoch and offset may be given to two publications: a client would drop the
second as known, and be told that it recovered.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
from redis.asyncio import Redis
from tests.contracts.test_brokers import DEADLINE, Listener
from tests.integration.test_redis_broker import until
from tests.servers import RedisServer

from bongsu.brokers import envelope
from bongsu.brokers.base import (
    Appended,
    BrokerError,
    BrokerState,
    BrokerUnavailable,
    OutcomeUnknown,
    Page,
    StreamOptions,
)
from bongsu.brokers.redis import RedisBroker
from bongsu.protocol.messages import Publication, StreamPosition

OPTIONS = StreamOptions(size=10_000, ttl=300.0, meta_ttl=3600.0)


class Ledger:
    """Which publication each position was given to, as told to publishers, listeners and readers."""

    def __init__(self) -> None:
        self.given: dict[tuple[str, int], bytes] = {}

    def note(self, epoch: str, offset: int, data: bytes) -> None:
        assert self.given.setdefault((epoch, offset), data) == data, f"offset {offset} of {epoch} twice"

    def note_all(self, publications: list[Publication]) -> None:
        for publication in publications:
            if publication.offset:
                self.note(publication.epoch, publication.offset, publication.data)

    @property
    def epochs(self) -> list[str]:
        """In the order of their first appearance."""
        return list(dict.fromkeys(epoch for epoch, _ in self.given))


class Replica:
    """One broker, what it hears, and the ledger that all of a test's replicas write."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self.broker = RedisBroker(url)
        self.heard = Listener()
        self.broker.listen(self.heard)
        self._ledger = ledger

    async def publish(self, data: bytes) -> Appended:
        appended = await self.broker.append("news", Publication(data), OPTIONS)
        self._ledger.note(appended.epoch, appended.offset, data)
        return appended

    async def publish_all(self, *numbers: int) -> list[Appended]:
        return [await self.publish(b"%d" % number) for number in numbers]

    async def read(self, since: StreamPosition | None = None) -> Page:
        page = await self.broker.read("news", since=since, limit=-1, meta_ttl=3600.0)
        self._ledger.note_all(page.publications)
        return page

    def publications(self) -> list[Publication]:
        messages = [envelope.decode(payload) for payload in self.heard.payloads("news")]
        publications = cast("list[Publication]", messages)
        self._ledger.note_all(publications)
        return publications

    async def hears(self, data: bytes) -> list[Publication]:
        """All that was heard, once it ends with `data`."""
        await self.heard.until(lambda heard: bool(heard.events) and heard.events[-1][1].endswith(data))
        return self.publications()

    async def connected(self) -> None:
        await until(lambda: self.broker.state is BrokerState.CONNECTED)

    async def cut_off(self, times: int = 1) -> None:
        """Both connections were lost, that often since the start. They may be there again already."""
        pipeline, pump = self.broker.pipeline, self.broker.pump
        await until(lambda: min(pipeline.reconnects, pump.reconnects) >= times)

    async def without_commands(self) -> None:
        await until(lambda: not self.broker.pipeline.connected)


@asynccontextmanager
async def replica(url: str, ledger: Ledger) -> AsyncIterator[Replica]:
    here = Replica(url, ledger)
    await here.broker.connect()
    try:
        await here.broker.want("news")
        yield here
    finally:
        await here.broker.disconnect()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[RedisServer]:
    """Keeps an append-only file, in `tmp_path / "durable"`."""
    server = RedisServer(tmp_path / "durable", durable=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def second(tmp_path: Path) -> Iterator[RedisServer]:
    """Another Redis, to be made a replica."""
    server = RedisServer(tmp_path / "second")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as redis:
        yield redis


async def follow(follower: RedisServer, leader: RedisServer) -> None:
    """Make `follower` a replica of `leader`, and wait until it has everything."""
    async with client(follower) as redis, client(leader) as source:
        await source.config_set("repl-diskless-sync-delay", 0)  # 5 s otherwise
        await redis.slaveof("127.0.0.1", leader.port)
        async with asyncio.timeout(DEADLINE):
            while True:
                info, top = await redis.info("replication"), await source.info("replication")
                if info["master_link_status"] == "up" and (
                    info["slave_repl_offset"] == top["master_repl_offset"]
                ):
                    return
                await asyncio.sleep(0.01)


async def promote(server: RedisServer) -> None:
    async with client(server) as redis:
        await redis.slaveof()


class Address:
    """A virtual IP address: leads to one server, later to another, and cuts the connections when it moves.

    It can also hold up what its connections carry, even when the client has closed its end.
    """

    def __init__(self, server: RedisServer) -> None:
        self._port = server.port
        self._cut = asyncio.Event()
        self._flows = asyncio.Event()
        self._flows.set()
        self._held: list[asyncio.Task[None]] = []
        self._held_flows = self._flows
        self._connections: set[asyncio.Task[None]] = set()

    def move(self, server: RedisServer) -> None:
        self._port = server.port
        self._cut.set()
        self._cut = asyncio.Event()

    def hold(self) -> None:
        """From now on the present connections carry nothing to the server; new ones do."""
        self._flows.clear()
        self._held = list(self._connections)
        self._held_flows = self._flows
        self._flows = asyncio.Event()
        self._flows.set()

    async def release(self) -> None:
        """Carry what was held up; returns when the connection that its client gave up has ended."""
        self._held_flows.set()
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        self._cut.set()
        if self._connections:
            await asyncio.wait(self._connections)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut, flows = self._cut, self._flows
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        up = asyncio.create_task(_copy(reader, there_writer, flows))
        down = asyncio.create_task(_copy(there_reader, writer))
        moved = asyncio.create_task(cut.wait())
        try:
            await asyncio.wait([down, moved], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down, moved):
                task.cancel()
            await asyncio.wait([up, down, moved])
            for end in (there_writer, writer):
                end.transport.abort()
                with suppress(ConnectionError):
                    await end.wait_closed()


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event | None = None
) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            if flows is not None:
                await flows.wait()
            writer.write(data)
            await writer.drain()
    with suppress(OSError):  # the other end may be gone already
        writer.write_eof()


@asynccontextmanager
async def address(server: RedisServer) -> AsyncIterator[tuple[Address, str]]:
    moving = Address(server)
    listener = await asyncio.start_server(moving.accept, "127.0.0.1", 0)
    async with listener:
        yield moving, f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        listener.close()
        await moving.close()


# Another Redis, or the same one with older data


async def test_a_replica_promoted_behind_its_master_begins_a_new_epoch(
    redis_server: RedisServer, second: RedisServer, ledger: Ledger
) -> None:
    """The replica is cut off at offset 10 and promoted; the master goes on to 20 before clients move over.

    Without incarnations the replica gives out 11 to 20 once more, in the same epoch.
    """
    async with address(redis_server) as (moving, url), replica(url, ledger) as here:
        await here.publish_all(*range(1, 11))
        await follow(second, redis_server)
        await promote(second)
        # The first replica gave the master a new replication id, hence maybe an epoch: read the position now.
        await here.publish_all(*range(11, 21))
        before = await here.read()
        moving.move(second)
        redis_server.kill()
        await here.cut_off()
        await here.connected()
        after = await here.read(StreamPosition(before.offset, before.epoch))
        assert (after.publications, after.offset) == ([], 0)
        assert after.epoch != before.epoch
        assert [position.offset for position in await here.publish_all(*range(21, 41))] == list(range(1, 21))
        await here.heard.until(lambda heard: len(heard.events) >= 40)
        heard = [publication.data for publication in here.publications()]
        assert heard == [b"%d" % number for number in range(1, 41)]


async def test_a_master_demoted_and_promoted_again_begins_a_new_epoch(
    redis_server: RedisServer, second: RedisServer, ledger: Ledger
) -> None:
    """The same process, so the same run_id, but with the data of its former replica, which was behind."""
    async with replica(redis_server.url, ledger) as here:
        await follow(second, redis_server)
        await here.publish_all(*range(1, 11))
        await follow(second, redis_server)
        await promote(second)
        await here.publish_all(*range(11, 21))
        before = await here.read()
        await follow(redis_server, second)
        with pytest.raises(BrokerUnavailable):
            await here.publish(b"refused")
        await here.without_commands()
        await promote(redis_server)
        await here.connected()
        after = await here.read()
        assert (after.publications, after.offset, after.epoch != before.epoch) == ([], 0, True)
        await here.publish_all(*range(21, 41))


async def test_replicas_of_ours_that_knew_another_incarnation_agree_on_one_epoch(
    redis_server: RedisServer, second: RedisServer, ledger: Ledger
) -> None:
    """A first replica changes a master's replication id under those who are connected. One who connects
    afterwards knows the new one: believed blindly, the two would begin epochs against each other for ever.
    """
    async with replica(redis_server.url, ledger) as old:
        await old.publish(b"0")
        await follow(second, redis_server)
        async with replica(redis_server.url, ledger) as new:
            for number in range(20):
                await old.publish(b"old %d" % number)
                await new.publish(b"new %d" % number)
            assert len(ledger.epochs) == 2
            # The first one was still in the epoch of those who knew no better.
            assert (await old.read())[1:] == (await new.read())[1:] == (39, ledger.epochs[-1])


async def test_a_restart_from_an_older_file_begins_a_new_epoch(
    durable: RedisServer, ledger: Ledger, tmp_path: Path
) -> None:
    """As after a power loss, or from a backup: the file ends at offset 10, clients have seen 20."""
    files, aside = tmp_path / "durable" / "appendonlydir", tmp_path / "aside"
    async with replica(durable.url, ledger) as here:
        async with client(durable) as redis:
            await redis.config_set("appendfsync", "always")
        await here.publish_all(*range(1, 11))
        shutil.copytree(files, aside)
        await here.publish_all(*range(11, 21))
        before = await here.read()
        durable.kill()
        shutil.rmtree(files)
        shutil.move(aside, files)
        durable.start()
        await here.cut_off()
        await here.connected()
        async with client(durable) as redis:
            (window,) = cast("list[bytes]", await redis.keys("*:window:news"))
            assert await redis.xlen(window) == 10  # it did come from the older file
        after = await here.read(StreamPosition(before.offset, before.epoch))
        assert (after.publications, after.offset, after.epoch != before.epoch) == ([], 0, True)
        await here.publish_all(*range(21, 41))
        assert len(ledger.epochs) == 2


async def test_a_replica_is_not_taken_for_its_master(redis_server: RedisServer, second: RedisServer) -> None:
    """It takes PUBLISH without complaint, and nobody on the master would hear it."""
    await follow(second, redis_server)
    here = RedisBroker(second.url)
    await here.connect()
    try:
        assert here.state is BrokerState.CONNECTING
        with pytest.raises(BrokerUnavailable):
            await here.send("news", b"1")
        await promote(second)
        await until(lambda: here.state is BrokerState.CONNECTED)
    finally:
        await here.disconnect()


async def test_an_emptied_redis_begins_a_new_epoch(redis_server: RedisServer, ledger: Ledger) -> None:
    async with replica(redis_server.url, ledger) as here, client(redis_server) as redis:
        await here.publish_all(*range(1, 11))
        await redis.flushall()
        assert (await here.publish(b"11")).offset == 1
        assert len(ledger.epochs) == 2


async def test_a_window_whose_meta_was_evicted_is_not_taken_for_the_new_epochs(
    redis_server: RedisServer, ledger: Ledger
) -> None:
    async with replica(redis_server.url, ledger) as here, client(redis_server) as redis:
        await here.publish_all(*range(1, 11))
        (meta,) = cast("list[bytes]", await redis.keys("*:meta:news"))
        await redis.delete(meta)
        page = await here.read()
        assert (page.publications, page.offset) == ([], 0)
        await here.publish_all(*range(11, 21))


# Trouble in the middle


async def test_flushed_scripts_lose_and_reorder_nothing_that_was_acknowledged(
    redis_server: RedisServer, ledger: Ledger
) -> None:
    """SCRIPT FLUSH while appends and plain sends of one channel are in flight, again and again."""
    async with replica(redis_server.url, ledger) as here, client(redis_server) as redis:
        outcomes: list[tuple[bytes, object]] = []
        for lap in range(15):
            calls: list[tuple[bytes, asyncio.Future[Appended] | asyncio.Future[None]]] = []
            flushed = asyncio.ensure_future(redis.script_flush())
            for number in range(100):
                data = b"%d" % (lap * 100 + number)
                if number % 10:
                    calls.append((data, here.broker.append("news", Publication(data), OPTIONS)))
                else:
                    calls.append((data, here.broker.send("news", envelope.encode(Publication(data)))))
                if number % 20 == 0:
                    await asyncio.sleep(0)  # so that a lap is several writes
            await asyncio.wait([future for _, future in calls])
            await flushed
            outcomes += [(data, future.exception() or future.result()) for data, future in calls]
        await here.publish(b"last")
        heard = await here.hears(b"last")
        assert {type(outcome) for _, outcome in outcomes} <= {Appended, type(None), BrokerUnavailable}
        through = [data for data, outcome in outcomes if not isinstance(outcome, BrokerError)]
        assert [publication.data for publication in heard] == [*through, b"last"]
        positions = [outcome for _, outcome in outcomes if isinstance(outcome, Appended)]
        assert [position.offset for position in positions] == list(range(1, len(positions) + 1))
        page = await here.read()
        assert page.offset == len(positions) + 1
        assert len(ledger.epochs) == 1


async def test_a_paused_redis_is_given_up_and_does_not_publish_late(
    redis_server: RedisServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent before the pause has an unknown outcome; it must not turn up behind what came later."""
    monkeypatch.setattr("bongsu.brokers.redis.pipeline.IO_TIMEOUT", 0.2)
    async with replica(redis_server.url, ledger) as here, client(redis_server) as redis:
        await here.publish(b"before")
        await redis.client_pause(600_000, all=False)
        with pytest.raises(OutcomeUnknown):
            await here.publish(b"paused")
        await redis.client_unpause()
        await here.connected()
        await here.publish(b"after")
        heard = [publication.data for publication in await here.hears(b"after")]
        assert heard in ([b"before", b"after"], [b"before", b"paused", b"after"])


async def test_what_is_still_on_its_way_when_we_give_up_is_not_published_late(
    redis_server: RedisServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow path, or megabytes in the socket of a Redis that hung: it gets to them after the commands of our
    next connection, unless that one has ended the old one first.
    """
    monkeypatch.setattr("bongsu.brokers.redis.pipeline.IO_TIMEOUT", 0.2)
    async with address(redis_server) as (path, url), replica(url, ledger) as here:
        await here.publish(b"first")
        path.hold()
        with pytest.raises(OutcomeUnknown):
            await here.publish(b"held up")
        await here.connected()
        await here.publish(b"second")
        await path.release()
        await here.publish(b"third")
        heard = await here.hears(b"third")
        assert [publication.data for publication in heard] == [b"first", b"second", b"third"]
        assert [publication.offset for publication in heard] == [1, 2, 3]


async def test_a_burst_cut_by_kill_9_gives_no_position_twice(durable: RedisServer, ledger: Ledger) -> None:
    async with replica(durable.url, ledger) as here:
        for lap in range(3):
            burst = [
                asyncio.ensure_future(here.publish(b"%d of lap %d" % (number, lap))) for number in range(2000)
            ]
            await burst[10]
            durable.kill()
            await asyncio.wait(burst)
            assert {type(task.exception()) for task in burst} <= {type(None), OutcomeUnknown}
            await here.cut_off(lap + 1)
            durable.start()
            await here.connected()
            page = await here.read()
            assert page.publications == []
            last = await here.publish(b"after lap %d" % lap)
            assert (last.offset, last.epoch) == (1, page.epoch)
            await here.hears(b"after lap %d" % lap)
        assert len(ledger.epochs) == 4
