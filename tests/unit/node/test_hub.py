"""The hub and its clients, over the memory broker and a socket that remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from bongsu.brokers import envelope
from bongsu.brokers.memory import MemoryBroker
from bongsu.metrics import Metrics
from bongsu.node import hub as hub_module
from bongsu.node.backlog import Policy
from bongsu.node.channel import Channel
from bongsu.node.client import Client, ClientOptions
from bongsu.node.hub import Hub
from bongsu.node.variants import ClientVariant, Form, Variant
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.errors import SHUTDOWN, SLOW
from bongsu.protocol.messages import Join, Leave, Principal, Publication

OPTIONS = ClientOptions(queue_max_size=1000, slow_timeout=5, drain_timeout=1)


class Lines:
    """A variant that counts how often it was asked."""

    joins = False

    def __init__(self, ending: bytes = b"\n", *, positioned: bool = False) -> None:
        self.ending = ending
        self.positioned = positioned
        self.rendered = 0

    def render(
        self, channel: str, publications: list[Publication], previous: Publication | None
    ) -> list[bytes]:
        self.rendered += 1
        return [b"".join(publication.data + self.ending for publication in publications)]

    def presence(self, channel: str, message: Join | Leave) -> bytes:
        raise AssertionError("not asked for")

    def after(self, publications: list[Publication]) -> Lines:
        return self


class MemorySocket:
    """A transport that remembers its writes; `stall` makes it behave like a peer that stopped reading."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.stalled = False
        self.buffered = 0
        self.client: Client | None = None

    def write(self, chunks: Sequence[bytes]) -> None:
        assert self.closed is None, "nothing follows a close"
        data = b"".join(chunks)
        self.writes.append(data)
        if self.stalled:
            self.buffered += len(data)
            assert self.client is not None
            self.client.paused()

    def unacknowledged(self) -> int:
        return self.buffered

    def close(self, code: int, reason: str, *, within: float) -> None:
        self.closed = (code, reason)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def text(self) -> bytes:
        return b"".join(self.writes)


