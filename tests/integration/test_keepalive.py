"""WebSocket pings to sockets without a protocol of their own; the time between them is shortened here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import websockets
from starlette.types import Receive, Scope, Send
from uvicorn import Server

from bongsu.node.wheel import Wheel
from bongsu.server import protocol
from bongsu.server.body import Blocks
from bongsu.server.http import BongsuConfig, BongsuHttpProtocol
from bongsu.server.protocol import BongsuWebSocketProtocol
from bongsu.transports.sockets import RAW_EXTENSION, RawSocket


class Session:
    """Reads nothing behind the first text until it is told to."""

    def __init__(self) -> None:
        self.socket: RawSocket | None = None
        self.texts: list[str] = []
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.lost_with: int | None = None

    def text(self, text: str) -> None:
        assert self.socket is not None
        self.texts.append(text)
        if len(self.texts) == 1:
            self.socket.pause_reading()
            self.first.set()
        else:
            self.second.set()

    def binary(self, data: bytes) -> None: ...

    def paused(self) -> None: ...

    def resumed(self) -> None: ...

    def lost(self, code: int | None) -> None:
        self.lost_with = code
        self.second.set()


@pytest.fixture
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, Session]]:
    monkeypatch.setattr(protocol, "KEEPALIVE", 0.1)
    session = Session()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        session.socket = scope["extensions"][RAW_EXTENSION]["socket"]
        session.socket.attach(session, keepalive=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = BongsuConfig(
            application,
            http=BongsuHttpProtocol,
            ws=BongsuWebSocketProtocol,  # as `bongsu serve` has it
            lifespan="off",
            log_config=None,
        )
        config.server_headers, config.deflate = [], False
        config.blocks, config.wheel = Blocks(), Wheel()
        server = Server(config)
        task = asyncio.create_task(server._serve(sockets=[listener]))
        yield listener.getsockname()[1], session
        server.should_exit = server.force_exit = True
        await task
        config.wheel.stop()


async def test_a_client_that_is_not_read_is_not_silent(
    serving: tuple[int, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a command of it waits, its pongs lie unread: it was closed with 1011, though it had answered."""
    port, session = serving
    turns = 0
    several = asyncio.Event()
    on_time = BongsuWebSocketProtocol.on_time

    def counted(self: BongsuWebSocketProtocol, now: float) -> float | None:
        nonlocal turns
        turns += 1
        if turns == 5:
            several.set()
        return on_time(self, now)

    async with (
        asyncio.timeout(20),
        websockets.connect(f"ws://127.0.0.1:{port}", ping_interval=None) as client,
    ):
        await client.send("first")
        await session.first.wait()
        monkeypatch.setattr(BongsuWebSocketProtocol, "on_time", counted)
        await client.send("second")
        await several.wait()
        assert session.socket is not None
        session.socket.resume_reading()
        await session.second.wait()
    assert (session.texts, session.lost_with) == (["first", "second"], None)


async def test_a_silent_client_is_told_so(serving: tuple[int, Session]) -> None:
    port, session = serving
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with asyncio.timeout(20):
        await reader.readuntil(b"\r\n\r\n")
        frames = await reader.read()
    assert frames.startswith(b"\x89\x00\x88")  # a ping, then the close
    assert frames[4:6] == (1011).to_bytes(2)
    assert session.lost_with == 1011
    writer.close()
