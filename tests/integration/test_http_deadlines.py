"""Nothing that a peer does or leaves undone holds an HTTP connection for ever. Limits are shortened here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Server

from bongsu.server import http
from bongsu.server.body import Blocks
from bongsu.server.door import Door
from bongsu.server.http import BongsuConfig

LONG = 30.0  # seconds that no test reaches unless the deadline it is about is missing
CHUNK = b"x" * 1_000_000

let_go = asyncio.Event()
"""Set when the server waits no longer for the client of the long answer."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, whatever the body; `/long` has a long answer."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"1")][: scope["path"] != "/long"],
        }
    )
    if scope["path"] != "/long":
        await send({"type": "http.response.body", "body": b"!"})
        return
    for _ in range(64):  # more than the kernel takes
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    let_go.set()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    for name in ("HEAD_TIMEOUT", "REST_TIMEOUT", "STALLED"):
        monkeypatch.setattr(http, name, LONG)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = BongsuConfig(application, http=Door, ws="none", lifespan="off", log_config=None)
        config.server_headers = []
        config.blocks = Blocks()
        server = Server(config)
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        await serving


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes."""
    try:
        async with asyncio.timeout(LONG / 2):
            return await reader.read()
    except ConnectionResetError:
        return b""


async def test_a_head_that_never_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost:")
    answer = await ends(reader)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    writer.close()


async def test_a_connection_on_which_nothing_is_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await ends(reader) == b""
    writer.close()


async def test_a_head_that_never_ends_behind_a_request_that_is_being_answered(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its 408 would stand in the middle of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
    writer.write(b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)
    writer.write(b"GET / HTTP/1.1\r\nHost:")
    assert b" 408 " not in await ends(reader)
    writer.close()


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", 0, 400), ("1.1", 1, 200), ("1.1", 2, 400), ("1.0", 0, 200), ("1.0", 2, 400)],
)
async def test_a_request_names_its_host_once(port: int, version: str, hosts: int, status: int) -> None:
    """RFC 9112 §3.2; HTTP/1.0 needs none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET / HTTP/{version}\r\n" + "HOST: h\r\n" * hosts
    writer.write(f"{head}Connection: close\r\n\r\n".encode())
    answer = await ends(reader)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"names its host" in answer) == (status == 400)
    writer.close()


async def test_the_rest_of_a_body_that_nobody_wants(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn forgets such a connection: any byte of the rest ends its keep-alive timer."""
    monkeypatch.setattr(http, "REST_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
    assert (await reader.readuntil(b"!")).startswith(b"HTTP/1.1 200")
    writer.write(b"a byte")
    assert await ends(reader) == b""
    writer.close()


async def test_a_connection_whose_answer_came_before_its_body_serves_on_and_has_a_deadline(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
    await reader.readuntil(b"!")
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.05)
    writer.write(b"restGET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"!")
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
    await reader.readuntil(b"!")
    writer.write(b"rest")
    assert await ends(reader) == b""
    writer.close()


async def test_a_client_that_takes_nothing_of_its_answer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALLED", 0.05)
    with socket.create_connection(("127.0.0.1", port)) as stalled:
        stalled.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(stalled, b"GET /long HTTP/1.1\r\nHost: h\r\n\r\n")
        async with asyncio.timeout(LONG / 2):
            await let_go.wait()  # the bytes the kernel has are still there, so nothing is seen from outside