class World:
    """One replica's hub, and clients at hand."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.metrics = Metrics()
        self.hub = Hub(self.broker, self.metrics)
        self.broker.listen(self.hub.deliver)
        self.left: list[Client] = []

    def client(self) -> tuple[Client, MemorySocket]:
        socket = MemorySocket()
        client: Client

        def gone() -> None:
            self.left.append(client)

        client = Client(socket, self.hub, OPTIONS, Principal(), gone)
        socket.client = client
        return client, socket

    async def joined(self, name: str, client: Client, variant: Variant) -> Channel:
        channel = self.hub.reserve(name)
        await self.hub.ready(channel)
        self.hub.join(channel, client, variant)
        self.hub.release(channel)
        return channel

    async def live(self, name: str, client: Client, variant: Variant) -> Channel:
        channel = await self.joined(name, client, variant)
        self.hub.admit(channel, client)
        return channel

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0

    def batch(self, *messages: tuple[str, bytes]) -> None:
        self.hub.deliver([(name, envelope.encode(Publication(data))) for name, data in messages])


@pytest.fixture
async def world() -> World:
    world = World()
    await world.broker.connect()
    return world


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_batch_is_one_write_however_many_channels_it_touches(world: World) -> None:
    client, socket = world.client()
    variant = Lines()
    for name in ("a", "b", "c"):
        await world.live(name, client, variant)
    world.batch(("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4"))
    assert socket.writes == [b"1\n3\n2\n4\n"]


async def test_bytes_are_made_once_for_all_subscribers_with_one_variant(world: World) -> None:
    lines, commas = Lines(), Lines(b",")
    sockets = []
    for number in range(10):
        client, socket = world.client()
        await world.live("news", client, commas if number % 2 else lines)
        sockets.append(socket)
    world.batch(("news", b"1"), ("news", b"2"))
    assert (lines.rendered, commas.rendered) == (1, 1)
    assert [socket.text() for socket in sockets] == [b"1\n2\n", b"1,2,"] * 5


async def test_what_comes_while_a_subscriber_joins_is_kept_and_comes_first(world: World) -> None:
    client, socket = world.client()
    channel = await world.joined("news", client, Lines())
    world.batch(("news", b"1"), ("news", b"2"))
    assert socket.writes == []
    client.emit(b"reply\n")
    world.hub.admit(channel, client)
    world.batch(("news", b"3"))
    assert socket.text() == b"reply\n1\n2\n3\n"


async def test_a_joining_subscriber_that_leaves_is_forgotten(world: World) -> None:
    client, socket = world.client()
    channel = await world.joined("news", client, Lines())
    world.hub.leave(channel, client)
    world.hub.admit(channel, client)
    world.batch(("news", b"1"))
    assert socket.writes == []


async def test_replies_outside_a_batch_leave_in_order_in_one_write(world: World) -> None:
    client, socket = world.client()
    client.emit(b"1")
    client.emit(b"2")
    assert socket.writes == []
    await turns()
    assert socket.writes == [b"12"]


async def test_nothing_follows_a_close_and_what_was_pending_comes_before(world: World) -> None:
    client, socket = world.client()
    await world.live("news", client, Lines())
    client.emit(b"last")
    client.close(SHUTDOWN)
    client.emit(b"never")
    world.batch(("news", b"never"))
    client.close(SLOW)
    await turns()
    assert socket.writes == [b"last"]
    assert socket.closed == (3001, "shutdown")
    assert world.left == [client]


async def test_a_paused_client_collects_and_gets_all_of_it_when_it_reads_again(world: World) -> None:
    client, socket = world.client()
    await world.live("news", client, Lines())
    socket.stalled = True
    world.batch(("news", b"1"))
    world.batch(("news", b"2"))
    world.batch(("news", b"3"))
    assert socket.text() == b"1\n"
    socket.stalled = False
    client.resumed()
    world.batch(("news", b"4"))
    assert socket.text() == b"1\n2\n3\n4\n"
    assert client.closed_with is None


async def test_a_client_over_its_bound_is_closed_as_slow_and_its_backlog_dropped(world: World) -> None:
    client, socket = world.client()
    other, other_socket = world.client()
    await world.live("news", client, Lines())
    await world.live("news", other, Lines())
    socket.stalled = True
    for number in range(20):
        world.batch(("news", b"%d" % number + b"x" * 99))
    assert socket.closed == (3008, "slow")
    assert len(socket.writes) == 1
    assert len(other_socket.writes) == 20
    assert other.closed_with is None


async def test_a_policy_acts_on_the_paused_client_only_and_keeps_it(world: World) -> None:
    """Setup: two subscribers, one stalled. Do: publish four times its bound. Expect: it misses the oldest."""
    client, socket = world.client()
    other, other_socket = world.client()
    channel = await world.live("news", client, Lines())
    await world.live("news", other, Lines())
    channel.policy = Policy(conflates=False)
    socket.stalled = True
    messages = [b"%02d" % number + b"x" * 97 for number in range(40)]
    for message in messages:
        world.batch(("news", message))
    assert other_socket.text().split() == messages
    assert client.closed_with is None
    socket.stalled = False
    client.resumed()
    assert socket.text().split() == [messages[0], *messages[-10:]]
    world.batch(("news", b"last"))
    assert socket.text().split()[-1] == b"last"
    assert world.count("bongsu_dropped_publications_total", policy="drop_oldest") == 29


async def test_several_publications_of_one_batch_are_conflated_one_by_one(world: World) -> None:
    client, socket = world.client()
    channel = await world.live("news", client, Lines())
    channel.policy = Policy(conflates=True)
    client.paused()
    world.batch(("news", b"1"), ("news", b"2"), ("news", b"3"))
    client.resumed()
    assert socket.text() == b"3\n"
    assert world.count("bongsu_dropped_publications_total", policy="conflate") == 2


async def test_a_policy_does_not_protect_from_other_channels_(world: World) -> None:
    client, socket = world.client()
    channel = await world.live("news", client, Lines())
    channel.policy = Policy(conflates=True)
    await world.live("chat", client, Lines())
    client.paused()
    world.batch(("news", b"1"))
    for _ in range(11):
        world.batch(("chat", b"x" * 99))
    assert socket.closed == (3008, "slow")
    assert world.count("bongsu_slow_clients_total", reason="overflow") == 1


async def test_a_paused_client_without_progress_is_stuck_and_one_with_progress_is_not(world: World) -> None:
    client, socket = world.client()
    socket.buffered = 100
    client.paused()
    start = client.paused_since
    assert not client.is_stuck(start + 4)
    socket.buffered = 99
    assert not client.is_stuck(start + 6)
    assert not client.is_stuck(start + 10)
    assert client.is_stuck(start + 11.1)


async def test_a_client_that_joins_for_too_long_is_slow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "JOINING_MAX_SIZE", 1000)
    client, socket = world.client()
    await world.joined("news", client, Lines())
    for _ in range(20):
        world.batch(("news", b"x" * 100))
    assert socket.closed == (3008, "slow")


async def test_who_follows_a_stream_is_told_of_its_end_and_sent_nothing_of_the_next(world: World) -> None:
    """The client would take offset 1 of the new epoch for what follows its own position."""
    client, socket = world.client()

    def lost(name: str) -> None:
        world.hub.leave(channel, client)
        client.emit(b"lost " + name.encode())

    client.lost_position = lost
    channel = await world.live("news", client, Lines(b" ", positioned=True))
    first = envelope.encode(Publication(b"old", offset=1, epoch="aaaaaaaa"))
    second = envelope.encode(Publication(b"new", offset=1, epoch="bbbbbbbb"))
    world.hub.deliver([("news", first), ("news", second)])
    assert socket.text() == b"old lost news"


async def test_what_came_before_a_publication_that_cannot_be_sent_is_delivered(world: World) -> None:
    """Both came in one batch: the JSON before the bytes was lost with them."""
    client, socket = world.client()
    await world.live("news", client, ClientVariant(JSON, Form("lines", lambda text: text + b"\n")))
    world.hub.deliver(
        [
            ("news", envelope.encode(Publication(b"1"))),
            ("news", envelope.encode(Publication(b"2"))),
            ("news", envelope.encode(Publication(b"\xff", binary=True))),
            ("news", envelope.encode(Publication(b"4"))),
        ]
    )
    pushes = [json.loads(line)["push"] for line in socket.text().splitlines()]
    assert [push["pub"]["data"] for push in pushes] == [1, 2]
    assert socket.closed == (3506, "inappropriate protocol")


@pytest.mark.parametrize("conflates", [False, True])
async def test_what_a_paused_client_waits_for_ends_with_what_cannot_be_sent(
    world: World, conflates: bool
) -> None:
    client, socket = world.client()
    channel = await world.live("news", client, ClientVariant(JSON, Form("lines", lambda text: text + b"\n")))
    channel.policy = Policy(conflates=conflates)
    client.paused()
    world.hub.deliver(
        [
            ("news", envelope.encode(Publication(b"1"))),
            ("news", envelope.encode(Publication(b"\xff", binary=True))),
        ]
    )
    assert json.loads(socket.text())["push"]["pub"]["data"] == 1
    assert socket.closed == (3506, "inappropriate protocol")


async def test_who_moves_into_another_group_in_mid_delivery_is_not_served_twice(world: World) -> None:
    """A delta subscriber does after its first publication; the others, who have had theirs, came before it or
    not."""
    later = Lines(b" later ")
    first = Lines(b" first ")
    first.after = lambda publications: later  # type: ignore[method-assign]
    new, new_socket = world.client()
    old, old_socket = world.client()
    await world.live("news", new, first)
    await world.live("news", old, later)
    world.batch(("news", b"1"))
    world.batch(("news", b"2"))
    assert new_socket.text() == b"1 first 2 later "
    assert old_socket.text() == b"1 later 2 later "


async def test_a_long_fan_out_is_sliced_pauses_the_broker_and_keeps_the_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "SLICE", 0.0)
    paused: list[bool] = []
    monkeypatch.setattr(world.broker, "pause", lambda: paused.append(True))
    monkeypatch.setattr(world.broker, "resume", lambda: paused.append(False))
    sockets = []
    for _ in range(200):
        client, socket = world.client()
        await world.live("news", client, Lines())
        sockets.append(socket)
    world.batch(("news", b"1"))
    written = sum(bool(socket.writes) for socket in sockets)
    assert 0 < written < 200
    assert paused == [True]
    late, late_socket = world.client()
    await world.live("news", late, Lines())
    world.batch(("news", b"2"))
    sockets[-1].client.emit(b"reply\n")  # type: ignore[union-attr]
    await turns(20)
    assert paused == [True, False]
    assert [socket.text() for socket in sockets[:-1]] == [b"1\n2\n"] * 199
    assert sockets[-1].text() == b"1\n2\nreply\n"
    assert late_socket.text() == b"2\n"


async def test_an_empty_channel_is_left_after_a_while_unless_somebody_comes_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "LINGER", 0.0)
    dropped: list[str] = []
    monkeypatch.setattr(world.broker, "drop", dropped.append)
    client, _ = world.client()
    channel = await world.live("news", client, Lines())
    world.hub.leave(channel, client)
    again = world.hub.reserve("news")
    await turns()
    assert dropped == []
    world.hub.release(again)
    async with asyncio.timeout(5):
        while not dropped:  # noqa: ASYNC110  # a timer's turn has no event
            await asyncio.sleep(0)
    assert dropped == ["news"]


async def test_messages_of_another_version_are_skipped_and_counted(world: World) -> None:
    client, socket = world.client()
    await world.live("news", client, Lines())
    world.hub.deliver([("news", b"\x63\x01\x00future"), ("news", envelope.encode(Publication(b"now")))])
    assert socket.writes == [b"now\n"]
