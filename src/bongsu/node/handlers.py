"""What an application that mounts us answers by itself: rpc calls and messages of its clients.

Source: the Centrifuge client protocol, §4.5 "send and rpc".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

from bongsu.protocol.errors import Error


class Caller(NamedTuple):
    """Which connection calls. `user` is "" for an anonymous one; `client` is the connection's id."""

    user: str
    client: str


class RpcError(Exception):
    """Raise in a handler to answer with an error reply. Own codes are from 400 to 1999."""

    def __init__(self, code: int, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.error = Error(code, message, temporary)


Rpc: TypeAlias = Callable[[Caller, bytes], Awaitable[bytes]]
"""Takes the request's payload and gives the reply's: JSON documents, for clients that speak JSON."""

OnMessage: TypeAlias = Callable[[Caller, bytes], Awaitable[None]]


class Handlers:
    """The application's handlers. Registered before the start; looked up by every connection."""

    def __init__(self) -> None:
        self.rpc: dict[str, Rpc] = {}
        self.message: OnMessage | None = None
