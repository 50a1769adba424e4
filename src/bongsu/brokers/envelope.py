"""What replicas write to each other: one versioned envelope per message. Pure.

Layout: version (1 byte), kind (1 byte), flags (1 byte), then the body. A replica that meets a version or
kind it does not know counts it and skips it, so that a rolling upgrade can run both.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bongsu.protocol.messages import Publication

VERSION: Final = 1

_PUBLICATION: Final = 1
_CONTROL: Final = 2

_FLAG_PLAIN: Final = 0x01

_PUBLICATION_HEAD: Final = bytes((VERSION, _PUBLICATION, 0))
_PLAIN_HEAD: Final = bytes((VERSION, _PUBLICATION, _FLAG_PLAIN))
_CONTROL_HEAD: Final = bytes((VERSION, _CONTROL, 0))


class UnknownEnvelope(ValueError):
    """A payload of another version or kind, or none of ours at all."""


class Control(NamedTuple):
    """A message between the replicas themselves; `body` is JSON."""

    body: bytes


def encode(message: Publication | Control) -> bytes:
    """The payload for the broker."""
    if isinstance(message, Control):
        return _CONTROL_HEAD + message.body
    return (_PLAIN_HEAD if message.plain else _PUBLICATION_HEAD) + message.data


def decode(payload: bytes) -> Publication | Control:
    """The message in `payload`. Raises `UnknownEnvelope`."""
    head = payload[:3]
    if head == _PUBLICATION_HEAD:
        return Publication(payload[3:])
    if head == _PLAIN_HEAD:
        return Publication(payload[3:], plain=True)
    if head == _CONTROL_HEAD:
        return Control(payload[3:])
    raise UnknownEnvelope(f"version {head[0] if head else None}, {len(payload)} bytes")
