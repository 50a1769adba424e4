"""Fossil deltas: a publication as a patch against the one before it.

A delta is `<size of the target>\\n`, then commands, then `<checksum>;`. Commands are `<n>@<offset>,` (copy n
bytes of the base) and `<n>:<bytes>` (insert n bytes). Numbers are in base 64.

Source: the Centrifuge client protocol, §9 "Delta compression".
"""

from __future__ import annotations

import re
import struct
from typing import Final

BLOCK: Final = 16
"""Bytes that must be equal before a copy is considered; shorter ones cost as much as they save."""

MAX_TARGET_SIZE: Final = 16 * 1024 * 1024
"""Bytes that a delta may grow to in `apply`. A copy command of 8 bytes can stand for the whole base."""

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_NUMBER: Final = re.compile(rb"[0-9A-Z_a-z~]{1,11}")


class DeltaError(ValueError):
    """The bytes are not a delta against this base."""


def create(base: bytes, target: bytes) -> bytes:
    """A delta that makes `target` of `base`. Linear in both sizes, whatever they hold.

    The base is indexed in blocks; each position of the target is looked up, and a hit is extended both ways.
    One candidate a block, not a chain of them: bytes are compared only where a copy then covers them, which
    is what bounds repetitive input. Copies begin and end between characters, so that a delta to a UTF-8
    text is UTF-8 itself and fits into a JSON string.
    """
    out = [_number(len(target)) + b"\n"]
    index: dict[bytes, int] = {}
    for offset in range(0, len(base) - BLOCK + 1, BLOCK):
        index.setdefault(base[offset : offset + BLOCK], offset)
    at = done = 0  # everything of the target before `done` is written
    shift = 0  # base offset minus target offset of the last copy
    missed = 0  # lookups since then
    last = len(target) - BLOCK
    while at <= last:
        block = target[at : at + BLOCK]
        source = index.get(block)
        if source is None:
            # Where nothing matched for long, look less often: only in long new text short copies go unseen.
            # Steps are odd, so that they meet every alignment of the base's blocks.
            missed += 1
            at += 1 + (missed >> 8) * 2
            continue
        if at + shift >= 0 and base[at + shift : at + shift + BLOCK] == block:
            source = at + shift  # of equal blocks the one that keeps its place goes on longest
        shift = source - at
        start = at - _common_suffix(base, source, target, at, at - done)
        end = at + BLOCK + _common_prefix(base, source + BLOCK, target, at + BLOCK)
        start, end = _whole_characters(target, start, end)
        if start > done:
            out.append(b"%b:%b" % (_number(start - done), target[done:start]))
        out.append(b"%b@%b," % (_number(end - start), _number(start + shift)))
        at = done = end
        missed = 0
    if done < len(target):
        out.append(b"%b:%b" % (_number(len(target) - done), target[done:]))
    out.append(_number(_checksum(target)) + b";")
    return b"".join(out)


def patch(base: bytes, target: bytes) -> bytes | None:
    """The delta, or None when it is not smaller than `target` and sending that in full is better."""
    delta = create(base, target)
    return delta if len(delta) < len(target) else None


def apply(base: bytes, delta: bytes, *, max_size: int = MAX_TARGET_SIZE) -> bytes:
    """The target that `delta` makes of `base`; DeltaError when there is none of at most `max_size` bytes."""
    size, at = _read_number(delta, 0)
    if delta[at : at + 1] != b"\n":
        raise DeltaError("the size is not ended by a newline")
    if size > max_size:
        raise DeltaError("the target is larger than allowed")
    at += 1
    out = bytearray()
    while True:
        count, at = _read_number(delta, at)
        command = delta[at : at + 1]
        at += 1
        if command == b";":
            if len(out) != size or _checksum(bytes(out)) != count:
                raise DeltaError("the delta was made against another base")
            if at != len(delta):
                raise DeltaError("bytes follow the checksum")
            return bytes(out)
        if command == b"@":
            offset, at = _read_number(delta, at)
            if delta[at : at + 1] != b",":
                raise DeltaError("a copy is not ended by a comma")
            at += 1
            piece = base[offset : offset + count]
        elif command == b":":
            piece = delta[at : at + count]
            at += count
        else:
            raise DeltaError("unknown command")
        if len(piece) != count:
            raise DeltaError("a command reaches beyond its source")
        if len(out) + count > size:
            raise DeltaError("the target is larger than announced")
        out += piece


def _common_prefix(a: bytes, i: int, b: bytes, j: int) -> int:
    """Length of the common prefix of a[i:] and b[j:], compared in doubling, then halving steps."""
    limit = min(len(a) - i, len(b) - j)
    if limit == 0 or a[i] != b[j]:
        return 0
    same, step = 1, 32
    while same < limit and step:
        step = min(step, limit - same)
        if a[i + same : i + same + step] == b[j + same : j + same + step]:
            same += step
            step *= 2
        else:
            limit = same + step - 1
            step //= 2
    return same


def _common_suffix(a: bytes, i: int, b: bytes, j: int, limit: int) -> int:
    """Length of the common suffix of a[:i] and b[:j], at most `limit`. Byte by byte: seldom above 15."""
    same = 0
    limit = min(limit, i)
    while same < limit and a[i - same - 1] == b[j - same - 1]:
        same += 1
    return same


def _whole_characters(text: bytes, start: int, end: int) -> tuple[int, int]:
    # A character has at most three continuation bytes; where there are more the bytes are no text and any
    # cut will do. Looking no further keeps a target made of such bytes linear.
    first, final = start + 3, end - 3
    while start < first and text[start] & 0xC0 == 0x80:
        start += 1
    while final < end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return start, end


def _number(value: int) -> bytes:
    if value < 64:
        return _DIGITS[value : value + 1]
    return _number(value >> 6) + _DIGITS[value & 63 : (value & 63) + 1]


def _read_number(delta: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and the position after it."""
    match = _NUMBER.match(delta, at)
    if match is None:
        raise DeltaError("a number is missing")
    value = 0
    for digit in match[0]:
        value = value << 6 | _VALUES[digit]
    return value, match.end()


def _checksum(target: bytes) -> int:
    """The sum of big-endian 32-bit words, zero padded, mod 2^32."""
    padded = target + bytes(-len(target) % 4)
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 4}I", padded)
    return sum(words) & 0xFFFFFFFF
