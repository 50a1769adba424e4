"""The opening handshake of a WebSocket (RFC 6455 §4.2), from a request that is parsed already. Pure."""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem

MAX_HEADERS: Final = 128

Fields = list[tuple[bytes, bytes]]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION: Final = b"13"

# A target below the root, fields in one line each: what clients and proxies send. Nothing here can backtrack.
_HEAD: Final = re.compile(
    rb"GET (/(?!/)[!-\"$->@-~]*+)(?:\?([!-\"$-~]*+))? HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)*+)\r\n"
)
_FIELD: Final = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_MAX_PLAIN: Final = 16 * 1024

# Of these a second one would leave it open which counts.
_ONCE: Final = frozenset(
    {b"host", b"origin", b"sec-websocket-key", b"sec-websocket-version", b"content-length"}
)

_DEFLATE: Final = "permessage-deflate"
_DEFLATE_ACCEPTED: Final = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"


class Head(NamedTuple):
    """The request of a handshake: its target, and its headers by lower-case name."""

    path: bytes
    query: bytes
    headers: Fields


class Handshake(NamedTuple):
    """What a client asked for. `key` is the answer to its key."""

    key: bytes
    subprotocols: list[str]
    deflate: bool


def plain_head(segment: bytes) -> tuple[Head, int] | None:
    """The head of a handshake with which `segment` begins, and its size.

    None: there is none, or one that is not as plain as clients and proxies send it, and an HTTP parser has to
    say what it is. Whatever is read here, that parser reads the same.
    """
    head = _HEAD.match(segment)
    if head is None or head.end() > _MAX_PLAIN:
        return None
    path, query, fields = head.groups(b"")
    headers = [(name.lower(), value) for name, value in _FIELD.findall(fields)]
    found = dict(headers)
    is_plain = (
        len(found) == len(headers)
        and b"host" in found
        and found.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in map(bytes.strip, found.get(b"connection", b"").lower().split(b","))
        and b"content-length" not in found
        and b"transfer-encoding" not in found
    )
    return (Head(path, query, headers), head.end()) if is_plain else None


def read(method: str, headers: Fields, *, deflate: bool) -> Handshake:
    """`headers` by lower-case name; `deflate`: whether compression may be agreed on. Raises `Problem`."""
    if method != "GET":
        raise Problem(problems.METHOD_NOT_ALLOWED, "A WebSocket begins with GET (RFC 6455 §4.1).")
    if len(headers) > MAX_HEADERS:
        raise _malformed(f"it has more than {MAX_HEADERS} headers")
    found: dict[bytes, bytes] = {}
    subprotocols: list[str] = []
    deflates = False
    for name, value in headers:
        if name in found and name in _ONCE:
            raise _malformed(f"it has several headers {name.decode('latin-1')}")
        found[name] = value
        if name == b"sec-websocket-protocol":
            # centrifuge-python sends a blank one, which RFC 6455 has no form for: it is none.
            tokens = (token.strip() for token in value.decode("latin-1").split(","))
            subprotocols += [token for token in tokens if token]
        elif name == b"sec-websocket-extensions" and deflate:
            deflates = deflates or any(map(_may_deflate, value.decode("latin-1").split(",")))
    if b"transfer-encoding" in found or found.get(b"content-length", b"0") != b"0":
        raise _malformed("it has a body")
    version = found.get(b"sec-websocket-version")
    if version is None:
        raise _malformed("it has no Sec-WebSocket-Version")
    if version != _VERSION:
        raise _malformed("its Sec-WebSocket-Version is not 13")
    return Handshake(_accept(found.get(b"sec-websocket-key")), subprotocols, deflates)


def response(handshake: Handshake, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head that accepts."""
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + handshake.key + b"\r\n"
    ]
    if handshake.deflate:
        lines.append(b"Sec-WebSocket-Extensions: " + _DEFLATE_ACCEPTED + b"\r\n")
    if subprotocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("latin-1") + b"\r\n")
    lines += [b"%b: %b\r\n" % header for header in headers]
    return b"".join([*lines, b"\r\n"])


def _accept(key: bytes | None) -> bytes:
    if key is None:
        raise _malformed("it has no Sec-WebSocket-Key")
    try:
        size = len(binascii.a2b_base64(key, strict_mode=True))
    except binascii.Error:
        size = 0
    if size != 16:
        raise _malformed("its Sec-WebSocket-Key is not 16 bytes in base64")
    return binascii.b2a_base64(hashlib.sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def _may_deflate(offer: str) -> bool:
    """Whether we can serve this offer (RFC 7692 §7.1).

    What is sent is compressed once for everybody, so a window of another size cannot be had.
    """
    name, *parameters = (part.strip() for part in offer.split(";"))
    if name != _DEFLATE:
        return False
    names = []
    for parameter in parameters:
        key, _, value = (part.strip().strip('"') for part in parameter.partition("="))
        names.append(key)
        fine = {
            "server_no_context_takeover": value == "",
            "client_no_context_takeover": value == "",
            "server_max_window_bits": value == "15",
            "client_max_window_bits": value in _WINDOWS,
        }
        if not fine.get(key, False):
            return False
    return len(set(names)) == len(names)


_WINDOWS: Final = frozenset({"", *map(str, range(8, 16))})


def _malformed(what: str) -> Problem:
    return Problem(problems.BAD_REQUEST, f"The WebSocket handshake cannot be read: {what}.")
