"""What replicas write to each other: one versioned envelope per message. Pure.

Layout, numbers big-endian:

    version  1 byte
    kind     1 byte   publication, join, leave or control
    flags    1 byte   of a publication, else 0
    offset   8 bytes  with POSITIONED: place in the channel's stream, from 1
    epoch    8 bytes  with POSITIONED: ASCII
    extras   4 bytes of length, then MessagePack, with EXTRAS: [info, tags, time]
    data     the rest

A replica that meets a version, kind or flag it does not know counts it and skips it, so that a rolling
upgrade can run both. The position is in a fixed place, so that a script inside the broker can put it there
without understanding the rest (`halves`).
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

import msgspec

from bongsu.protocol.messages import ClientInfo, Join, Leave, Publication

VERSION: Final = 1

EPOCH_SIZE: Final = 8
"""Bytes of an epoch, all ASCII."""

_PUBLICATION: Final = 1
_CONTROL: Final = 2
_JOIN: Final = 3
_LEAVE: Final = 4

_PLAIN: Final = 0x01
_BINARY: Final = 0x02
_POSITIONED: Final = 0x04
_EXTRAS: Final = 0x08
_PATCHABLE: Final = 0x10

_HEADS: Final = tuple(bytes((VERSION, _PUBLICATION, flags)) for flags in range(32))
_KNOWN_HEADS: Final = frozenset(_HEADS)
_BARE_HEAD: Final = _HEADS[0]
_CONTROL_HEAD: Final = bytes((VERSION, _CONTROL, 0))
_JOIN_HEAD: Final = bytes((VERSION, _JOIN, 0))
_LEAVE_HEAD: Final = bytes((VERSION, _LEAVE, 0))

_HEAD_SIZE: Final = 3
_POSITION: Final = Struct(f">Q{EPOCH_SIZE}s")
_LENGTH: Final = Struct(">I")

_Info = tuple[str, str, bytes, bytes]  # ClientInfo's fields, in order: names would double its size


class _Extras(msgspec.Struct, array_like=True, frozen=True, gc=False):
    info: _Info | None
    tags: dict[str, str] | None
    time: int


_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_extras = msgspec.msgpack.Decoder(_Extras).decode
_decode_info = msgspec.msgpack.Decoder(_Info).decode


class UnknownEnvelope(ValueError):
    """A payload of another version or kind, or none of ours at all."""


class Control(NamedTuple):
    """A message between the replicas themselves; `body` is JSON."""

    body: bytes


Message = Publication | Join | Leave | Control


def encode(message: Message) -> bytes:
    """The payload for the broker. A publication's `delta` and `channel` belong to one subscriber and stay
    here.

    Raises ValueError for a publication with an offset whose epoch is not `EPOCH_SIZE` ASCII characters.
    """
    if type(message) is Publication:
        if not message.offset:
            head, body = _halves(message, 0)
            return head + body
        epoch = message.epoch.encode("ascii")
        if len(epoch) != EPOCH_SIZE:
            raise ValueError(f"an epoch has {EPOCH_SIZE} characters, not {len(epoch)}")
        head, body = _halves(message, _POSITIONED)
        return b"".join((head, _POSITION.pack(message.offset, epoch), body))
    if type(message) is Control:
        return _CONTROL_HEAD + message.body
    if type(message) is Join:
        return _JOIN_HEAD + _encode_msgpack(msgspec.structs.astuple(message.info))
    assert type(message) is Leave
    return _LEAVE_HEAD + _encode_msgpack(msgspec.structs.astuple(message.info))


def halves(publication: Publication) -> tuple[bytes, bytes]:
    """What goes before and after the position that the broker will give to `publication`."""
    return _halves(publication, _POSITIONED)


def _halves(publication: Publication, flags: int) -> tuple[bytes, bytes]:
    if publication.plain:
        flags |= _PLAIN
    if publication.binary:
        flags |= _BINARY
    if publication.patchable:
        flags |= _PATCHABLE
    info = publication.info
    if info is None and publication.tags is None and not publication.time:
        return _HEADS[flags], publication.data
    fields = None if info is None else (info.user, info.client, info.conn_info, info.chan_info)
    extras = _encode_msgpack(_Extras(fields, publication.tags, publication.time))
    return _HEADS[flags | _EXTRAS], b"".join((_LENGTH.pack(len(extras)), extras, publication.data))


def decode(payload: bytes) -> Message:
    """The message in `payload`. Raises `UnknownEnvelope`."""
    head = payload[:_HEAD_SIZE]
    if head == _BARE_HEAD:
        return Publication(payload[_HEAD_SIZE:])
    if head in _KNOWN_HEADS:
        return _decode_publication(payload)
    if head == _CONTROL_HEAD:
        return Control(payload[_HEAD_SIZE:])
    if head == _JOIN_HEAD:
        return Join(_client_info(payload))
    if head == _LEAVE_HEAD:
        return Leave(_client_info(payload))
    raise UnknownEnvelope(f"version {head[0] if head else None}, {len(payload)} bytes")


def _decode_publication(payload: bytes) -> Publication:
    flags = payload[2]
    start = _HEAD_SIZE
    offset, epoch = 0, ""
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    time = 0
    try:
        if flags & _POSITIONED:
            offset, raw_epoch = _POSITION.unpack_from(payload, start)
            epoch = raw_epoch.decode("ascii")
            start += _POSITION.size
            if not offset:
                raise UnknownEnvelope("a position without an offset")
        if flags & _EXTRAS:
            (length,) = _LENGTH.unpack_from(payload, start)
            start += _LENGTH.size
            if start + length > len(payload):
                raise UnknownEnvelope(f"extras of {length} bytes in {len(payload)}")
            extras = _decode_extras(payload[start : start + length])
            start += length
            info = None if extras.info is None else ClientInfo(*extras.info)
            tags, time = extras.tags, extras.time
    except (StructError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise UnknownEnvelope(f"flags {flags:#x}, {len(payload)} bytes: {error}") from error
    return Publication(
        payload[start:],
        plain=flags & _PLAIN != 0,
        offset=offset,
        info=info,
        tags=tags,
        binary=flags & _BINARY != 0,
        patchable=flags & _PATCHABLE != 0,
        epoch=epoch,
        time=time,
    )


def _client_info(payload: bytes) -> ClientInfo:
    try:
        return ClientInfo(*_decode_info(payload[_HEAD_SIZE:]))
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise UnknownEnvelope(f"a client's info in {len(payload)} bytes: {error}") from error
