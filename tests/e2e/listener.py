"""Clients of the plain broadcast: one that remembers all and waits without sleeping, one that stalls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection

# How long a test waits for what must happen. Far more than it takes: a loaded machine is no failure.
PATIENCE = 30.0
PREFIX = "📢 새로운 알림: "


class Listener:
    """One WebSocket of `/ws`. `heard` has the texts as they arrived, without the template's words."""

    def __init__(self, socket: ClientConnection) -> None:
        assert socket.response is not None
        self.replica = socket.response.headers["X-Bongsu-Replica"]
        self.heard: list[str] = []
        self.closed = False
        self._socket = socket
        self._news = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Listener]:
        """A listener for the length of the block. `url` ends in `/ws`."""
        async with websockets.connect(url, open_timeout=PATIENCE) as socket:
            listener = cls(socket)
            reading = asyncio.create_task(listener._read())
            try:
                yield listener
            finally:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading

    async def send(self, text: str) -> None:
        await self._socket.send(text)

    async def hears(self, *texts: str) -> None:
        """Return when all of `texts` have arrived. Raises TimeoutError naming the first that has not."""
        await self._until(lambda: set(texts) <= set(self.heard), lambda: _first_missing(texts, self.heard))

    async def loses_its_connection(self) -> None:
        """Return when the connection has ended. Raises TimeoutError."""
        await self._until(lambda: self.closed, lambda: f"{self.replica} still connected")

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in self._socket:
                assert isinstance(message, str)
                assert message.startswith(PREFIX), message
                self.heard.append(message.removeprefix(PREFIX))
                self._news.set()
        self.closed = True
        self._news.set()

    async def _until(self, condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(f"not within {PATIENCE:g} s: {complaint()}") from None


def _first_missing(texts: Iterable[str], heard: Iterable[str]) -> str:
    got = set(heard)
    return f"message {next(text for text in texts if text not in got)!r} of a client on this replica"


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, *, within: float = PATIENCE
) -> None:
    """Ask `condition` every 50 ms until it holds. Raises TimeoutError naming `what`."""
    try:
        async with asyncio.timeout(within):
            while not await condition():  # noqa: ASYNC110 - another process sets no Event of ours
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"not within {within:g} s: {what}") from None


def open_stalled_socket(base: str) -> socket.socket:
    """A client of `/ws` that completes the handshake and never reads again."""
    address = urlsplit(base)
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    stalled.settimeout(30)
    stalled.connect((address.hostname, address.port))
    stalled.sendall(
        b"GET /ws HTTP/1.1\r\nHost: " + address.netloc.encode() + b"\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stalled.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return stalled
