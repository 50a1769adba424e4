"""Messages to bytes and back. One module an encoding, so that JSON alone does not load Protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from bongsu.protocol.messages import Command, EmulationRequest, Publication, Push, Reply

MAX_FRAME_SIZE: Final = 64 * 1024
"""Bytes of one incoming frame, unless a codec is made with another bound."""


class Codec(Protocol):
    """What the rest of the server knows of an encoding.

    The caller guarantees that channel names are valid and that publications keep the invariants of
    `Publication`. Every method is pure and raises nothing but `ProtocolError`: with 3501 when the peer's
    bytes cannot be understood, with 3506 when a payload cannot be expressed in this encoding.
    An encoded message is complete; `join` makes one frame of several, in order.
    """

    @property
    def name(self) -> str:
        """`json` or `protobuf`."""

    @property
    def ping(self) -> bytes:
        """The message that asks for a pong."""

    def decode(self, frame: bytes | str) -> list[Command]:
        """The commands of one frame, in order, at least one. A frame is understood as a whole or refused."""

    def decode_emulation(self, body: bytes) -> EmulationRequest:
        """The body of a request that brings a frame for an emulated connection."""

    def reply(self, reply: Reply) -> bytes:
        """One reply message."""

    def push(self, push: Push) -> bytes:
        """One push message. For publications on the hot path there is `publication`."""

    def push_prefix(self, channel: str) -> bytes:
        """What every publication push of `channel` begins with: opaque, made once, for `publication`."""

    def publication(self, prefix: bytes, publication: Publication) -> bytes:
        """The message `push(Push(channel, publication))`, from the channel's `push_prefix`."""

    def delta_form(self, publication: Publication, base: bytes | None) -> Publication:
        """`publication` as a subscriber with negotiated delta gets it.

        `base` is the data of the stream's previous publication, which the subscriber has; None for the
        first one. In full where a patch would not be smaller.
        """

    def join(self, messages: Iterable[bytes]) -> bytes:
        """One frame holding `messages`."""
