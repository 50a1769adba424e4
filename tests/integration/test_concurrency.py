"""`client.concurrency`: commands of one connection that wait at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.serving import DEADLINE, serving
from websockets.asyncio.client import ClientConnection, connect

import bongsu
from bongsu.node.connection import MAX_WAITING
from bongsu.node.handlers import Caller
from bongsu.settings import load

CHANNEL = {
    "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
    "ALLOW_PUBLISH_FOR_SUBSCRIBER": "true",
    "ALLOW_PUBLISH_FOR_ANONYMOUS": "true",
    "ALLOW_HISTORY_FOR_SUBSCRIBER": "true",
    "ALLOW_HISTORY_FOR_ANONYMOUS": "true",
    "HISTORY_SIZE": "100",
    "HISTORY_TTL": "300s",
}


class Gate:
    """Two rpc methods: one waits until the other was called."""

    def __init__(self, app: bongsu.Bongsu) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        app.handlers.rpc.update(wait=self._wait, open=self._open)

    async def _wait(self, caller: Caller, data: bytes) -> bytes:
        self.waiting += 1
        await self.open.wait()
        return data

    async def _open(self, caller: Caller, data: bytes) -> bytes:
        self.open.set()
        return str(self.waiting).encode()


@asynccontextmanager
async def connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> AsyncIterator[tuple[bongsu.Bongsu, ClientConnection]]:
    monkeypatch.setenv("BONGSU_CLIENT__CONCURRENCY", str(concurrency))
    for name, value in CHANNEL.items():
        monkeypatch.setenv(f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}", value)
    app = bongsu.Bongsu(
        load(
            dev=True,
            database_url=f"sqlite+aiosqlite:///{tmp_path}/bongsu.sqlite",
            storage_url=f"file://{tmp_path}/storage",
        )
    )
    async with serving(app) as url, connect(url.replace("http", "ws") + "/connection/websocket") as socket:
        await say(socket, {"id": 1, "connect": {}})
        assert [message["id"] for message in await messages(socket, 1)] == [1]
        yield app, socket


async def say(socket: ClientConnection, *commands: dict[str, Any]) -> None:
    await socket.send("\n".join(map(json.dumps, commands)))


async def messages(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE):
        while len(found) < count:
            found += [json.loads(line) for line in str(await socket.recv()).split("\n")]
    return found


def rpc(id: int, method: str) -> dict[str, Any]:
    return {"id": id, "rpc": {"method": method, "data": id}}


async def test_a_command_that_waits_lets_others_begin_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(tmp_path, monkeypatch, concurrency=4) as (app, socket):
        gate = Gate(app)
        await say(socket, rpc(2, "wait"), rpc(3, "wait"), rpc(4, "wait"), rpc(5, "open"))
        answers = {one["id"]: one["rpc"]["data"] for one in await messages(socket, 4)}
        assert answers == {2: 2, 3: 3, 4: 4, 5: 3}
        gate.open.clear()
        await say(socket, *[rpc(id, "wait") for id in range(6, 10)], rpc(10, "open"))
        # The fifth has no place, though it would free the others.
        gate.waiting = 0
        async with asyncio.timeout(DEADLINE):
            while gate.waiting < 4:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        assert not gate.open.is_set()
        gate.open.set()
        assert {one["id"] for one in await messages(socket, 5)} == set(range(6, 11))


async def test_commands_begin_in_their_order_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was subscribed before may be published to, what comes before an unsubscribe is still allowed, and
    publications keep the order of their commands."""
    async with connected(tmp_path, monkeypatch, concurrency=8) as (_, socket):
        publishing = [{"id": id, "publish": {"channel": "x", "data": id}} for id in range(3, 40)]
        await say(
            socket,
            {"id": 2, "subscribe": {"channel": "x"}},
            *publishing,
            {"id": 40, "unsubscribe": {"channel": "x"}},
            {"id": 41, "publish": {"channel": "x", "data": 41}},
            {"id": 42, "subscribe": {"channel": "x"}},
            {"id": 43, "history": {"channel": "x", "limit": -1}},
        )
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < 42:
            answers |= {one["id"]: one for one in await messages(socket, 1) if "id" in one}
        assert [id for id in range(3, 40) if "publish" not in answers[id]] == []
        assert answers[41]["error"]["code"] == 103
        kept = [one["data"] for one in answers[43]["history"]["publications"]]
        assert kept == list(range(3, 40))


@pytest.mark.parametrize("waiting", [1, 2 * MAX_WAITING], ids=["a command", "more than are read"])
async def test_a_pong_has_no_turn_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Pongs waited behind a command that was under way, and clients that had answered were closed (3012)."""
    monkeypatch.setenv("BONGSU_CLIENT__PING_INTERVAL", "1s")
    monkeypatch.setenv("BONGSU_CLIENT__PONG_TIMEOUT", "900ms")
    async with connected(tmp_path, monkeypatch, concurrency=1) as (app, socket):
        gate = Gate(app)
        await say(socket, *(rpc(id, "wait") for id in range(2, 2 + waiting)))
        pings = 0
        replies: list[int] = []
        while len(replies) < waiting:
            for message in await messages(socket, 1):
                if message:
                    replies.append(message["id"])
                    continue
                pings += 1
                await say(socket, {})
                if pings == 3:
                    gate.open.set()
        assert replies == list(range(2, 2 + waiting))
