"""Request bodies read as they arrive, and refusals that reach a client which is still sending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.types import Receive, Scope, Send

from bongsu.api.errors import ProblemResponse
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem

__all__ = ["Body", "ClientGone", "Refusal"]

IDLE_TIMEOUT = 60.0
"""Seconds without a byte of the body after which the request is given up."""

_LINGER_TIME: Final = 5.0  # seconds
_LINGER_BYTES: Final = 64 * 1024 * 1024


class ClientGone(Exception):
    """The client left before its request was complete. There is nobody to answer."""


class Body:
    """The body of one request, chunk by chunk. The server reads on only when the next one is asked for."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False
        """Whether nothing more will come: all of it was read, or the client is gone."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            try:
                async with asyncio.timeout(IDLE_TIMEOUT):
                    message = await self._receive()
            except TimeoutError:
                raise Problem(
                    problems.REQUEST_TIMEOUT, f"No byte of the body came for {IDLE_TIMEOUT:g} s."
                ) from None
            if message["type"] == "http.disconnect":
                self.ended = True
                raise ClientGone
            self.ended = not message.get("more_body", False)
            yield message.get("body", b"")


class Refusal(ProblemResponse):
    """A problem that is answered before the body has been read.

    The whole answer is sent first; then what the client still sends is read and thrown away, within
    bounds, and only then the connection is closed. Closed at once, the kernel would answer the bytes on
    their way with a reset, and the client would see that in place of the answer.
    """

    def __init__(self, problem: Problem, body: Body) -> None:
        super().__init__(problem)
        self._rest = body
        if not body.ended:
            self.headers["connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        # With its length declared the client has the whole answer now; for the server it goes on.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await self._linger()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        thrown_away = 0
        try:
            async with asyncio.timeout(_LINGER_TIME):
                async for chunk in self._rest:
                    thrown_away += len(chunk)
                    if thrown_away > _LINGER_BYTES:
                        return
        except (TimeoutError, ClientGone):
            return
