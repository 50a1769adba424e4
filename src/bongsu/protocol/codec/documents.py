"""JSON documents from outside: what is let in, and how.

A document is UTF-8 (else one publisher could make every browser of a channel drop its connection), well
formed, and nests no deeper than `MAX_DEPTH`. What is passed on holds no raw newline, which would end a
document, and no carriage return, which would end an SSE field. Half a surrogate pair, which a browser sends
that cut a text in the middle of an emoji, becomes U+FFFD, as in the browser's own encoder: refused, it would
cost that client its connection; passed on, it would break whoever decodes strictly. Apart from that a
document is passed on byte-exact.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

MAX_DEPTH: Final = 128
"""Arrays and objects in one another. Far above real payloads, far below the depth at which anybody's
recursive parser, ours or a subscriber's, runs out of stack."""

T = TypeVar("T")

_raw_decoder: Final = msgspec.json.Decoder(Raw)
_object_decoder: Final = msgspec.json.Decoder(dict[str, Raw])
_array_decoder: Final = msgspec.json.Decoder(list[Raw])


class DocumentError(ValueError):
    """Not JSON, not of the expected types, or nested too deep. The message holds nothing of the document."""


def canonical(document: bytes) -> bytes:
    """`document` as it may be embedded in a frame; DocumentError when it is not one JSON document.

    For payloads that come from elsewhere than a frame: a token, a Protobuf client, an application.
    """
    try:
        check_utf8(document)
        _check_depth(document)
        return one_line(bytes(_parsed(_raw_decoder, document)))
    except (msgspec.DecodeError, RecursionError) as error:
        raise DocumentError("not a JSON document") from error


def decode(decoder: msgspec.json.Decoder[T], document: bytes) -> T:
    """The value that `decoder` makes of `document`, which is UTF-8; DocumentError when it cannot.

    The wire lets null stand for any field's zero value, where the types do not: a document that fails is
    looked at a second time without its nulls, which is rare enough to pay twice.
    """
    _check_depth(document)
    try:
        try:
            return _parsed(decoder, document)
        except msgspec.ValidationError:
            return decoder.decode(msgspec.json.encode(_without_nulls(Raw(_mended(document)))))
    except (msgspec.DecodeError, RecursionError) as error:
        raise DocumentError("not of the expected form") from error


def check_utf8(octets: bytes) -> None:
    """DocumentError when `octets` are not UTF-8."""
    if octets.isascii():  # nearly all are, and this is much faster
        return
    try:
        octets.decode()
    except UnicodeDecodeError as error:
        raise DocumentError("not UTF-8") from error


def one_line(document: bytes) -> bytes:
    """`document`, which is JSON, without raw newlines and carriage returns."""
    # Inside strings both are escaped, so what is raw is whitespace between tokens.
    if b"\n" in document or b"\r" in document:
        return document.translate(None, b"\r\n")
    return document


def _parsed(decoder: msgspec.json.Decoder[T], document: bytes) -> T:
    try:
        return decoder.decode(document)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = _mended(document)
        if mended == document:
            raise
        return decoder.decode(mended)


# Every escape, so that none is looked at from its middle; the groups are whole pairs and halves.
_ESCAPE: Final = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)


def _mended(document: bytes) -> bytes:
    """`document` with U+FFFD for each escaped half of a surrogate pair."""
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[2] else escape[0], document)


def _without_nulls(value: Raw) -> Any:
    """`value` without members that are null, except payloads, where null is a value."""
    document = bytes(value)
    if document.startswith(b"{"):
        members = _object_decoder.decode(document).items()
        return {
            key: member if key == "data" else _without_nulls(member)
            for key, member in members
            if key == "data" or bytes(member) != b"null"
        }
    if document.startswith(b"["):
        return [_without_nulls(element) for element in _array_decoder.decode(document)]
    return value


_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _check_depth(document: bytes) -> None:
    if document.count(b"[") + document.count(b"{") <= MAX_DEPTH:
        return  # nearly every document; the rest pays for a walk
    # Brackets inside strings open nothing. Escapes go first, so that \" does not end its string.
    outside = b"".join(document.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_BRACKETS, _NOT_BRACKETS)
    depths = accumulate(1 if bracket == 0x5B else -1 for bracket in brackets)
    if any(depth > MAX_DEPTH for depth in depths):
        raise DocumentError("nested too deep")
