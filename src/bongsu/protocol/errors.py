"""Codes of the client protocol and the server API, each in one table.

Source: the Centrifuge client protocol, "Codes" (disconnect ranges decide whether SDKs reconnect).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Disconnect(NamedTuple):
    """A WebSocket close: `code` and `reason`. Reasons are never empty and never valid JSON (SDKs parse them)."""

    code: int
    reason: str


# 3000-3499: the client reconnects. 3500-3999: it does not.
SHUTDOWN: Final = Disconnect(3001, "shutdown")
INTERNAL_SERVER_ERROR: Final = Disconnect(3004, "internal server error")
SLOW: Final = Disconnect(3008, "slow")
WRITE_ERROR: Final = Disconnect(3009, "write error")
PERMISSION_DENIED: Final = Disconnect(3507, "permission denied")

# RFC 6455 §7.4.1, sent to plain clients whose input breaks a rule of the transport itself.
UNSUPPORTED_DATA: Final = Disconnect(1003, "text frames only")
INVALID_UTF8: Final = Disconnect(1007, "invalid UTF-8")
MESSAGE_TOO_BIG: Final = Disconnect(1009, "message too big")


class ApiError(NamedTuple):
    """An error of the server API: HTTP 200 with `{"error": {"code", "message"}}`."""

    code: int
    message: str


API_INTERNAL: Final = ApiError(100, "internal server error")
API_UNKNOWN_CHANNEL: Final = ApiError(102, "unknown channel")
API_NOT_FOUND: Final = ApiError(104, "not found")
API_BAD_REQUEST: Final = ApiError(107, "bad request")
API_NOT_AVAILABLE: Final = ApiError(108, "not available")
