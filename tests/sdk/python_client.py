"""A client of centrifuge-python in one of its two encodings, and what its handlers were told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from centrifuge import Client, ClientEventHandler, Subscription, SubscriptionEventHandler

# How long a test waits for what must happen. Far more than it takes: a loaded machine is no failure.
PATIENCE = 30.0


class Heard:
    """Every event of one client or subscription, in order of arrival, by the name of its handler."""

    def __init__(self, handler: ClientEventHandler | SubscriptionEventHandler) -> None:
        self.all: dict[str, list[Any]] = {}
        self._news = asyncio.Event()
        for name in (name for name in dir(handler) if name.startswith("on_")):
            setattr(handler, name, self._recorder(name.removeprefix("on_")))

    def _recorder(self, event: str) -> Any:
        heard = self.all[event] = []

        async def record(context: Any) -> None:
            heard.append(context)
            self._news.set()

        return record

    async def count(self, event: str, wanted: int) -> list[Any]:
        """All events of this name once there are `wanted`. Raises TimeoutError saying how many came."""
        heard = self.all[event]
        try:
            async with asyncio.timeout(PATIENCE):
                while len(heard) < wanted:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"{len(heard)} of {wanted} “{event}” events came: {heard}") from None
        return heard


class Clients:
    """Makes clients of `base` that end with the block; `protobuf` chooses the encoding of all of them."""

    def __init__(self, base: str, *, protobuf: bool) -> None:
        self._address = base.replace("http://", "ws://") + "/connection/websocket"
        self._protobuf = protobuf
        self._made: list[Client] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, base: str, *, protobuf: bool) -> AsyncIterator[Clients]:
        clients = cls(base, protobuf=protobuf)
        try:
            yield clients
        finally:
            for client in clients._made:
                await client.disconnect()

    def client(self, **options: Any) -> tuple[Client, Heard]:
        """A client that is not connected yet, and what it will tell."""
        client = Client(
            self._address,
            use_protobuf=self._protobuf,
            timeout=PATIENCE,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.5,
            proxy=None,
            **options,
        )
        self._made.append(client)
        return client, Heard(client.events)

    async def connected(self, **options: Any) -> Client:
        client, _ = self.client(**options)
        await client.connect()
        await client.ready(timeout=PATIENCE)
        return client

    async def subscribed(self, client: Client, channel: str, **options: Any) -> tuple[Subscription, Heard]:
        """A live subscription, and everything it was told from the beginning."""
        subscription = client.new_subscription(channel, min_resubscribe_delay=0.02, **options)
        heard = Heard(subscription.events)
        await subscription.subscribe()
        await subscription.ready(timeout=PATIENCE)
        await heard.count("subscribed", 1)
        return subscription, heard

    def encode(self, value: object) -> Any:
        """A value as this encoding takes it: Protobuf carries bytes."""
        return json.dumps(value).encode() if self._protobuf else value

    def decode(self, data: Any) -> Any:
        return json.loads(data) if self._protobuf else data


def new_channel(namespace: str = "open") -> str:
    """A channel that nobody else uses; without a namespace it opens with a subscription token only."""
    name = f"python-{uuid4().hex}"
    return f"{namespace}:{name}" if namespace else name
