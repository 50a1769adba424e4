"""The socket under a session: raw on our server, plain ASGI anywhere else.

Both are `node.client.Socket`s and call the same `Receiver`, so a session never sees which one it has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Protocol, TypeAlias

import structlog

from bongsu.node.client import Socket
from bongsu.protocol.problems import Problem

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

RAW_EXTENSION = "bongsu.raw"
"""Key in `scope["extensions"]`; its value is `{"socket": RawSocket}`. Offered by `bongsu serve`."""

STREAM_EXTENSION = "bongsu.stream"
"""Key in `scope["extensions"]` of a request; its value is `{"cut": callable, "unacknowledged": callable}`.
Offered by `bongsu serve`.
"""

HIGH_WATER = 64 * 1024
"""Bytes not yet taken by the ASGI server above which a client counts as paused."""

log = structlog.get_logger("bongsu.transports")


class Receiver(Protocol):
    """A session's ears. Nothing here may raise or block."""

    def text(self, text: str) -> None: ...

    def binary(self, data: bytes) -> None: ...

    def paused(self) -> None:
        """The socket takes no more for now."""

    def resumed(self) -> None: ...

    def lost(self, code: int | None) -> None:
        """The connection is gone; called once, last.

        `code`: what the transport itself closed it with, because the peer broke a rule or fell silent.
        """


class RawSocket(Socket, Protocol):
    """The raw-write extension: after `websocket.accept` the session takes over from ASGI messages."""

    deflates: bool
    """Whether permessage-deflate was agreed on: frames may be deflated (RFC 7692)."""

    def attach(self, receiver: Receiver, *, keepalive: bool) -> None:
        """From now on `receiver` is called, and the ASGI app may return: the connection stays.

        `keepalive` False: the session sends pings of its own, and WebSocket ping frames are needless.
        """
        ...


class AsgiSocket:
    """The same on any ASGI server: a task reads, another writes, one message at a time (slower)."""

    def __init__(self, receive: Receive, send: Send, *, binary: bool = False) -> None:
        """`binary`: messages are sent as bytes, else as text."""
        self._binary = binary
        self._receive = receive
        self._send = send
        self._receiver: Receiver | None = None
        self._out: deque[bytes] = deque()
        self._unsent = 0
        self._paused = False
        self._wake = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._close: tuple[int, str] | None = None
        self._closing = asyncio.Event()
        self._within = 0.0

    def write(self, chunks: Sequence[bytes]) -> None:
        if self._close is not None:
            return
        self._out.extend(chunks)
        self._unsent += sum(map(len, chunks))
        self._wake.set()
        if self._unsent > HIGH_WATER and not self._paused and self._receiver is not None:
            self._paused = True
            self._receiver.paused()

    def unacknowledged(self) -> int:
        return self._unsent

    def close(self, code: int, reason: str, *, within: float) -> None:
        if self._close is None:
            self._close = (code, reason)
            self._within = within
            self._closing.set()
            self._wake.set()
            self._may_read.set()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    async def run(self, receiver: Receiver) -> None:
        """Serve the session until the connection is gone, or the time for its end has run out."""
        self._receiver = receiver
        tasks = [
            asyncio.create_task(self._read(receiver)),
            asyncio.create_task(self._write(receiver)),
            asyncio.create_task(self._expire()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            receiver.lost(None)

    async def _read(self, receiver: Receiver) -> None:
        while True:
            await self._may_read.wait()
            message = await self._receive()
            if message["type"] in ("websocket.disconnect", "http.disconnect"):
                return
            if self._close is not None:
                continue
            if message.get("text") is not None:
                receiver.text(message["text"])
            elif message.get("bytes") is not None:
                receiver.binary(message["bytes"])

    async def _write(self, receiver: Receiver) -> None:
        try:
            while True:
                while self._out:
                    chunk = self._out.popleft()
                    await self._send(self._message(chunk))
                    self._unsent -= len(chunk)
                    if self._paused and self._unsent <= HIGH_WATER // 4:
                        self._paused = False
                        receiver.resumed()
                if self._close is not None:
                    await self._end(*self._close)
                    return
                self._wake.clear()
                await self._wake.wait()
        except OSError:  # what the ASGI specification has for a client that is gone
            return

    def _message(self, chunk: bytes) -> Message:
        if self._binary:
            return {"type": "websocket.send", "bytes": chunk}
        return {"type": "websocket.send", "text": chunk.decode()}

    async def _end(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})
        await asyncio.Event().wait()  # `_read` sees the peer's answer, or `_expire` ends it

    async def _expire(self) -> None:
        # ASGI has no way to cut a connection: stop serving it, and the server closes it.
        await self._closing.wait()
        await asyncio.sleep(self._within)


class StreamSocket(AsgiSocket):
    """The same over a streamed response, already started; the request's body has been read."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        cut: Callable[[], None] | None = None,
        unacknowledged: Callable[[], int] | None = None,
    ) -> None:
        """`cut` ends the connection at once, unsent bytes or not; `unacknowledged` counts the bytes that the
        server took and the peer did not. None: the server cannot.
        """
        super().__init__(receive, send)
        self._cut = cut
        self._below = unacknowledged

    def unacknowledged(self) -> int:
        return super().unacknowledged() + (self._below() if self._below is not None else 0)

    def pause_reading(self) -> None:
        """There is nothing more to read but that the client is gone, which must be noticed all the same."""

    def _message(self, chunk: bytes) -> Message:
        return {"type": "http.response.body", "body": chunk, "more_body": True}

    async def _end(self, code: int, reason: str) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _expire(self) -> None:
        await super()._expire()
        if self._cut is not None:
            self._cut()
            await asyncio.Event().wait()  # `_read` sees the end


async def refuse(problem: Problem, send: Send, *, extensions: Any) -> None:
    """Answer a handshake with a problem document, before it is accepted.

    Servers without the `websocket.http.response` extension answer a bare 403.
    """
    if "websocket.http.response" not in (extensions or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.kind.code})
        return
    await answer(problem, send, prefix="websocket.http.response")


async def answer(
    problem: Problem,
    send: Send,
    *,
    prefix: str = "http.response",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """A problem document as ASGI messages."""
    body = problem.body()
    fields = [*problem.headers(), *headers, (b"content-length", str(len(body)).encode())]
    await send({"type": f"{prefix}.start", "status": problem.kind.status, "headers": fields})
    await send({"type": f"{prefix}.body", "body": body})
