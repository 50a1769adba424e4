"""Server-side WebSocket frames, made once for all who receive them (RFC 6455 §5.2). Pure."""

from __future__ import annotations

from struct import Struct
from typing import Final

_TEXT: Final = 0x81  # FIN, opcode 1
_BINARY: Final = 0x82  # FIN, opcode 2

_SHORT_TEXT: Final = [bytes((_TEXT, size)) for size in range(126)]
_MEDIUM: Final = Struct("!BBH").pack
_LONG: Final = Struct("!BBQ").pack


def text_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented text frame. `payload` must be UTF-8."""
    size = len(payload)
    if size < 126:
        return _SHORT_TEXT[size] + payload
    return _head(_TEXT, size) + payload


def binary_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented binary frame."""
    return _head(_BINARY, len(payload)) + payload


def _head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return _MEDIUM(first, 126, size)
    return _LONG(first, 127, size)
