"""Members of a replica that dies, restarts of Redis: what those who stay are told, on the shipped command."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.integration.test_client_protocol import Client, call, publish
from tests.servers import API_KEY, RedisServer, RunningServer
from websockets.asyncio.client import connect

from bongsu.auth import sign_connection_token, sign_subscription_token

DEADLINE = 60.0

Start = Callable[..., RunningServer]

# Without history: a stream that begins anew would end the subscriptions, and with them the presence.
ENV = {
    f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": "true"
    for name in (
        "PRESENCE",
        "JOIN_LEAVE",
        "FORCE_PUSH_JOIN_LEAVE",
        "ALLOW_SUBSCRIBE_FOR_CLIENT",
        "ALLOW_SUBSCRIBE_FOR_ANONYMOUS",
    )
}


@pytest.fixture
def three(bongsu_server: Start, redis_server: RedisServer) -> list[RunningServer]:
    return [bongsu_server(**ENV, BONGSU_BROKER_URL=redis_server.url) for _ in range(3)]


async def api(server: RunningServer, method: str, channel: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{server.url}/api/{method}", json={"channel": channel}, headers={"X-API-Key": API_KEY}
        )
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


async def members(server: RunningServer, channel: str = "room") -> set[str]:
    answer = await api(server, "presence", channel)
    # While Redis is away the answer is an error, and nobody is known.
    return set(answer.get("result", {}).get("presence", {}))


@asynccontextmanager
async def subscribed(server: RunningServer, count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            # A bounded queue that nobody empties would hold up the closing handshake too.
            url = f"{server.ws_url}/connection/websocket"
            each = Client(await stack.enter_async_context(connect(url, max_queue=None)))
            each.id = (await each.call("connect", name="test"))["client"]
            await each.call("subscribe", channel="room")
            clients.append(each)
        yield clients


async def until_members(server: RunningServer, expected: set[str]) -> None:
    async with asyncio.timeout(DEADLINE):
        while await members(server) != expected:  # noqa: ASYNC110  # asked over HTTP, it has no event
            await asyncio.sleep(0.05)


def _is(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda push: push["channel"] == "room" and kind in push


async def told(watcher: Client, kind: str, count: int, server: RunningServer) -> list[str]:
    """The clients of `count` joins or leaves, and of those more that come before a publication sent then."""
    async with asyncio.timeout(DEADLINE):
        pushes = [await watcher.until(_is(kind)) for _ in range(count)]
        await asyncio.to_thread(publish, server, "room", "mark")
        await watcher.until(_is("pub"))
    pushes += [push for push in watcher.pushes if kind in push]
    watcher.pushes.clear()
    return sorted(push[kind]["info"]["client"] for push in pushes)


async def test_the_members_of_a_killed_replica_are_gone_and_each_leave_is_told_once(
    three: list[RunningServer],
) -> None:
    """Two survivors see the death at about the same time, and both want to sweep."""
    doomed, one, two = three
    async with subscribed(one, 1) as (a,), subscribed(two, 1) as (b,), subscribed(doomed, 40) as clients:
        dead, alive = {each.id for each in clients}, {a.id, b.id}
        await until_members(two, dead | alive)
        doomed.kill()
        for watcher, server in ((a, two), (b, one)):
            assert await told(watcher, "leave", len(dead), server) == sorted(dead)
        for server in (one, two):
            assert await members(server) == alive
            stats = await api(server, "presence_stats", "room")
            assert stats["result"] == {"num_clients": 2, "num_users": 1}


async def test_a_replica_that_was_only_asleep_is_told_of_and_its_members_join_again(
    three: list[RunningServer],
) -> None:
    """It slept for so long that it was taken for dead; its clients never lost their connections."""
    sleeper, one, _ = three
    async with subscribed(one, 1) as (watcher,), subscribed(sleeper, 5) as clients:
        asleep = {each.id for each in clients}
        await until_members(one, asleep | {watcher.id})
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            assert await told(watcher, "leave", len(asleep), one) == sorted(asleep)
            assert await members(one) == {watcher.id}
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        assert await told(watcher, "join", len(asleep), one) == sorted(asleep)
        await until_members(one, asleep | {watcher.id})


async def test_a_replica_that_ends_well_takes_its_members_back(three: list[RunningServer]) -> None:
    leaving, one, two = three
    async with subscribed(one, 1) as (watcher,), subscribed(leaving, 10) as clients:
        gone = {each.id for each in clients}
        await until_members(two, gone | {watcher.id})
        await asyncio.to_thread(leaving.stop)
        assert await told(watcher, "leave", len(gone), one) == sorted(gone)
        assert await members(two) == {watcher.id}


async def test_after_an_empty_restart_of_redis_everybody_is_present_again_and_nobody_joined_or_left(
    three: list[RunningServer], redis_server: RedisServer
) -> None:
    one, two, _ = three
    async with subscribed(one, 3) as here, subscribed(two, 3) as there:
        everybody = {each.id for each in (*here, *there)}
        await until_members(one, everybody)
        watcher = here[0]
        await told(watcher, "join", 5, one)
        redis_server.kill()
        leaver = there.pop()
        assert await leaver.call("unsubscribe", channel="room") == {}
        redis_server.start()
        for server in (one, two):
            await until_members(server, everybody - {leaver.id})
        # Told at most once: the one's leave may go out before the other hears Redis again.
        assert set(await told(watcher, "leave", 0, one)) <= {leaver.id}
        assert await told(watcher, "join", 0, one) == []


SECRET = "a secret of at least thirty-two bytes"


def connection_token(number: int) -> str:
    return sign_connection_token(SECRET, user="anna", now=time.time(), ttl=600, info=number)


def room_token(number: int) -> str:
    return sign_subscription_token(SECRET, user="anna", channel="room", now=time.time(), ttl=600, info=number)


async def until_info(server: RunningServer, channel: str, client: str, info: dict[str, Any]) -> None:
    """`client` is present in `channel` with `info`, all of it."""
    expected = {"user": "anna", "client": client, **info}
    async with asyncio.timeout(DEADLINE):
        while (await api(server, "presence", channel))["result"]["presence"].get(client) != expected:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("over", ["memory", "redis"])
async def test_who_is_refreshed_with_another_info_is_present_and_leaves_with_it(
    over: str, bongsu_server: Start, request: pytest.FixtureRequest
) -> None:
    """Found by reading: entries and leaves kept what the first tokens said, and publications did not.

    Setup: a member of two channels, of one by a token; a watcher, on another replica where there is one.
    Do: a refresh, a sub_refresh and a refresh by the backend, each with another info; then leave.
    Expect: after each the entries say it, where it applies; nobody joins or leaves, until the leaves say it.
    """
    env = {**ENV, "BONGSU_TOKEN__HMAC_SECRET": SECRET}
    if over == "redis":
        env["BONGSU_BROKER_URL"] = request.getfixturevalue("redis_server").url
    one = bongsu_server(**env)
    two = bongsu_server(**env) if over == "redis" else one
    async with AsyncExitStack() as stack:
        watcher, member = [
            Client(await stack.enter_async_context(connect(f"{server.ws_url}/connection/websocket")))
            for server in (one, two)
        ]
        await watcher.call("connect", token=connection_token(0))
        for channel in ("room", "hall"):
            await watcher.call("subscribe", channel=channel)
        member.id = (await member.call("connect", token=connection_token(1)))["client"]
        await member.call("subscribe", channel="room", token=room_token(1))
        await member.call("subscribe", channel="hall")
        await until_info(one, "room", member.id, {"conn_info": 1, "chan_info": 1})
        await until_info(one, "hall", member.id, {"conn_info": 1})

        assert (await member.call("refresh", token=connection_token(2)))["expires"]
        await until_info(one, "room", member.id, {"conn_info": 2, "chan_info": 1})
        await until_info(one, "hall", member.id, {"conn_info": 2})

        assert (await member.call("sub_refresh", channel="room", token=room_token(2)))["expires"]
        await until_info(one, "room", member.id, {"conn_info": 2, "chan_info": 2})

        ends = int(time.time()) + 600
        await asyncio.to_thread(call, one, "refresh", user="anna", client=member.id, expire_at=ends, info=3)
        await until_info(one, "room", member.id, {"conn_info": 3, "chan_info": 2})
        await until_info(one, "hall", member.id, {"conn_info": 3})

        for channel in ("room", "hall"):
            await member.call("unsubscribe", channel=channel)
        leaves = [await watcher.until(lambda push: "leave" in push) for _ in range(2)]
        anna = {"user": "anna", "client": member.id}
        assert {push["channel"]: push["leave"]["info"] for push in leaves} == {
            "room": {**anna, "conn_info": 3, "chan_info": 2},
            "hall": {**anna, "conn_info": 3},
        }
        joins = [push["join"]["info"] for push in watcher.pushes if "join" in push]
        assert [info["client"] for info in joins].count(member.id) == 2, "one for each channel"
