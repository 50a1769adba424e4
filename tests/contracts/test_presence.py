"""What every broker with presence promises (`brokers/base.py: Presence`), asked of each implementation."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol, cast

import pytest
from redis.asyncio import Redis
from tests.contracts.test_brokers import DEADLINE, Listener
from tests.servers import RedisServer

from bongsu.brokers.base import (
    MAX_MEMBERS,
    Broker,
    BrokerUnavailable,
    Departed,
    Leases,
    Presence,
    TooManyMembers,
)
from bongsu.brokers.memory import MemoryBroker
from bongsu.brokers.redis import RedisBroker
from bongsu.brokers.redis.names import Names
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult

TTL = 30.0
"""Seconds of a lease: longer than any test."""


class PresenceBroker(Broker, Leases, Presence, Protocol): ...


class World:
    """Two brokers that speak to each other, each with a lease."""

    def __init__(self, a: PresenceBroker, b: PresenceBroker) -> None:
        self.a, self.b = a, b
        self.heard = Listener()
        b.listen(self.heard)

    async def renew(self) -> None:
        await self.a.renew("a", b"{}", TTL)
        await self.b.renew("b", b"{}", TTL)

    async def clients(self, channel: str) -> list[str]:
        return sorted(await self.b.presence(channel))


class RedisWorld(World):
    """With a hand on Redis's own clock: what it knows of a lease can be made older."""

    def __init__(self, a: RedisBroker, b: RedisBroker, redis: Redis) -> None:
        super().__init__(a, b)
        self.redis = redis
        self.keys = Names("bongsu").leases()

    async def age(self, replica: str, seconds: float) -> None:
        for member in cast("list[bytes]", await self.redis.zrange(self.keys.expires, 0, -1)):
            if member.endswith(b":" + replica.encode()):
                await self.redis.zincrby(self.keys.expires, -seconds * 1000, member)

    async def take_for_dead(self, replica: str) -> None:
        """Its lease is out for longer than it may come back, and a living replica notices."""
        await self.age(replica, 2 * TTL + 1)
        living = self.b if replica == "a" else self.a
        await living.renew("b" if replica == "a" else "a", b"{}", TTL)

    async def free_the_lock(self) -> None:
        """As if whoever is sweeping showed no sign of life for too long."""
        for start in cast("list[bytes]", await self.redis.zrange(self.keys.dead, 0, -1)):
            await self.redis.zadd(self.keys.dead, {start: 0})

    async def presence_keys(self) -> list[bytes]:
        return cast("list[bytes]", await self.redis.keys("*presence*"))


async def _redis_world(server: RedisServer, stack: AsyncExitStack) -> RedisWorld:
    redis = await stack.enter_async_context(Redis.from_url(server.url))
    return RedisWorld(RedisBroker(server.url), RedisBroker(server.url), redis)


async def _connect(world: World, stack: AsyncExitStack) -> None:
    for broker in {world.a, world.b}:
        await broker.connect()
        stack.push_async_callback(broker.disconnect)
    await world.renew()


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world: World
        if request.param == "redis":
            world = await _redis_world(request.getfixturevalue("redis_server"), stack)
        else:
            broker = MemoryBroker()
            world = World(broker, broker)
        await _connect(world, stack)
        yield world


@pytest.fixture
async def over_redis(redis_server: RedisServer) -> AsyncIterator[RedisWorld]:
    async with AsyncExitStack() as stack:
        world = await _redis_world(redis_server, stack)
        await _connect(world, stack)
        yield world


def info(client: str, user: str = "") -> ClientInfo:
    return ClientInfo(user, client, b'{"of":"connection"}', b'{"of":"channel"}')


async def swept(broker: Presence) -> list[Departed]:
    return [departed async for page in broker.sweep() for departed in page]


def by_client(departed: list[Departed]) -> list[Departed]:
    return sorted(departed, key=lambda one: (one.channel, one.info.client))


# ---- who is there --------------------------------------------------------------------------------------


async def test_both_brokers_have_presence(world: World) -> None:
    assert isinstance(world.a, Presence)
    for name in ("enter", "leave", "presence", "presence_stats", "renounce", "sweep"):
        ours, promised = (inspect.signature(getattr(one, name)) for one in (type(world.a), Presence))
        assert ours == promised


