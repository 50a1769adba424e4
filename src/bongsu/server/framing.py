"""Frames of a client, read as they arrive (RFC 6455 §5, RFC 7692). Pure: bytes in, messages out."""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without its compiled part: the same, slower
    from websockets.utils import apply_mask

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

MAX_FRAGMENTS: Final = 1024
"""Frames of one message. Empty ones would cost memory that no limit of bytes sees."""

NO_CODE: Final = 1005
"""What stands for the code of a close frame without one (RFC 6455 §7.4.1)."""

_MAX_CONTROL: Final = 125
_FIN: Final = 0x80
_RSV1: Final = 0x40
_RESERVED: Final = 0x70
_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
_SYNC: Final = b"\x00\x00\xff\xff"  # what a sender leaves out at a message's end (RFC 7692 §7.2.1)
_AFTER_THE_LAST: Final = b"\x00" + _SYNC  # an empty block, after the last one of a stream
_ONE_MORE: Final = b"\x00\x01\x00\xfe\xffx"  # a block that is the letter x, uncompressed


class BrokenFrame(Exception):
    """The peer broke a rule: fail the connection with `code` (RFC 6455 §7.1.7)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Message(NamedTuple):
    """A whole message, unmasked and inflated, or a control frame."""

    opcode: int
    payload: bytes


class FrameReader:
    """What one client has sent. After a `BrokenFrame` nothing it has read makes sense any more."""

    __slots__ = ("_deflated", "_fragments", "_inflates", "_input", "_max_size", "_opcode", "_size")

    def __init__(self, max_size: int, *, inflates: bool) -> None:
        """`max_size`: bytes of one message, inflated or not. `inflates`: permessage-deflate was agreed on."""
        self._max_size = max_size
        self._inflates = inflates
        # None while there is nothing, as in most connections at most times.
        self._input: bytearray | None = None
        self._fragments: list[bytes] | None = None
        self._size = 0
        self._opcode = 0
        self._deflated = False

    def feed(self, data: bytes) -> None:
        """More bytes; then `read` until there is nothing more."""
        if self._input is None:
            self._input = bytearray(data)
        else:
            self._input += data

    def read(self) -> Message | None:
        """The next whole message, or None: feed more. Raises `BrokenFrame`."""
        while self._input is not None and (frame := self._frame()) is not None:
            first, payload = frame
            opcode = first & 0x0F
            if opcode >= CLOSE:
                return Message(opcode, payload)
            if opcode:
                if self._fragments is not None:
                    raise BrokenFrame(1002, "expected a continuation frame")
                self._opcode, self._deflated = opcode, bool(first & _RSV1)
                if first & _FIN:
                    return Message(opcode, self._whole(payload))
                self._fragments = []
            elif self._fragments is None:
                raise BrokenFrame(1002, "unexpected continuation frame")
            elif len(self._fragments) >= MAX_FRAGMENTS:
                raise BrokenFrame(1008, "too many fragments")
            self._fragments.append(payload)
            self._size += len(payload)
            if first & _FIN:
                whole = b"".join(self._fragments)
                self._fragments, self._size = None, 0
                return Message(self._opcode, self._whole(whole))
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        """First byte and unmasked payload of the next whole frame."""
        data = self._input
        if data is None or len(data) < 2:
            return None
        first, size = data[0], data[1] & 0x7F
        self._check_head(first, size, masked=data[1] >= 0x80)
        start = 6
        if size == 126:
            start = 8
            if len(data) < 4:
                return None
            size = int.from_bytes(data[2:4], "big")
        elif size == 127:
            start = 14
            if len(data) < 10:
                return None
            size = int.from_bytes(data[2:10], "big")
        # Said as soon as it is known, not when all of it has been taken in.
        if size + self._size > self._max_size and first & 0x0F < CLOSE:
            raise BrokenFrame(1009, f"a message may have {self._max_size} bytes")
        end = start + size
        if len(data) < end:
            return None
        payload = apply_mask(data[start:end], data[start - 4 : start])
        if len(data) == end:
            self._input = None
        else:
            del data[:end]
        return first, payload

    def _check_head(self, first: int, size: int, *, masked: bool) -> None:
        opcode = first & 0x0F
        reserved = first & _RESERVED
        if reserved and not (reserved == _RSV1 and self._inflates and opcode in (TEXT, BINARY)):
            raise BrokenFrame(1002, "reserved bits must be 0")
        if opcode > PONG or BINARY < opcode < CLOSE:
            raise BrokenFrame(1002, "invalid opcode")
        if not masked:
            raise BrokenFrame(1002, "a client's frames must be masked")
        if opcode >= CLOSE and (size > _MAX_CONTROL or not first & _FIN):
            raise BrokenFrame(1002, "a control frame is long or fragmented")

    def _whole(self, payload: bytes) -> bytes:
        if not self._deflated:
            return payload
        inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            # A few kilobytes may stand for gigabytes: one byte over the limit is enough to know.
            whole = inflater.decompress(payload + _SYNC, self._max_size + 1)
            if len(whole) > self._max_size:
                raise BrokenFrame(1009, f"a message may have {self._max_size} bytes")
            # Either it ended by itself (RFC 7692 §7.2.3.5), or with a block, so that another is read as one.
            is_complete = (
                inflater.unused_data == _AFTER_THE_LAST
                if inflater.eof
                else inflater.decompress(_ONE_MORE, 2) == b"x"
            )
        except zlib.error:
            is_complete = False
        if not is_complete:
            raise BrokenFrame(1002, "a message cannot be inflated")
        return whole


def close_code(payload: bytes) -> int:
    """What a close frame says; `NO_CODE` for nothing. Raises `BrokenFrame`."""
    if not payload:
        return NO_CODE
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or code not in _CODES:
        raise BrokenFrame(1002, "invalid close frame")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise BrokenFrame(1007, "invalid UTF-8 in a close frame") from None
    return code
