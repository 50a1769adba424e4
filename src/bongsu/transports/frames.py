"""Server-side WebSocket frames, made once for all who receive them (RFC 6455 §5.2). Pure."""

from __future__ import annotations

from struct import Struct

_TEXT = 0x81  # FIN, opcode 1

_SHORT = [bytes((_TEXT, size)) for size in range(126)]
_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack


def text_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented text frame. `payload` must be UTF-8."""
    size = len(payload)
    if size < 126:
        return _SHORT[size] + payload
    if size < 65536:
        return _MEDIUM(_TEXT, 126, size) + payload
    return _LONG(_TEXT, 127, size) + payload