async def test_who_has_entered_is_seen_from_elsewhere_with_all_that_was_said(world: World) -> None:
    binary = ClientInfo("사용자:1", "client:1", bytes(range(256)), b":3:4:")
    bare = ClientInfo("", "bare", b"", b"")
    channel = "ns:{x}:*?[a]\\ 채널 ' \""
    await world.a.enter(channel, binary)
    await world.a.enter(channel, bare, announced=True)
    assert await world.b.presence(channel) == {"client:1": binary, "bare": bare}
    assert await world.b.presence("elsewhere") == {}


async def test_who_enters_again_is_there_once_with_what_was_said_last(world: World) -> None:
    await world.a.enter("news", info("one", "anna"))
    changed = ClientInfo("anna", "one", b"2", b"3")
    await world.a.enter("news", changed)
    assert await world.b.presence("news") == {"one": changed}
    assert await world.b.presence_stats("news") == PresenceStatsResult(1, 1)


async def test_who_has_left_is_gone_and_may_leave_again(world: World) -> None:
    await world.a.enter("news", info("one"))
    await world.a.enter("news", info("two"))
    await world.a.leave("news", "one")
    await world.a.leave("news", "one")
    await world.a.leave("never", "one")
    assert await world.clients("news") == ["two"]


async def test_stats_count_clients_and_users_and_the_anonymous_are_one_user(world: World) -> None:
    assert await world.b.presence_stats("news") == PresenceStatsResult(0, 0)
    for client, user in (("1", "anna"), ("2", "anna"), ("3", "berta"), ("4", ""), ("5", "")):
        await world.a.enter("news", info(client, user))
    assert await world.b.presence_stats("news") == PresenceStatsResult(5, 3)
    await world.a.leave("news", "1")
    await world.a.leave("news", "3")
    assert await world.b.presence_stats("news") == PresenceStatsResult(3, 2)
    for client in ("2", "4", "5"):
        await world.a.leave("news", client)
    assert await world.b.presence_stats("news") == PresenceStatsResult(0, 0)


async def test_entering_and_leaving_take_effect_in_the_order_of_the_calls(world: World) -> None:
    done: list[asyncio.Future[bool]] = []
    for _ in range(100):
        done.append(world.a.enter("news", info("stays")))
        done.append(world.a.leave("news", "stays"))
        done.append(world.a.enter("news", info("stays")))
        done.append(world.a.enter("news", info("goes")))
        done.append(world.a.leave("news", "goes"))
    await asyncio.gather(*done)
    assert await world.clients("news") == ["stays"]
    assert await world.b.presence_stats("news") == PresenceStatsResult(1, 1)


async def test_whoever_hears_what_was_sent_after_entering_finds_the_entry(world: World) -> None:
    await world.b.want("news")
    entered = world.a.enter("news", info("one"))
    sent = world.a.send("news", b"joined")
    await world.heard.until(lambda heard: bool(heard.events))
    assert await world.clients("news") == ["one"]
    await asyncio.gather(entered, sent)


async def test_a_channel_with_too_many_members_is_counted_but_not_listed(world: World) -> None:
    entered = [world.a.enter("news", info(str(number), str(number % 7))) for number in range(MAX_MEMBERS + 1)]
    await asyncio.gather(*entered)
    with pytest.raises(TooManyMembers):
        await world.b.presence("news")
    assert await world.b.presence_stats("news") == PresenceStatsResult(MAX_MEMBERS + 1, 7)
    await world.a.leave("news", "0")
    assert len(await world.b.presence("news")) == MAX_MEMBERS


async def test_without_a_connection_everything_fails_at_once(world: World) -> None:
    await world.a.disconnect()
    for attempt in (
        world.a.enter("news", info("one")),
        world.a.leave("news", "one"),
        world.a.presence("news"),
        world.a.presence_stats("news"),
    ):
        with pytest.raises(BrokerUnavailable):
            await attempt


# ---- what is left behind -------------------------------------------------------------------------------


async def test_where_nobody_died_there_is_nothing_to_sweep(world: World) -> None:
    await world.a.enter("news", info("one"))
    assert await swept(world.a) == []
    assert await swept(world.b) == []
    assert await world.clients("news") == ["one"]


