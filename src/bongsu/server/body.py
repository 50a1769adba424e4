"""The body of a large request, read from the socket straight into blocks that are handed to the application.

uvicorn's way copies each byte four times before an application sees it: out of the event loop's buffer, out
of the parser's, into the request's, and out of that. Where the length is declared there is nothing to parse,
and no copy is needed but the kernel's.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["Blocks", "BodyReader"]

_TOGETHER: Final = 24 * 1024 * 1024  # bytes that the blocks of all requests hold; each request has two
_LARGEST: Final = 1024 * 1024
_SMALLEST: Final = 64 * 1024
_RIPE_AFTER: Final = 0.02  # seconds that a block waits to be filled: waking the application costs, too


class Blocks:
    """How large blocks are: few requests get large ones, which cost less; many hold no more in all."""

    def __init__(self) -> None:
        self.readers = 0

    def largest(self) -> int:
        return max(_SMALLEST, min(_LARGEST, _TOGETHER // (2 * self.readers)))


class BodyReader(asyncio.BufferedProtocol):
    """The transport's protocol for the last `left` bytes of a body; before and after, `http` is.

    One block is filled while the application works on another; then reading stops. Messages hold a
    `bytearray` that is the application's own.
    """

    def __init__(self, http: HttpToolsProtocol, left: int, blocks: Blocks) -> None:
        self._http = http
        self._cycle = http.cycle
        self._left = left
        self._blocks = blocks
        self._over = False
        self._ripens: asyncio.TimerHandle | None = None
        blocks.readers += 1
        # What the parser has seen already is the beginning of the first block.
        self._filled = len(self._cycle.body)
        self._block = self._cycle.body + bytes(min(left, _SMALLEST))
        self._cycle.body = bytearray()
        self._cycle.receive = self.receive  # type: ignore[method-assign]

    async def receive(self) -> Any:
        """The request's `receive`, which its application has not called yet."""
        cycle = self._cycle
        if not (self._over or cycle.response_complete):
            if cycle.waiting_for_100_continue:
                cycle.waiting_for_100_continue = False
                self._http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await cycle.message_event.wait()
        if self._over or cycle.response_complete:
            return await RequestResponseCycle.receive(cycle)
        cycle.message_event.clear()
        return {"type": "http.request", "body": self._take(), "more_body": True}

    def _take(self) -> bytearray:
        self._stop_timer()
        block, filled = self._block, self._filled
        del block[filled:]
        # One that was not filled in time was too large, and making a block costs, too.
        size = max(_SMALLEST, min(2 * filled, self._blocks.largest()))
        self._block, self._filled = bytearray(min(size, self._left)), 0
        self._http.flow.resume_reading()
        return block

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._filled == len(self._block):  # reading went on: the answer was given, and nobody wants these
            self._filled = 0
        return memoryview(self._block)[self._filled : self._filled + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        self._filled += nbytes
        if self._cycle.response_complete:
            self._filled = 0
            self._http._unset_keepalive_if_required()  # as at any byte that comes
        elif self._filled == len(self._block):
            self._http.flow.pause_reading()
            self._cycle.message_event.set()
        elif self._ripens is None:
            self._ripens = self._http.loop.call_later(_RIPE_AFTER, self._cycle.message_event.set)
        if not self._left:
            self._end()
            self._http.transport.set_protocol(self._http)
            self._http.on_message_complete()

    def _end(self) -> None:
        """From here on the request has uvicorn's own `receive`, and nothing holds this object."""
        if not self._over:
            self._over = True
            self._stop_timer()
            self._blocks.readers -= 1
            self._cycle.body, self._block = self._block, bytearray()  # full, if anybody is to read it
            del self._cycle.receive

    def _stop_timer(self) -> None:
        if self._ripens is not None:
            self._ripens.cancel()
            self._ripens = None

    # Everything else is `http`'s.

    def eof_received(self) -> None:
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()
