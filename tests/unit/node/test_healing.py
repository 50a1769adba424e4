"""What a replica missed is read when the broker is back: not given up before, busiest channels first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.unit.node.test_hub import Lines, World

from bongsu.brokers.base import Page, StreamOptions
from bongsu.brokers.memory import MemoryBroker
from bongsu.node import healing
from bongsu.node.channel import Channel
from bongsu.node.healing import Healer, Messages
from bongsu.protocol.messages import Publication, StreamPosition

OPTIONS = StreamOptions(size=2000, ttl=300, meta_ttl=3600)
DEADLINE = 10.0


class Watched(MemoryBroker):
    """Remembers the reads; `refused` those that found it away."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int]] = []
        self.refused = 0
        self.asked = asyncio.Event()

    def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int,
        reverse: bool = False,
        meta_ttl: float,
    ) -> asyncio.Future[Page]:
        page = super().read(channel, since=since, limit=limit, reverse=reverse, meta_ttl=meta_ttl)
        if page.done() and page.exception() is not None:
            self.refused += 1
        else:
            self.reads.append((channel, limit))
        self.asked.set()
        return page


class Scene:
    """Channels that stand where their streams begin, and what their healer makes of them."""

    def __init__(self) -> None:
        self.broker = Watched()
        self.healer = Healer(self.broker, self)
        self.channels: list[Channel] = []
        self.resumed: dict[str, list[bytes]] = {}
        self.lost: list[str] = []
        self._world = World()
        self._happened = asyncio.Event()

    async def channel(self, name: str, *, subscribers: int, missed: int) -> Channel:
        """It has missed everything that was published."""
        channel = Channel(name)
        top = await self.broker.read(name, limit=0, meta_ttl=OPTIONS.meta_ttl)
        for number in range(missed):
            await self.broker.append(name, Publication(b"%d" % number), OPTIONS)
        channel.epoch, channel.offset, channel.meta_ttl = top.epoch, 0, OPTIONS.meta_ttl
        channel.groups[Lines(positioned=True)] = dict.fromkeys(
            self._world.client()[0] for _ in range(subscribers)
        )
        self.channels.append(channel)
        self.broker.reads.clear()
        return channel

    async def until_resumed(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while len(self.resumed) < count:
                self._happened.clear()
                await self._happened.wait()

    # The hub's part

    def followed(self) -> list[Channel]:
        return self.channels

    def resume_following(self, channel: Channel, messages: Messages) -> None:
        self.resumed[channel.name] = [one.data for one in messages if isinstance(one, Publication)]
        self._happened.set()

    def lose(self, channel: Channel) -> None:
        self.lost.append(channel.name)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.broker.connect()
    yield scene
    await scene.healer.stop()


async def test_the_busiest_channels_are_caught_up_first(scene: Scene) -> None:
    for place in range(100):
        await scene.channel(f"of {place}", subscribers=place + 1, missed=1)
    scene.healer.catch_up()
    await scene.until_resumed(100)
    assert [name for name, _ in scene.broker.reads] == [f"of {place}" for place in reversed(range(100))]


async def test_no_more_quiet_channels_are_looked_at_in_one_round_than_the_loop_can_bear(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 100,000 channels all were held at one time, and their messages came seconds late."""
    monkeypatch.setattr(healing, "DUE", 5)
    monkeypatch.setattr(healing, "SAMPLE", 0)
    for place in range(20):
        (await scene.channel(f"since {place}", subscribers=1, missed=0)).checked_at = float(place)
    scene.healer.check(older_than=40.0, now=1000.0)
    assert [one.name for one in scene.channels if one.held is not None] == [f"since {n}" for n in range(5)]
    await scene.until_resumed(5)
    scene.healer.check(older_than=40.0, now=1000.0)
    assert "since 5" in {one.name for one in scene.channels if one.held is not None}


async def test_what_is_missing_is_read_in_pages_of_500(scene: Scene) -> None:
    await scene.channel("news", subscribers=1, missed=1201)
    scene.healer.catch_up()
    await scene.until_resumed(1)
    assert scene.broker.reads == [("news", 500)] * 3
    assert scene.resumed["news"] == [b"%d" % number for number in range(1201)]


async def test_a_broker_that_is_away_is_waited_for_and_nobody_loses_his_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six attempts were all there were: subscribers were told of a loss while Redis was away, and subscribed
    again in vain until it came back.
    """
    monkeypatch.setattr(healing, "MAX_PAUSE", 0.05)
    channel = await scene.channel("news", subscribers=1, missed=3)
    await scene.broker.disconnect()
    scene.healer.heal(channel, [])
    async with asyncio.timeout(DEADLINE):
        while scene.broker.refused <= 2 * healing.ATTEMPTS:
            scene.broker.asked.clear()
            await scene.broker.asked.wait()
    assert scene.lost == []
    assert channel.held == []
    await scene.broker.connect()
    await scene.until_resumed(1)
    assert scene.resumed["news"] == [b"0", b"1", b"2"]
