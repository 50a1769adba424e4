"""What every broker promises (`brokers/base.py`), asked of each implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from broadcaster import Broadcast, BroadcastBackend
from broadcaster._backends.memory import MemoryBackend
from tests.servers import RedisServer

from bongsu.brokers.adapter import BackendAdapter
from bongsu.brokers.base import Broker, BrokerState, BrokerUnavailable, Event, Leases
from bongsu.brokers.memory import MemoryBroker
from bongsu.brokers.redis import RedisBroker

DEADLINE = 10.0

Make = Callable[[], Broker]


class Listener:
    """Collects batches, and lets a test wait for what it expects."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.events: list[Event] = []
        self._changed = asyncio.Event()

    def __call__(self, batch: list[Event]) -> None:
        self.batches.append(batch)
        self.events.extend(batch)
        self._changed.set()

    def payloads(self, channel: str) -> list[bytes]:
        return [payload for name, payload in self.events if name == channel]

    async def until(self, condition: Callable[[Listener], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()


class Pair:
    """Two brokers that speak to each other: two replicas on Redis, or twice the one in memory."""

    def __init__(self, a: Broker, b: Broker, heard_a: Listener, heard_b: Listener) -> None:
        self.a, self.b, self.heard_a, self.heard_b = a, b, heard_a, heard_b


async def _started(broker: Broker, stack: AsyncExitStack) -> Listener:
    listener = Listener()
    broker.listen(listener)
    await broker.connect()
    stack.push_async_callback(broker.disconnect)
    return listener


@pytest.fixture(params=["memory", "redis", "third-party"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        if request.param == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            a, b = RedisBroker(server.url), RedisBroker(server.url)
            yield Pair(a, b, await _started(a, stack), await _started(b, stack))
            return
        broker: Broker = MemoryBroker() if request.param == "memory" else _third_party()
        listener = await _started(broker, stack)
        yield Pair(broker, broker, listener, listener)


def _third_party() -> Broker:
    return BackendAdapter(MemoryBackend("memory://"))


async def test_what_is_sent_to_one_channel_arrives_once_and_in_order(pair: Pair) -> None:
    await pair.b.want("news")
    sent = [b"%d" % number for number in range(500)]
    await asyncio.gather(*[pair.a.send("news", payload) for payload in sent])
    await pair.heard_b.until(lambda heard: len(heard.events) >= len(sent))
    assert pair.heard_b.events == [("news", payload) for payload in sent]


async def test_channels_that_nobody_here_wants_are_not_heard(pair: Pair) -> None:
    await pair.b.want("wanted")
    await pair.a.send("unwanted", b"1")
    await pair.a.send("wanted", b"2")
    await pair.heard_b.until(lambda heard: bool(heard.events))
    assert pair.heard_b.events == [("wanted", b"2")]


async def test_a_second_wish_is_acknowledged_too(pair: Pair) -> None:
    """With `broadcaster.Broadcast` 19 of 20 concurrent first subscribers get an error instead."""
    wishes = [pair.b.want("news") for _ in range(20)]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*wishes)
    await pair.a.send("news", b"1")
    await pair.heard_b.until(lambda heard: bool(heard.events))
    assert pair.heard_b.events == [("news", b"1")]


async def test_after_a_drop_nothing_is_heard_and_a_new_wish_hears_again(pair: Pair) -> None:
    await pair.b.want("news")
    pair.b.drop("news")
    await pair.b.want("mark")
    await pair.a.send("news", b"lost")
    await pair.a.send("mark", b"1")
    await pair.heard_b.until(lambda heard: bool(heard.payloads("mark")))
    assert pair.heard_b.payloads("news") == []
    await pair.b.want("news")
    await pair.a.send("news", b"heard")
    await pair.heard_b.until(lambda heard: bool(heard.payloads("news")))
    assert pair.heard_b.payloads("news") == [b"heard"]


async def test_a_wish_that_flaps_ends_as_it_was_last_wished(pair: Pair) -> None:
    for _ in range(50):
        pair.b.want("kept")
        pair.b.drop("kept")
        pair.b.want("left")
        pair.b.want("kept")
        pair.b.drop("left")
        pair.b.drop("kept")
    async with asyncio.timeout(DEADLINE):
        await pair.b.want("kept")
        await pair.b.want("mark")
    await pair.a.send("left", b"0")
    await pair.a.send("kept", b"1")
    await pair.a.send("mark", b"2")
    await pair.heard_b.until(lambda heard: {"kept", "mark"} <= {name for name, _ in heard.events})
    assert sorted(pair.heard_b.events) == [("kept", b"1"), ("mark", b"2")]


async def test_any_bytes_and_any_channel_name_pass_unchanged(pair: Pair) -> None:
    channel = "ns:{x}:*?[a]\\ 채널 ' \""
    payload = bytes(range(256)) * 300
    await pair.b.want(channel)
    await pair.a.send(channel, payload)
    await pair.heard_b.until(lambda heard: bool(heard.events))
    assert pair.heard_b.events == [(channel, payload)]


async def test_while_paused_nothing_is_delivered_and_nothing_is_lost(pair: Pair) -> None:
    await pair.b.want("news")
    await pair.a.send("news", b"first")
    await pair.heard_b.until(lambda heard: bool(heard.events))
    pair.b.pause()
    sent = [pair.a.send("news", b"%d" % number) for number in range(100)]
    pair.b.resume()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*sent)
    await pair.heard_b.until(lambda heard: len(heard.events) == 101)
    assert pair.heard_b.payloads("news") == [b"first"] + [b"%d" % number for number in range(100)]


async def test_sending_without_a_connection_fails_at_once(pair: Pair) -> None:
    await pair.a.disconnect()
    with pytest.raises(BrokerUnavailable):
        await pair.a.send("news", b"1")
    assert pair.a.state is BrokerState.CLOSED


@pytest.fixture(params=["memory", "redis"])
async def own_brokers(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two of ours, not connected yet."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        yield RedisBroker(server.url), RedisBroker(server.url)
    else:
        broker = MemoryBroker()
        yield broker, broker


async def test_payloads_sent_together_arrive_as_a_batch(own_brokers: tuple[Broker, Broker]) -> None:
    a, b = own_brokers
    async with AsyncExitStack() as stack:
        heard = await _started(b, stack)
        if a is not b:
            await _started(a, stack)
        await b.want("one")
        await b.want("two")
        sent = [a.send(name, b"%d" % number) for number in range(100) for name in ("one", "two")]
        await asyncio.gather(*sent)
        await heard.until(lambda heard: len(heard.events) == 200)
        assert len(heard.batches) < 20
        assert heard.payloads("one") == heard.payloads("two") == [b"%d" % number for number in range(100)]


async def test_leases_list_the_living_and_forget_the_released(own_brokers: tuple[Broker, Broker]) -> None:
    a, b = own_brokers
    async with AsyncExitStack() as stack:
        await _started(a, stack)
        if a is not b:
            await _started(b, stack)
        assert isinstance(a, Leases)
        assert isinstance(b, Leases)
        await a.renew("one", b"{1}", 30.0)
        assert dict(await b.renew("two", b"{2}", 30.0)) == {"one": b"{1}", "two": b"{2}"}
        await a.renew("brief", b"{3}", 0.001)
        async with asyncio.timeout(DEADLINE):
            while "brief" in await a.renew("one", b"{4}", 30.0):
                pass
        await b.release("two")
        assert dict(await a.renew("one", b"{4}", 30.0)) == {"one": b"{4}"}


async def test_our_brokers_serve_under_broadcaster_too(own_brokers: tuple[Broker, Broker]) -> None:
    a, _ = own_brokers
    assert isinstance(a, BroadcastBackend)
    async with (
        asyncio.timeout(DEADLINE),
        Broadcast(backend=a) as broadcast,
        broadcast.subscribe("chat") as subscriber,
    ):
        for number in range(3000):
            await broadcast.publish("chat", f"인사 {number}")
        for number in range(3000):
            assert (await subscriber.get()).message == f"인사 {number}"
