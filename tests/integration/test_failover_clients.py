"""What clients of the shipped command are told when Redis goes on with older data.

Nobody is told that he recovered when he has not, nobody takes a new publication for one that he has, and who
has left is not present.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.integration.test_client_protocol import Client
from tests.integration.test_client_protocol import client as connected
from tests.integration.test_presence import until_members
from tests.integration.test_redis_failover import address, durable, follow, promote, second
from tests.integration.test_redis_failover import client as commands
from tests.servers import API_KEY, RedisServer, RunningServer

__all__ = ["durable", "second"]  # fixtures

DEADLINE = 60.0
OPTIONS = {
    "PRESENCE": "true",
    "JOIN_LEAVE": "true",
    "HISTORY_SIZE": "100",
    "HISTORY_TTL": "300s",
    "FORCE_RECOVERY": "true",
    "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
}
ENV = {f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": value for name, value in OPTIONS.items()}

Start = Callable[..., RunningServer]


class Follower:
    """A client of the channel "room", and where it is in its stream, as an SDK keeps it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.epoch = ""
        self.offset = 0
        self.heard: list[int] = []

    async def subscribe(self, since: Follower | None = None) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        if since is not None:
            asked = {"recover": True, "epoch": since.epoch, "offset": since.offset}
        result = await self.client.call("subscribe", channel="room", **asked)
        self.epoch, self.offset = result["epoch"], result.get("offset", 0)
        for publication in result.get("publications", []):
            self._take(publication)
        return result

    async def until(self, number: int) -> None:
        """Hear until `number`; unsubscribed for insufficient state, subscribe again from where it was."""
        while number not in self.heard:
            await self._read()

    async def until_moved(self) -> None:
        """Follow another epoch than now."""
        epoch = self.epoch
        while self.epoch == epoch:
            await self._read()

    async def _read(self) -> None:
        push = await self.client.until(lambda push: "pub" in push or "unsubscribe" in push)
        if "pub" in push:
            self._take(push["pub"])
            return
        assert push["unsubscribe"]["code"] == 2500
        assert "recovered" not in await self.subscribe(since=self)

    def _take(self, publication: dict[str, Any]) -> None:
        assert publication["offset"] == self.offset + 1
        self.offset = publication["offset"]
        self.heard.append(publication["data"])


async def publish(server: RunningServer, *numbers: int) -> None:
    """One after another, each until the broker has it."""
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}) as http, asyncio.timeout(DEADLINE):
        for number in numbers:
            body = {"channel": "room", "data": number}
            while "error" in (await http.post(f"{server.url}/api/publish", json=body)).json():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def until_ready(*servers: RunningServer) -> None:
    async with httpx.AsyncClient() as http, asyncio.timeout(DEADLINE):
        for server in servers:
            while (await http.get(f"{server.url}/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


class Scene:
    """`here` stays; `leaver` leaves and `newcomer` comes after the moment that Redis goes back to."""

    def __init__(self, one: RunningServer, two: RunningServer, stack: AsyncExitStack) -> None:
        self.one = one
        self.two = two
        self._stack = stack

    async def begin(self) -> None:
        await until_ready(self.one, self.two)
        self.here = await self._follower(self.one)
        leaver = AsyncExitStack()
        self.leaver = Follower(await leaver.enter_async_context(connected(self.one)))
        self._leave = leaver.aclose
        await self.leaver.subscribe()
        await publish(self.one, *range(1, 11))
        await until_members(self.one, {self.here.client.id, self.leaver.client.id})

    async def go_on(self) -> None:
        """What Redis is about to forget."""
        await publish(self.two, *range(11, 16))
        await self.leaver.until(15)
        await self._leave()
        await publish(self.two, *range(16, 21))
        self.newcomer = await self._follower(self.two)
        await self.here.until(20)
        await until_members(self.two, {self.here.client.id, self.newcomer.client.id})

    async def judge(self) -> None:
        await publish(self.two, *range(21, 31))
        await self.here.until_moved()
        await self.newcomer.until_moved()
        await publish(self.one, *range(31, 41))
        await self.here.until(40)
        await self.newcomer.until(40)
        assert self.here.heard[:20] == list(range(1, 21))
        for follower in (self.here, self.newcomer):
            # Those before he subscribed again are what he was told that he has lost.
            since = [number for number in follower.heard if number > 20]
            assert since == list(range(since[0], 41))
            assert since[0] <= 31
        back = await self._follower(self.one, since=self.leaver)
        assert back.heard == []
        await publish(self.one, 41)
        await back.until(41)
        again = await self._follower(self.two, since=self.here)
        assert again.heard == [41]
        everybody = {each.client.id for each in (self.here, self.newcomer, back, again)}
        for server in (self.one, self.two):
            await until_members(server, everybody)

    async def _follower(self, server: RunningServer, since: Follower | None = None) -> Follower:
        follower = Follower(await self._stack.enter_async_context(connected(server)))
        result = await follower.subscribe(since)
        if since is not None:
            assert result["was_recovering"]
            assert bool(result.get("recovered")) is (since.epoch == result["epoch"])
        return follower


@asynccontextmanager
async def scene(start: Start, url: str) -> AsyncIterator[Scene]:
    servers = [start(**ENV, BONGSU_BROKER_URL=url) for _ in range(2)]
    async with AsyncExitStack() as stack:
        one = Scene(servers[0], servers[1], stack)
        await one.begin()
        yield one


async def test_when_a_replica_is_promoted_behind_its_master(
    redis_server: RedisServer,
    second: RedisServer,
    bongsu_server: Start,
) -> None:
    async with address(redis_server) as (moving, url), scene(bongsu_server, url) as it:
        await follow(second, redis_server)
        await promote(second)
        await it.go_on()
        moving.move(second)
        redis_server.kill()
        await it.judge()


async def test_when_redis_is_started_again_from_an_older_file(
    durable: RedisServer,
    tmp_path: Path,
    bongsu_server: Start,
) -> None:
    files, aside = tmp_path / "durable" / "appendonlydir", tmp_path / "aside"
    async with scene(bongsu_server, durable.url) as it:
        async with commands(durable) as redis:
            await redis.config_set("appendfsync", "always")
        shutil.copytree(files, aside)
        await it.go_on()
        durable.kill()
        shutil.rmtree(files)
        shutil.move(aside, files)
        durable.start()
        await it.judge()
