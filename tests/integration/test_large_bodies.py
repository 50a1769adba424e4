"""Large bodies go round the parser, from the socket to the application; nothing else may look different."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from uvicorn import Server

from bongsu.server.body import Blocks
from bongsu.server.door import Door
from bongsu.server.http import LARGE_BODY, BongsuConfig

MIB: Final = 1024 * 1024
BODY: Final = os.urandom(5 * MIB + 17)


class Application:
    """Answers with the length and hash of the body; `/early` without reading it.

    `/late` goes on only when it may once it has some of it, and `/enough` then answers without the rest.
    """

    def __init__(self) -> None:
        self.has_some = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.largest = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        said = b"nothing"
        if scope["path"] != "/early":
            digest, length, more = hashlib.sha256(), 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left.set()
                    return
                digest.update(message["body"])
                length += len(message["body"])
                self.largest = max(self.largest, len(message["body"]))
                more = message["more_body"]
                self.has_some.set()
                if scope["path"] in ("/late", "/enough"):
                    await self.may_go_on.wait()
                if scope["path"] == "/enough":
                    break
            said = told(length, digest.hexdigest())
        headers = [(b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})


def told(length: int, digest: str) -> bytes:
    return f"{length} {digest}".encode()


def whole(body: bytes) -> bytes:
    return told(len(body), hashlib.sha256(body).hexdigest())


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
async def client(application: Application, blocks: Blocks) -> AsyncIterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = BongsuConfig(application, http=Door, ws="none", lifespan="off", log_config=None)
        config.server_headers = []
        config.blocks = blocks
        server = Server(config)
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        yield Client(reader, writer, server.server_state.connections)
        writer.close()
        server.should_exit = server.force_exit = True
        await serving
    assert blocks.readers == 0


class Client:
    """One connection, and all that its server has."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connections: set[Any]
    ) -> None:
        self.connections = connections
        self.reader = reader
        self.writer = writer

    async def is_not_read(self) -> None:
        """Returns once its server has stopped reading."""
        (protocol,) = self.connections
        async with asyncio.timeout(30):
            while not protocol.flow.read_paused:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0)

    async def answer(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await self.reader.readexactly(length)


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {length}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("length", [LARGE_BODY - 1, LARGE_BODY, LARGE_BODY + 1, MIB, len(BODY)])
async def test_a_body_arrives_whole_and_the_next_request_right_behind_it(client: Client, length: int) -> None:
    request = head("/", length) + BODY[:length]
    client.writer.write(request + head("/", 5) + b"small" + request)
    assert [await client.answer() for _ in range(3)] == [
        whole(BODY[:length]),
        whole(b"small"),
        whole(BODY[:length]),
    ]


async def test_a_body_in_pieces_of_any_size(client: Client, application: Application) -> None:
    client.writer.write(head("/", len(BODY)))
    at = 0
    for size in (1, 70_000, 1, 2 * MIB, 100, len(BODY)):
        client.writer.write(BODY[at : at + size])
        await client.writer.drain()
        at += size
    assert await client.answer() == whole(BODY)
    assert application.largest <= MIB


async def test_a_client_that_asks_first_is_told_to_go_on(client: Client) -> None:
    client.writer.write(head("/", len(BODY), "Expect: 100-continue"))
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(BODY)
    assert await client.answer() == whole(BODY)


async def test_an_application_that_asks_late_gets_all_of_it(client: Client, application: Application) -> None:
    """Nobody reads on into a block that is full."""
    body = os.urandom(32 * MIB)  # more than the kernel holds on both sides
    client.writer.write(head("/late", len(body)) + body)
    await application.has_some.wait()
    await client.is_not_read()
    application.may_go_on.set()
    assert await client.answer() == whole(body)


async def test_an_application_that_has_enough_leaves_a_full_block(
    client: Client, application: Application
) -> None:
    """The answer lets reading go on, and nobody empties the block."""
    body = os.urandom(32 * MIB)
    client.writer.write(head("/enough", len(body)) + body + head("/", 5) + b"small")
    await application.has_some.wait()
    await client.is_not_read()
    application.may_go_on.set()
    await client.answer()
    assert await client.answer() == whole(b"small")


async def test_a_body_that_pauses_is_handed_on(client: Client, application: Application) -> None:
    """A block need not be full: who sends slowly must be seen to send."""
    client.writer.write(head("/", len(BODY)) + BODY[:10])
    for start in (10, 20, 30):
        await application.has_some.wait()
        application.has_some.clear()
        client.writer.write(BODY[start : start + 10])
    await application.has_some.wait()
    client.writer.write(BODY[40:])
    assert await client.answer() == whole(BODY)


async def test_the_rest_of_a_body_that_was_answered_early_is_thrown_away(client: Client) -> None:
    client.writer.write(head("/early", len(BODY)))
    assert await client.answer() == b"nothing"
    client.writer.write(BODY + head("/", 5) + b"small")
    assert await client.answer() == whole(b"small")


async def test_an_application_is_told_of_a_client_that_left(client: Client, application: Application) -> None:
    client.writer.write(head("/", len(BODY)) + BODY[: 3 * MIB])
    await client.writer.drain()
    client.writer.close()
    async with asyncio.timeout(10):
        await application.left.wait()


def test_many_requests_together_hold_no_more_than_a_few(blocks: Blocks) -> None:
    for readers, each in ((1, 1024), (12, 1024), (64, 192), (1000, 64)):
        blocks.readers = readers
        assert blocks.largest() == each * 1024
    blocks.readers = 0
