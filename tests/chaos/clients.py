"""Publishers and clients that go on whatever happens to the cluster, and write down all they are told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Final

import httpx
import websockets
from tests.chaos.ledger import Ledger, Position, View
from websockets.asyncio.client import ClientConnection

RETRY: Final = 0.2
"""Seconds between attempts to connect, at most; short, so that each fault is met by many clients."""

TERMINAL: Final = range(3500, 4000)
"""Close codes after which an SDK doesn't come back (protocol §4.4)."""


class Publisher:
    """Publishes numbered messages to all channels in turn through the server API, one at a time."""

    def __init__(self, name: str, url: str, api_key: str, channels: Sequence[str], ledger: Ledger) -> None:
        self._name = name
        self._url = f"{url}/api/publish"
        self._headers = {"X-API-Key": api_key}
        self._channels = channels
        self._ledger = ledger
        self._number = 0

    async def run(self, *, pause: float) -> None:
        """Publish until cancelled, `pause` seconds between answers."""
        async with httpx.AsyncClient(timeout=10) as http:
            while True:
                for channel in self._channels:
                    await self.publish(http, channel)
                    await asyncio.sleep(pause)

    async def publish(self, http: httpx.AsyncClient, channel: str) -> Position | None:
        """Where it is, or None when it was refused or nobody knows what became of it."""
        self._number += 1
        data = f"{self._name} {self._number}"
        try:
            answer = await http.post(
                self._url, json={"channel": channel, "data": data}, headers=self._headers
            )
            body = answer.json() if answer.status_code == 200 else {}
        except (httpx.TransportError, json.JSONDecodeError):
            body = {}
        result = body.get("result")
        if result is None:
            self._ledger.counts["publishes refused or unknown"] += 1
            return None
        self._ledger.counts["publishes acknowledged"] += 1
        position = (result["epoch"], result["offset"])
        self._ledger.note(channel, position, data, by=self._name)
        return position


class Client:
    """One connection of the client protocol that recovers its channels, as SDKs do."""

    def __init__(self, name: str, url: str, channels: Sequence[str], ledger: Ledger, seed: int) -> None:
        self.channels = channels
        self._url = f"{url}/connection/websocket"
        self.name = name
        self._views = {channel: View(name, channel, ledger) for channel in channels}
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._socket: ClientConnection | None = None
        self._stall = 0.0
        self._id = 0
        self._asked: dict[int, str] = {}
        self._news = asyncio.Event()

    def __str__(self) -> str:
        waits = sorted(self._asked.values())
        positions = {channel: view.position for channel, view in self._views.items()}
        return f"{self.name}, which is at {positions} and waits for replies on {waits}"

    def cut(self) -> None:
        """Lose the connection as a phone in a tunnel does: no close frame."""
        if self._socket is not None:
            self._socket.transport.abort()

    def stall(self, seconds: float) -> None:
        """Read nothing for a while."""
        self._stall = seconds

    async def is_at(self, channel: str, position: Position) -> None:
        """Return when it is there in `channel`."""
        while self._views[channel].position != position:
            self._news.clear()
            await self._news.wait()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            try:
                async with websockets.connect(
                    self._url, open_timeout=10, close_timeout=0.1, ping_interval=None, compression=None
                ) as self._socket:
                    await self._converse(self._socket)
            except websockets.ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else 0
                self._ledger.counts[f"closed with {code}" if code else "connections lost"] += 1
                if code in TERMINAL:
                    self._ledger.accuse(f"{self.name}: sent away for good: {closed}")
            except (OSError, websockets.InvalidHandshake, TimeoutError, EOFError):
                self._ledger.counts["connects refused"] += 1
            await asyncio.sleep(self._chance.uniform(0, RETRY))

    async def _converse(self, socket: ClientConnection) -> None:
        self._asked.clear()
        await self._ask(socket, "connect", {})
        for channel in self._views:
            await self._subscribe(socket, channel)
        while True:
            if self._stall:
                seconds, self._stall = self._stall, 0.0
                await asyncio.sleep(seconds)
            # A silent connection is dead: the server's ping comes every 25 s.
            async with asyncio.timeout(40):
                frame = await socket.recv()
            for line in str(frame, "utf-8").splitlines() if isinstance(frame, bytes) else frame.splitlines():
                await self._take(socket, json.loads(line))

    async def _take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        push = message.get("push", {})
        channel = push.get("channel", "")
        if not message:
            await socket.send("{}")
        elif "pub" in push:
            self._views[channel].published(push["pub"]["offset"], push["pub"]["data"])
            self._news.set()
        elif "unsubscribe" in push:
            self._ledger.counts[f"unsubscribed with {push['unsubscribe']['code']}"] += 1
            await self._subscribe(socket, channel)
        elif "subscribe" in message:
            self._subscribed(self._asked.pop(message["id"]), message["subscribe"])
        elif "error" in message:
            self._ledger.counts[f"error {message['error']['code']}"] += 1
            if not message["error"].get("temporary"):
                self._ledger.accuse(f"{self.name}: {message}")
            await asyncio.sleep(RETRY)
            if message["id"] in self._asked:
                await self._subscribe(socket, self._asked.pop(message["id"]))
            else:
                socket.transport.abort()  # the connect command; an SDK begins anew too

    def _subscribed(self, channel: str, result: dict[str, Any]) -> None:
        missed = [(pub["offset"], pub["data"]) for pub in result.get("publications", [])]
        asked = result.get("was_recovering", False)
        self._views[channel].subscribed(
            result["epoch"],
            result.get("offset", 0),
            result.get("recovered", False) if asked else None,
            missed,
        )
        self._news.set()

    async def _subscribe(self, socket: ClientConnection, channel: str) -> None:
        position = self._views[channel].position
        since = {} if position is None else {"recover": True, "epoch": position[0], "offset": position[1]}
        self._asked[await self._ask(socket, "subscribe", {"channel": channel, **since})] = channel

    async def _ask(self, socket: ClientConnection, method: str, request: dict[str, Any]) -> int:
        self._id += 1
        await socket.send(json.dumps({"id": self._id, method: request}))
        return self._id
