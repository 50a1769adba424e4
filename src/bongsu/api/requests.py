"""What the upload endpoints read of a request: its headers, its body as it arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from bongsu.api.errors import ProblemResponse
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem

__all__ = [
    "IDEMPOTENCY_KEY",
    "Body",
    "ClientGone",
    "declared_length",
    "early",
    "idempotency_key",
    "owner_of",
    "refusal",
]

_MAX_KEY: Final = 255
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": _MAX_KEY},
    "description": "Sent again with the same key, the answer is that of the first upload, while it is kept",
}
"""The header as a parameter of OpenAPI."""


def owner_of(principal: Principal) -> str | None:
    """Whose an upload of `principal` is; None: the API key's."""
    return None if principal.trusted and not principal.user else principal.user


def declared_length(request: Request) -> int | None:
    """`Content-Length` in bytes; None without one."""
    declared = request.headers.get("content-length", "")
    return int(declared[:20]) if declared.isdecimal() else None


def idempotency_key(request: Request) -> str | None:
    """The header's value. Raises `Problem(BAD_REQUEST)` for one that is empty or too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MAX_KEY:
        raise Problem(problems.BAD_REQUEST, f"An Idempotency-Key has 1 to {_MAX_KEY} characters.")
    return key


class ClientGone(Exception):
    """The client left before its request was complete. There is nobody to answer."""


class Body:
    """The body of one request, chunk by chunk. The server reads on only when the next one is asked for.

    Raises `Problem(REQUEST_TIMEOUT)` when for `timeout` seconds no byte came, or fewer than `min_rate` a
    second. Only the time in which we waited for the client counts: a slow disk is not its fault.
    """

    def __init__(self, receive: Receive, *, timeout: float = 60.0, min_rate: int = 0) -> None:
        self._receive = receive
        self._timeout = timeout
        self._fewest = min_rate * timeout
        self._waited = 0.0
        self._came = 0
        self.ended = False
        """Whether nothing more will come: all of it was read, or the client is gone."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            chunk = await self._next()
            self._came += len(chunk)
            if self._waited >= self._timeout:
                if self._came < self._fewest:
                    raise Problem(
                        problems.REQUEST_TIMEOUT, f"In {self._waited:.0f} s only {self._came} bytes came."
                    )
                self._waited, self._came = 0.0, 0
            yield chunk

    async def _next(self) -> bytes:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                problems.REQUEST_TIMEOUT, f"No byte of the body came for {self._timeout:g} s."
            ) from None
        self._waited += time.monotonic() - began
        if message["type"] == "http.disconnect":
            self.ended = True
            raise ClientGone
        self.ended = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


def early(answer: Response, rest: Body) -> Response:
    """`answer`, which may come before `rest` was read: then the connection is closed behind it."""
    if not rest.ended:
        answer.headers["connection"] = "close"
    return answer


def refusal(problem: Problem, rest: Body) -> Response:
    """A problem that may be answered before `rest` was read."""
    return early(ProblemResponse(problem), rest)
