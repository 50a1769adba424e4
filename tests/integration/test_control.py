"""Replicas that ask things of each other over a real Redis: calls, surveys, frames handed over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import msgspec
import pytest
from tests.servers import RedisServer

from bongsu.brokers import envelope
from bongsu.brokers.base import BrokerState, BrokerUnavailable, Event
from bongsu.brokers.envelope import Control
from bongsu.brokers.redis import RedisBroker
from bongsu.metrics import Metrics
from bongsu.node.beacon import Beat
from bongsu.node.control import (
    CONTROL,
    Disconnect,
    Refresh,
    Subscribe,
    Unsubscribe,
    control_channel,
)
from bongsu.node.control_plane import ControlPlane, UnknownReplica
from bongsu.protocol.api import ChannelOverride, NodeInfo, OptionValue
from bongsu.protocol.errors import ERROR_ALREADY_SUBSCRIBED, Error
from bongsu.protocol.messages import StreamPosition

DEADLINE = 20.0

Call = Subscribe | Unsubscribe | Disconnect | Refresh


class Target:
    """Does nothing but remember what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.frames: list[tuple[str, bytes]] = []
        self.channels: dict[str, int] = {}
        self.error: Error | None = None
        self.forgotten: list[str] = []
        self.changed = asyncio.Event()

    def _did(self, call: Call) -> None:
        self.calls.append(call)
        self.changed.set()

    def subscribe(self, call: Subscribe) -> asyncio.Future[Error | None]:
        self._did(call)
        done: asyncio.Future[Error | None] = asyncio.get_running_loop().create_future()
        done.set_result(self.error)
        return done

    def unsubscribe(self, call: Unsubscribe) -> None:
        self._did(call)

    def disconnect(self, call: Disconnect) -> None:
        self._did(call)

    def refresh(self, call: Refresh) -> None:
        self._did(call)

    def forget(self, channel: str) -> None:
        self.forgotten.append(channel)
        self.changed.set()

    def channel_names(self) -> list[str]:
        return list(self.channels)

    def num_clients(self, channel: str) -> int:
        return self.channels.get(channel, 0)

    def info(self) -> NodeInfo:
        return NodeInfo(self.name, self.name, "1", num_channels=len(self.channels))

    def emulate(self, session: str, data: bytes) -> bool:
        self.frames.append((session, data))
        self.changed.set()
        return session == f"session of {self.name}"