async def test_what_was_renounced_is_swept_once_and_says_whether_it_was_announced(world: World) -> None:
    await world.a.enter("news", info("told", "anna"), announced=True)
    await world.a.enter("news", info("untold", "anna"))
    await world.a.enter("sport", info("told", "anna"), announced=True)
    before = world.a.standing
    world.a.renounce()
    await world.renew()
    assert world.a.standing.losses > before.losses
    assert world.a.standing.evictions > before.evictions
    assert by_client(await swept(world.b)) == [
        Departed("news", info("told", "anna"), True),
        Departed("news", info("untold", "anna"), False),
        Departed("sport", info("told", "anna"), True),
    ]
    assert await swept(world.b) == []
    assert await swept(world.a) == []
    assert await world.clients("news") == []
    assert await world.b.presence_stats("news") == PresenceStatsResult(0, 0)


async def test_a_leave_that_a_sweep_reports_says_what_was_said_last(world: World) -> None:
    await world.a.enter("news", info("one", "anna"), announced=True)
    changed = ClientInfo("anna", "one", b"2", b"3")
    await world.a.enter("news", changed, announced=True)
    world.a.renounce()
    await world.renew()
    assert await swept(world.b) == [Departed("news", changed, True)]


async def test_who_was_written_again_by_the_next_incarnation_is_not_swept(world: World) -> None:
    await world.a.enter("news", info("back"), announced=True)
    await world.a.enter("news", info("gone"), announced=True)
    world.a.renounce()
    await world.renew()
    await world.a.enter("news", info("back"), announced=True)
    assert await swept(world.b) == [Departed("news", info("gone"), True)]
    assert await world.clients("news") == ["back"]
    assert await world.b.presence_stats("news") == PresenceStatsResult(1, 1)


async def test_two_who_sweep_at_once_report_each_entry_once(world: World) -> None:
    channels = [f"channel {number}" for number in range(200)]
    await asyncio.gather(*[world.a.enter(name, info("one")) for name in channels])
    world.a.renounce()
    await world.renew()
    both = await asyncio.gather(swept(world.a), swept(world.b))
    assert sorted(one.channel for part in both for one in part) == sorted(channels)


async def test_a_large_channel_is_swept_in_pages(world: World) -> None:
    clients = [f"{number:04}" for number in range(3000)]
    await asyncio.gather(*[world.a.enter("news", info(client)) for client in clients])
    world.a.renounce()
    await world.renew()
    pages = [page async for page in world.b.sweep()]
    assert len(pages) > 1
    assert sorted(one.info.client for page in pages for one in page) == clients


# ---- leases, over Redis --------------------------------------------------------------------------------


async def test_members_of_a_replica_without_a_lease_do_not_count(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("of a", "anna"))
    await over_redis.b.enter("news", info("of b", "berta"))
    assert await over_redis.b.presence_stats("news") == PresenceStatsResult(2, 2)
    await over_redis.age("a", TTL + 1)
    assert await over_redis.clients("news") == ["of b"]
    assert await over_redis.b.presence_stats("news") == PresenceStatsResult(1, 1)


async def test_a_lease_that_comes_back_soon_has_lost_nothing(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("one"), announced=True)
    before = over_redis.a.standing
    await over_redis.age("a", TTL + 1)
    assert "a" not in await over_redis.b.renew("b", b"{}", TTL)
    assert await swept(over_redis.b) == []
    assert set(await over_redis.a.renew("a", b"{}", TTL)) == {"a", "b"}
    assert over_redis.a.standing == before
    assert await over_redis.clients("news") == ["one"]


async def test_nobody_is_taken_for_dead_when_all_were_cut_off_together(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("one"))
    before = over_redis.a.standing
    await over_redis.age("a", 100 * TTL)
    await over_redis.age("b", 100 * TTL)
    await over_redis.b.renew("b", b"{}", TTL)
    await over_redis.b.renew("b", b"{}", TTL)
    assert await swept(over_redis.b) == []
    await over_redis.a.renew("a", b"{}", TTL)
    assert over_redis.a.standing == before
    assert await over_redis.clients("news") == ["one"]


async def test_a_replica_that_was_taken_for_dead_is_told_and_begins_anew(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("one"), announced=True)
    before = over_redis.a.standing
    await over_redis.take_for_dead("a")
    assert await swept(over_redis.b) == [Departed("news", info("one"), True)]
    assert set(await over_redis.a.renew("a", b"{}", TTL)) == {"a", "b"}
    assert over_redis.a.standing == (before.losses + 1, before.evictions + 1)
    await over_redis.a.enter("news", info("one"), announced=True)
    assert await swept(over_redis.b) == []
    assert await over_redis.clients("news") == ["one"]


