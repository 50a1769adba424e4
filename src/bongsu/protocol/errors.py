"""Codes of the client protocol and the server API, each in one table.

A reply error ends one command, an unsubscribe one subscription, a disconnect the connection; an API error
answers a backend. SDKs branch on the numbers, so a code that is not in its table here is never sent, unless
the application chose it within the ranges left to applications.

Source: the Centrifuge client protocol, §13 "Codes" and §18.1 "HTTP server API".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

# RFC 6455 §5.5: a close frame holds at most 125 bytes, two of them the code.
MAX_REASON_BYTES: Final = 123


class Disconnect(NamedTuple):
    """A WebSocket close: `code` and `reason`. Reasons are never empty and never valid JSON (SDKs parse them).

    On transports without close frames it travels as the push `disconnect`.
    """

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        """Whether SDKs connect again on their own after this code."""
        return not (3500 <= self.code < 4000 or 4500 <= self.code < 5000)


# 3000-3499: the client reconnects. 3500-3999: it does not.
CONNECTION_CLOSED: Final = Disconnect(3000, "connection closed")  # the client went away; never written
SHUTDOWN: Final = Disconnect(3001, "shutdown")
INTERNAL_SERVER_ERROR: Final = Disconnect(3004, "internal server error")
CONNECTION_EXPIRED: Final = Disconnect(3005, "connection expired")
SUBSCRIPTION_EXPIRED: Final = Disconnect(3006, "subscription expired")
SLOW: Final = Disconnect(3008, "slow")
WRITE_ERROR: Final = Disconnect(3009, "write error")
INSUFFICIENT_STATE: Final = Disconnect(3010, "insufficient state")
FORCE_RECONNECT: Final = Disconnect(3011, "force reconnect")
NO_PONG: Final = Disconnect(3012, "no pong")
TOO_MANY_REQUESTS: Final = Disconnect(3013, "too many requests")
STATE_INVALIDATED: Final = Disconnect(3014, "state invalidated")
INVALID_TOKEN: Final = Disconnect(3500, "invalid token")
BAD_REQUEST: Final = Disconnect(3501, "bad request")
STALE: Final = Disconnect(3502, "stale")
FORCE_DISCONNECT: Final = Disconnect(3503, "force disconnect")
CONNECTION_LIMIT: Final = Disconnect(3504, "connection limit")
CHANNEL_LIMIT: Final = Disconnect(3505, "channel limit")
INAPPROPRIATE_PROTOCOL: Final = Disconnect(3506, "inappropriate protocol")
PERMISSION_DENIED: Final = Disconnect(3507, "permission denied")
NOT_AVAILABLE: Final = Disconnect(3508, "not available")
TOO_MANY_ERRORS: Final = Disconnect(3509, "too many errors")

# RFC 6455 §7.4.1, sent to plain clients whose input breaks a rule of the transport itself.
UNSUPPORTED_DATA: Final = Disconnect(1003, "text frames only")
INVALID_UTF8: Final = Disconnect(1007, "invalid UTF-8")
MESSAGE_TOO_BIG: Final = Disconnect(1009, "message too big")


class Error(NamedTuple):
    """An error reply. SDKs try a `temporary` one again by themselves."""

    code: int
    message: str
    temporary: bool = False


ERROR_INTERNAL: Final = Error(100, "internal server error", temporary=True)
ERROR_UNAUTHORIZED: Final = Error(101, "unauthorized")
ERROR_UNKNOWN_CHANNEL: Final = Error(102, "unknown channel")
ERROR_PERMISSION_DENIED: Final = Error(103, "permission denied")
ERROR_METHOD_NOT_FOUND: Final = Error(104, "method not found")
ERROR_ALREADY_SUBSCRIBED: Final = Error(105, "already subscribed")
ERROR_LIMIT_EXCEEDED: Final = Error(106, "limit exceeded")
ERROR_BAD_REQUEST: Final = Error(107, "bad request")
ERROR_NOT_AVAILABLE: Final = Error(108, "not available")
ERROR_TOKEN_EXPIRED: Final = Error(109, "token expired")
ERROR_EXPIRED: Final = Error(110, "expired")
ERROR_TOO_MANY_REQUESTS: Final = Error(111, "too many requests", temporary=True)
ERROR_UNRECOVERABLE_POSITION: Final = Error(112, "unrecoverable position")
ERROR_CONCURRENT_PAGINATION: Final = Error(113, "concurrent pagination", temporary=True)


class Unsubscribe(NamedTuple):
    """The push `unsubscribe`. From 2500 on SDKs subscribe again; below, the subscription is over."""

    code: int
    reason: str


UNSUBSCRIBE_SERVER: Final = Unsubscribe(2000, "server unsubscribe")
UNSUBSCRIBE_INSUFFICIENT_STATE: Final = Unsubscribe(2500, "insufficient state")
UNSUBSCRIBE_EXPIRED: Final = Unsubscribe(2501, "subscription expired")
UNSUBSCRIBE_STATE_INVALIDATED: Final = Unsubscribe(2502, "state invalidated")


class ApiError(NamedTuple):
    """An error of the server API: HTTP 200 with `{"error": {"code", "message"}}`."""

    code: int
    message: str

    @property
    def status(self) -> int:
        """The HTTP status in transport error mode; 500 for an application's own code."""
        return _API_STATUS.get(self.code, 500)


API_INTERNAL: Final = ApiError(100, "internal server error")
API_UNKNOWN_CHANNEL: Final = ApiError(102, "unknown channel")
API_NOT_FOUND: Final = ApiError(104, "not found")
API_BAD_REQUEST: Final = ApiError(107, "bad request")
API_NOT_AVAILABLE: Final = ApiError(108, "not available")
API_UNRECOVERABLE_POSITION: Final = ApiError(112, "unrecoverable position")
API_CONFLICT: Final = ApiError(113, "conflict")

_API_STATUS: Final[Mapping[int, int]] = {100: 500, 102: 404, 104: 404, 107: 400, 108: 400, 112: 416, 113: 409}


_Row = TypeVar("_Row", Disconnect, Error, Unsubscribe, ApiError)


def _table(kind: type[_Row]) -> Mapping[int, _Row]:
    return MappingProxyType({row.code: row for row in globals().values() if isinstance(row, kind)})


DISCONNECTS: Final = _table(Disconnect)
ERRORS: Final = _table(Error)
UNSUBSCRIBES: Final = _table(Unsubscribe)
API_ERRORS: Final = _table(ApiError)


class ProtocolError(Exception):
    """The peer's bytes break the protocol, or cannot be given to it: close with `disconnect`.

    `detail` is for the log; it never holds the peer's data.
    """

    def __init__(self, disconnect: Disconnect, detail: str) -> None:
        super().__init__(f"{disconnect.code} {disconnect.reason}: {detail}")
        self.disconnect = disconnect
        self.detail = detail


def application_disconnect(code: int, reason: str) -> Disconnect:
    """A disconnect that an application or a backend chose; ValueError says what is wrong with it.

    Codes outside 3000-4999 mean something else to WebSocket stacks. An SDK handed an empty reason ignores
    the code's range and reconnects for ever, and one that parses as JSON replaces code and reason.
    """
    if not 3000 <= code <= 4999:
        raise ValueError("a disconnect code lies in 3000-4999")
    if not reason or len(reason.encode()) > MAX_REASON_BYTES:
        raise ValueError(f"a disconnect reason has 1-{MAX_REASON_BYTES} bytes of UTF-8")
    try:
        json.loads(reason)
    except ValueError:
        return Disconnect(code, reason)
    raise ValueError("a disconnect reason must not be JSON")