class Replica:
    """A control plane, its target, and its ears; while `slow`, what it hears waits."""

    def __init__(self, name: str, url: str, living: set[str], *, patience: float) -> None:
        self.broker = RedisBroker(url)
        self.target = Target(name)
        self.metrics = Metrics()
        self.beats: list[Beat] = []
        self.slow = False
        self.heard: list[bytes] = []
        self.arrived = asyncio.Event()
        self.plane = ControlPlane(
            replica=name,
            broker=self.broker,
            target=self.target,
            living=lambda: living,
            on_beat=self.beats.append,
            metrics=self.metrics,
            patience=patience,
        )
        self.broker.listen(self._on_batch)

    async def start(self) -> None:
        await self.broker.connect()
        for channel in self.plane.channels_to_hear:
            await self.broker.want(channel)

    async def stop(self) -> None:
        await self.plane.stop()
        await self.broker.disconnect()

    def _on_batch(self, batch: list[Event]) -> None:
        self.heard += [payload for _, payload in batch]
        self.arrived.set()
        if not self.slow:
            self.hurry()

    def hurry(self) -> None:
        heard, self.heard = self.heard, []
        for payload in heard:
            self.plane.receive(payload)

    @property
    def skipped(self) -> float:
        return self.metrics.registry.get_sample_value("bongsu_unknown_envelopes_total") or 0.0

    async def until(self, condition: Callable[[Target], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition(self.target):
                self.target.changed.clear()
                await self.target.changed.wait()


class Cluster:
    def __init__(self, url: str) -> None:
        self._url = url
        self.living: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def replica(self, name: str, *, patience: float = 3600.0) -> Replica:
        replica = Replica(name, self._url, self.living, patience=patience)
        await replica.start()
        self._stack.push_async_callback(replica.stop)
        self.living.add(name)
        return replica


@pytest.fixture
async def cluster(redis_server: RedisServer) -> AsyncIterator[Cluster]:
    async with asyncio.timeout(3 * DEADLINE), Cluster(redis_server.url) as cluster:
        yield cluster


async def mark(sender: Replica, receiver: Replica) -> None:
    """Return when `receiver` has heard all that `sender` sent before."""
    call = Unsubscribe(user="mark", channel=f"mark-{time.monotonic_ns()}")
    await sender.plane.unsubscribe(call)
    await receiver.until(lambda target: call in target.calls)
    for replica in (sender, receiver):
        replica.target.calls.remove(call)


async def test_a_call_is_done_here_at_once_and_everywhere_else_once(cluster: Cluster) -> None:
    a, b, c = [await cluster.replica(name) for name in "abc"]
    calls: list[Call] = [
        Subscribe(
            user="kim",
            client="id",
            session="secret",
            channel="뉴스",
            info=bytes(range(256)),
            data=b'{"n": 1}',
            expire_at=1_900_000_000,
            recover_since=StreamPosition(2**64 - 1, "epoch"),
            override=ChannelOverride(presence=OptionValue(True)),
        ),
        Unsubscribe(user="", channel=""),
        Disconnect(user="kim", whitelist=["stays"], code=4000, reason="out"),
        Refresh(user="kim", expired=True, info=b"{}"),
    ]
    assert await a.plane.subscribe(calls[0]) is None  # type: ignore[arg-type]
    await a.plane.unsubscribe(calls[1])  # type: ignore[arg-type]
    await a.plane.disconnect(calls[2])  # type: ignore[arg-type]
    await a.plane.refresh(calls[3])  # type: ignore[arg-type]
    assert a.target.calls == calls
    for other in (b, c):
        await mark(a, other)
        assert other.target.calls[: len(calls)] == calls
    # Its echo has come back by now: what b says after it has arrived.
    await mark(b, a)
    assert [call for call in a.target.calls if call in calls] == calls
    assert (a.skipped, b.skipped, c.skipped) == (0, 0, 0)


async def test_calls_of_one_replica_arrive_in_their_order(cluster: Cluster) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    sent: list[Call] = []
    for number in range(200):
        subscribe = Subscribe(user="kim", channel=f"{number}")
        unsubscribe = Unsubscribe(user="kim", channel=f"{number}")
        sent += [subscribe, unsubscribe]
        await asyncio.gather(a.plane.subscribe(subscribe), a.plane.unsubscribe(unsubscribe))
    await b.until(lambda target: len(target.calls) >= len(sent))
    assert b.target.calls == sent


async def test_the_error_of_a_subscription_is_that_of_this_replica(cluster: Cluster) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    b.target.error = ERROR_ALREADY_SUBSCRIBED
    assert await a.plane.subscribe(Subscribe(user="kim", channel="news")) is None
    assert await b.plane.subscribe(Subscribe(user="kim", channel="news")) is ERROR_ALREADY_SUBSCRIBED


async def test_beats_pass_beside_the_messages(cluster: Cluster) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    beat = Beat("a", 3, 1.0, "0", ["b"])
    await a.broker.send(CONTROL, envelope.encode(Control(msgspec.json.encode(beat))))
    await mark(a, b)
    assert b.beats == [beat]
    assert b.skipped == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"v":2,"sender":"a","targets":[],"body":{"kind":"unsubscribe","user":"kim"}}',
        b'{"v":1,"sender":"a","targets":[],"body":{"kind":"of the future","user":"kim"}}',
        b'{"v":1,"sender":"a","targets":[],"body":{"kind":"unsubscribe"}}',
        b"not JSON",
        b"",
    ],
)
async def test_what_this_version_does_not_know_is_skipped_and_counted(cluster: Cluster, body: bytes) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    await a.broker.send(CONTROL, envelope.encode(Control(body)))
    await mark(a, b)
    assert b.target.calls == []
    assert b.skipped == 1


async def test_what_is_for_others_is_left_to_them(cluster: Cluster) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    for targets in (b'["c"]', b'["c","b"]'):
        body = b'{"v":1,"sender":"a","targets":%b,"body":{"kind":"unsubscribe","user":"kim"}}' % targets
        await a.broker.send(CONTROL, envelope.encode(Control(body)))
    await mark(a, b)
    assert b.target.calls == [Unsubscribe(user="kim")]


async def test_a_survey_sums_up_all_replicas(cluster: Cluster) -> None:
    a, b, c = [await cluster.replica(name) for name in "abc"]
    a.target.channels = {"news": 1, "chat:1": 2}
    b.target.channels = {"news": 3}
    c.target.channels = {"chat:2": 4, "left": 0}
    assert await a.plane.channels() == ({"chat:1": 2, "chat:2": 4, "news": 4}, "", [])
    assert await b.plane.channels("chat:*") == ({"chat:1": 2, "chat:2": 4}, "", [])
    assert await c.plane.channels(limit=2) == ({"chat:1": 2, "chat:2": 4}, "chat:2", [])
    assert await c.plane.channels(limit=2, cursor="chat:2") == ({"news": 4}, "", [])
    nodes, missing = await b.plane.info()
    assert [(node.name, node.num_channels) for node in nodes] == [("b", 1), ("a", 2), ("c", 2)]
    assert missing == []


async def test_a_replica_alone_asks_nobody(cluster: Cluster) -> None:
    a = await cluster.replica("a")
    a.target.channels = {"news": 1}
    assert await a.plane.channels() == ({"news": 1}, "", [])
    assert await a.plane.info() == ([a.target.info()], [])