async def test_what_was_still_under_way_when_it_was_swept_is_swept_too(over_redis: RedisWorld) -> None:
    await over_redis.take_for_dead("a")
    assert await swept(over_redis.b) == []
    await over_redis.a.enter("news", info("late"), announced=True)
    assert await over_redis.clients("news") == []
    await over_redis.a.renew("a", b"{}", TTL)
    await over_redis.free_the_lock()  # in time: until then its replica may write it again
    assert await swept(over_redis.b) == [Departed("news", info("late"), True)]


async def test_a_redis_that_was_emptied_has_lost_entries_but_evicted_nobody(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("one"), announced=True)
    before = over_redis.a.standing
    await over_redis.redis.flushall()
    await over_redis.renew()
    assert over_redis.a.standing == (before.losses + 1, before.evictions)
    await over_redis.a.enter("news", info("one"), announced=True)
    assert await swept(over_redis.b) == []
    assert await over_redis.clients("news") == ["one"]


async def test_what_was_written_before_the_emptiness_was_noticed_is_nobodys_leave(
    over_redis: RedisWorld,
) -> None:
    """Found when Redis was restarted empty: a replica wrote its members again before its next renewal found
    that the incarnation was forgotten. That one was swept at once, and leaves were told of who is there.
    """
    await over_redis.redis.flushall()
    here = info("here")
    await over_redis.a.enter("news", here, announced=True)
    await over_redis.renew()
    assert await swept(over_redis.b) == []
    await over_redis.a.enter("news", here, announced=True)
    assert await over_redis.clients("news") == ["here"]


async def test_a_sweep_whose_lock_is_taken_over_midway_reports_each_entry_once(
    over_redis: RedisWorld,
) -> None:
    clients = [f"{number:04}" for number in range(3000)]
    await asyncio.gather(*[over_redis.a.enter("news", info(client)) for client in clients])
    await over_redis.take_for_dead("a")
    slow = over_redis.b.sweep()
    reported = list(await anext(slow))
    assert 0 < len(reported) < len(clients)
    async with asyncio.timeout(DEADLINE):
        assert await swept(over_redis.a) == [], "the lock is held"
        await over_redis.free_the_lock()
        reported += await swept(over_redis.a)
        reported += [departed async for page in slow for departed in page]
    assert sorted(one.info.client for one in reported) == clients


async def test_a_sweep_that_was_given_up_is_finished_by_another(over_redis: RedisWorld) -> None:
    clients = [f"{number:04}" for number in range(3000)]
    await asyncio.gather(*[over_redis.b.enter("news", info(client)) for client in clients])
    await over_redis.take_for_dead("b")
    given_up = over_redis.a.sweep()
    reported = list(await anext(given_up))
    await over_redis.b.renew("b", b"{}", TTL)
    await over_redis.free_the_lock()
    reported += await swept(over_redis.b)
    assert sorted(one.info.client for one in reported) == clients


async def test_a_clean_stop_leaves_what_it_could_not_take_back_to_the_others(over_redis: RedisWorld) -> None:
    await over_redis.a.enter("news", info("one"), announced=True)
    await over_redis.a.release("a")
    assert await over_redis.clients("news") == []
    assert await swept(over_redis.b) == [Departed("news", info("one"), True)]


async def test_nothing_is_left_in_redis_of_those_who_left_and_were_swept(over_redis: RedisWorld) -> None:
    for number in range(50):
        await over_redis.a.enter(f"channel {number}", info("one"))
        await over_redis.b.enter(f"channel {number}", info("two"))
    for number in range(50):
        await over_redis.b.leave(f"channel {number}", "two")
    await over_redis.take_for_dead("a")
    assert len(await swept(over_redis.b)) == 50
    assert await over_redis.presence_keys() == []


async def test_either_the_sweep_or_the_client_knows_of_an_entry(world: World) -> None:
    """So that somebody tells of each leave, and one only."""
    for client in ("swept", "back", "gone"):
        assert await world.a.enter("news", info(client), announced=True) is False
        assert await world.a.enter("news", info(client), announced=True) is True
    world.a.renounce()
    await world.renew()
    assert await world.a.enter("news", info("back"), announced=True) is True
    assert await world.a.leave("news", "gone") is True
    assert await world.a.leave("news", "gone") is False
    assert await swept(world.a) == [Departed("news", info("swept"), True)]
    assert await world.a.enter("news", info("swept"), announced=True) is False
