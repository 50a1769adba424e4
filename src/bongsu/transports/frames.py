"""Server-side WebSocket frames, made once for all who receive them (RFC 6455 §5.2). Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import Struct
from typing import Final

_TEXT: Final = 0x81  # FIN, opcode 1
_BINARY: Final = 0x82  # FIN, opcode 2
_CLOSE: Final = 0x88  # FIN, opcode 8
_PONG: Final = 0x8A  # FIN, opcode 10
_RSV1: Final = 0x40  # deflated
_SYNC: Final = b"\x00\x00\xff\xff"  # left out at the end of a message (RFC 7692 §7.2.1)
_MEMORY_LEVEL: Final = 5

_SHORT_TEXT: Final = [bytes((_TEXT, size)) for size in range(126)]
_MEDIUM: Final = Struct("!BBH").pack
_LONG: Final = Struct("!BBQ").pack


def text_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented text frame. `payload` must be UTF-8."""
    size = len(payload)
    if size < 126:
        return _SHORT_TEXT[size] + payload
    if size < 65536:
        return _MEDIUM(_TEXT, 126, size) + payload
    return _head(_TEXT, size) + payload


def binary_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented binary frame."""
    return _head(_BINARY, len(payload)) + payload


def deflated(frame: Callable[[bytes], bytes], *, level: int, min_size: int) -> Callable[[bytes], bytes]:
    """`frame` for those who agreed on permessage-deflate (RFC 7692); below `min_size` bytes as it is.

    Without context takeover a message does not depend on those before it, so one serves everybody.
    """
    first = frame(b"")[0] | _RSV1

    def deflating(payload: bytes) -> bytes:
        if len(payload) < min_size:
            return frame(payload)
        # A window of the message's size: making a bigger one costs more than the compression.
        window = min(zlib.MAX_WBITS, max(9, len(payload).bit_length()))
        deflater = zlib.compressobj(level, zlib.DEFLATED, -window, _MEMORY_LEVEL)
        data = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
        small = data[: -len(_SYNC)]
        return _head(first, len(small)) + small

    return deflating


PING: Final = b"\x89\x00"


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping; `payload` is the ping's, at most 125 bytes."""
    return bytes((_PONG, len(payload))) + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    """`reason` is cut to the 123 bytes there is room for; `code` None: without either."""
    if code is None:
        return bytes((_CLOSE, 0))
    payload = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return bytes((_CLOSE, len(payload))) + payload


def _head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return _MEDIUM(first, 126, size)
    return _LONG(first, 127, size)
