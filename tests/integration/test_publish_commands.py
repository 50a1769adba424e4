"""Publish commands of one client over Redis: none waits for the one before it, and nobody can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.integration import test_concurrency
from tests.integration.serving import DEADLINE, serving
from tests.servers import RedisServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

import bongsu
from bongsu.brokers.redis import RedisBroker
from bongsu.node.commands import MAX_PUBLISHING
from bongsu.settings import load

CHANNEL = {**test_concurrency.CHANNEL, "HISTORY_SIZE": "1000", "FORCE_RECOVERY": "true"}


class Line:
    """A client, subscribed to x, and the Redis behind its replica, which can be told to wait."""

    def __init__(self, app: bongsu.Bongsu, socket: ClientConnection, redis: Redis) -> None:
        self._broker = app.node.broker
        self.app = app
        self.socket = socket
        self._redis = redis

    async def say(self, *commands: dict[str, Any]) -> None:
        await self.socket.send("\n".join(map(json.dumps, commands)))

    async def messages(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(DEADLINE):
            return [json.loads(line) for line in str(await self.socket.recv()).split("\n")]

    async def answers(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += [message for message in await self.messages() if "id" in message]
        return found

    async def hold(self) -> None:
        """From now on Redis answers no write, until `go_on`."""
        await self._redis.client_pause(30_000, all=False)

    async def go_on(self) -> None:
        await self._redis.client_unpause()

    @property
    def under_way(self) -> int:
        assert isinstance(self._broker, RedisBroker)
        return self._broker.pipeline.in_flight

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not happened():  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.001)

    async def until_under_way(self, count: int) -> None:
        await self.until(lambda: self.under_way >= count)


@asynccontextmanager
async def connected(redis: RedisServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    for name, value in CHANNEL.items():
        monkeypatch.setenv(f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}", value)
    app = bongsu.Bongsu(
        load(
            dev=True,
            broker_url=redis.url,
            database_url=f"sqlite+aiosqlite:///{path}/bongsu.sqlite",
            storage_url=f"file://{path}/storage",
        )
    )
    async with (
        serving(app) as url,
        connect(url.replace("http", "ws") + "/connection/websocket") as socket,
        Redis.from_url(redis.url) as client,
    ):
        line = Line(app, socket, client)
        await line.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "x"}})
        assert [answer["id"] for answer in await line.answers(2)] == [1, 2]
        yield line


def publish(id: int, channel: str = "x", **more: Any) -> dict[str, Any]:
    return {"id": id, "publish": {"channel": channel, "data": id, **more}}


async def test_answers_and_publications_keep_the_order_of_the_commands_whatever_is_wrong_with_some(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {
        5: (publish(5, "elsewhere"), 103),
        9: (publish(9, "unknown:x"), 102),
        12: (publish(12, type=1), 108),
        13: ({"id": 13, "publish": {"channel": "x"}}, 107),
        20: (publish(20, "elsewhere"), 103),
    }
    commands = [wrong[id][0] if id in wrong else publish(id) for id in range(3, 23)]
    async with connected(redis_server, tmp_path, monkeypatch) as line:
        await line.hold()
        await line.say(*commands[:8])  # one frame
        for command in commands[8:]:
            await line.say(command)
        # 12 is not a publication, and waits; what comes before it is with Redis, all at once.
        await line.until_under_way(7)
        await line.go_on()
        answers = await line.answers(len(commands))
        assert [answer["id"] for answer in answers] == list(range(3, 23))
        assert {a["id"]: a["error"]["code"] for a in answers if "error" in a} == {
            id: code for id, (_, code) in wrong.items()
        }
        await line.say({"id": 23, "history": {"channel": "x", "limit": -1}})
        history = (await line.answers(1))[0]["history"]
        assert [one["data"] for one in history["publications"]] == [
            id for id in range(3, 23) if id not in wrong
        ]


async def test_other_commands_see_the_effects_of_the_publications_before_them_and_those_after_see_theirs(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(redis_server, tmp_path, monkeypatch) as line:
        await line.hold()
        await line.say(
            *[publish(id) for id in range(3, 8)],
            {"id": 8, "history": {"channel": "x", "limit": -1}},
            *[publish(id, "y") for id in (9, 10)],
            {"id": 11, "subscribe": {"channel": "y"}},
            *[publish(id, "y") for id in (12, 13)],
            {"id": 14, "unsubscribe": {"channel": "y"}},
            publish(15, "y"),
        )
        await line.until_under_way(5)
        await line.go_on()
        answers = await line.answers(13)
        assert [answer["id"] for answer in answers] == list(range(3, 16))
        assert [answer["id"] for answer in answers if "error" in answer] == [9, 10, 15]
        assert [one["data"] for one in answers[5]["history"]["publications"]] == list(range(3, 8))


async def test_a_command_that_ends_the_connection_does_so_after_the_answers_before_it(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(redis_server, tmp_path, monkeypatch) as line:
        await line.hold()
        await line.say(*[publish(id) for id in range(3, 13)], publish(13, ""), publish(14))
        await line.until_under_way(10)
        await line.go_on()
        found: list[dict[str, Any]] = []
        with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012  # it says more before
            while True:
                found += await line.messages()
        assert [message["id"] for message in found if "id" in message] == list(range(3, 13))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3501


async def test_what_a_client_that_is_lost_had_published_is_published_once_and_what_waited_is_not(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(redis_server, tmp_path, monkeypatch) as line:
        await line.hold()
        await line.say(*[publish(id) for id in range(3, 60)])
        await line.until_under_way(MAX_PUBLISHING)
        assert line.under_way < 2 * MAX_PUBLISHING  # Redis is asked for other things, too
        line.socket.transport.abort()
        await line.until(lambda: not line.app.node.clients)
        await line.go_on()
        rules = line.app.node.hub.channel("x")
        assert rules is not None
        page = await line.app.node.read(rules, since=None, limit=1000)
        kept = [json.loads(one.data) for one in page.publications]
        assert kept == list(range(3, 3 + MAX_PUBLISHING))