async def test_a_slow_replica_is_named_and_its_late_answer_disturbs_nobody(cluster: Cluster) -> None:
    a = await cluster.replica("a", patience=0.3)
    b, c = await cluster.replica("b"), await cluster.replica("c")
    b.target.channels, c.target.channels = {"news": 2}, {"news": 40}
    c.slow = True
    assert await a.plane.channels() == ({"news": 2}, "", ["c"])
    nodes, missing = await a.plane.info()
    assert [node.name for node in nodes] == ["a", "b"]
    assert missing == ["c"]
    c.slow = False
    c.hurry()
    await mark(c, a)
    assert a.skipped == 0
    assert await a.plane.info() == ([replica.target.info() for replica in (a, b, c)], [])


async def test_a_replica_that_dies_meanwhile_is_named_and_not_waited_for(cluster: Cluster) -> None:
    """The patience is an hour: only the end of its lease can end the survey."""
    a, b, c = [await cluster.replica(name) for name in "abc"]
    b.target.channels = {"news": 2}
    c.slow = True
    survey = asyncio.create_task(a.plane.channels())
    async with asyncio.timeout(DEADLINE):
        await c.arrived.wait()
    assert not survey.done()
    cluster.living.remove("c")
    async with asyncio.timeout(DEADLINE):
        assert await survey == ({"news": 2}, "", ["c"])


async def test_a_frame_reaches_its_connection_on_another_replica_and_is_acknowledged(
    cluster: Cluster,
) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    c = await cluster.replica("c")
    frames = [b"%d" % number + bytes(range(256)) for number in range(100)]
    known = await asyncio.gather(*[a.plane.emulate("b", "session of b", frame) for frame in frames])
    assert known == [True] * len(frames)
    assert b.target.frames == [("session of b", frame) for frame in frames]
    assert await a.plane.emulate("b", "unknown", b"1") is False
    assert await a.plane.emulate("a", "session of a", b"1") is True
    assert a.target.frames == [("session of a", b"1")]
    await mark(a, c)
    assert (c.target.frames, c.heard, c.skipped) == ([], [], 0)


async def test_a_frame_is_not_read_by_those_it_does_not_concern(cluster: Cluster) -> None:
    """Else twenty replicas would decode each command of a client of one."""
    a, _ = await cluster.replica("a"), await cluster.replica("b")
    c = await cluster.replica("c")
    c.slow = True
    await a.plane.emulate("b", "session of b", b"1")
    await a.broker.send(control_channel("c"), b"mark")
    async with asyncio.timeout(DEADLINE):
        await c.arrived.wait()
    assert c.heard == [b"mark"]
    c.heard.clear()


async def test_a_frame_for_a_replica_without_a_lease_or_without_an_answer_fails(cluster: Cluster) -> None:
    a = await cluster.replica("a", patience=0.3)
    b = await cluster.replica("b")
    with pytest.raises(UnknownReplica):
        await a.plane.emulate("never", "session", b"1")
    b.slow = True
    with pytest.raises(TimeoutError):
        await a.plane.emulate("b", "session of b", b"1")


async def test_a_replica_is_asked_for_an_upload_and_answers_when_it_has_let_go(cluster: Cluster) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    c = await cluster.replica("c")
    asked: list[tuple[str, int | None]] = []

    async def release(upload: str, offset: int | None) -> None:
        await asyncio.sleep(0)  # others run meanwhile, as they do while bytes are made safe
        asked.append((upload, offset))

    for replica in (a, b, c):
        replica.plane.serve_uploads(release)
    await a.plane.let_go("b", "upload", 5)
    assert asked == [("upload", 5)]
    await a.plane.let_go("b", "upload", None)
    assert asked == [("upload", 5), ("upload", None)]
    await a.plane.let_go("dead", "upload", 5)  # has no lease: nobody waits for it
    assert len(asked) == 2


async def test_without_the_broker_a_call_is_done_here_and_says_that_others_may_not_know(
    cluster: Cluster, redis_server: RedisServer
) -> None:
    a, b = await cluster.replica("a"), await cluster.replica("b")
    redis_server.kill()
    async with asyncio.timeout(DEADLINE):
        while a.broker.pipeline.connected:  # noqa: ASYNC110  # the broker has states, not events
            await asyncio.sleep(0.005)
    call = Disconnect(user="kim")
    with pytest.raises(BrokerUnavailable):
        await a.plane.disconnect(call)
    assert a.target.calls == [call]
    with pytest.raises(BrokerUnavailable):
        await a.plane.info()
    redis_server.start()
    async with asyncio.timeout(DEADLINE):
        for replica in (a, b):
            while replica.broker.state is not BrokerState.CONNECTED:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.005)
    assert await a.plane.info() == ([a.target.info(), b.target.info()], [])
    assert b.target.calls == []
