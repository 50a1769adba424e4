"""What replicas ask of each other: the messages of the control channels, and who does what they say.

Each message is a JSON frame in an envelope: version, sender, targets, body. A replica that meets a
version or a body it does not know counts it and skips it, so that a rolling upgrade can run both. Beats
(`node/beacon.py`) travel on the same channel and have no frame.

Source: the Centrifuge client protocol, §15.3, §18.5, §18.6 and §20 "Nodes and control plane".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
from msgspec import Raw, Struct

from bongsu.protocol.api import ChannelOverride, NodeInfo
from bongsu.protocol.errors import FORCE_DISCONNECT, Error
from bongsu.protocol.messages import StreamPosition

CONTROL: Final = "\x00control"
"""The channel of all replicas. No client can name it: channel names are printable."""

VERSION: Final = 1


def control_channel(replica: str) -> str:
    """What concerns one replica alone: the others need not read it."""
    return f"{CONTROL}:{replica}"


# ---- what is asked -------------------------------------------------------------------------------------


class Body(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What a frame carries."""


class Call(Body, frozen=True, kw_only=True):
    """Concerns the connections of `user` ("" = the anonymous ones), on every replica.

    A non-empty `client` (id) or `session` leaves only that one of them.
    """

    user: str
    client: str = ""
    session: str = ""


class Subscribe(Call, frozen=True, kw_only=True, tag="subscribe"):
    """Begin a server-side subscription. `expire_at` in Unix seconds, 0 = never; `info` is its chan_info."""

    channel: str
    info: bytes = b""
    data: bytes = b""
    expire_at: int = 0
    recover_since: StreamPosition | None = None
    override: ChannelOverride | None = None


class Unsubscribe(Call, frozen=True, kw_only=True, tag="unsubscribe"):
    """End the subscription to `channel`, or with "" all of them (2000)."""

    channel: str = ""


class Disconnect(Call, frozen=True, kw_only=True, tag="disconnect"):
    """Close them with `code` and `reason`, except the client ids in `whitelist`."""

    whitelist: list[str] = []
    code: int = FORCE_DISCONNECT.code
    reason: str = FORCE_DISCONNECT.reason


class Refresh(Call, frozen=True, kw_only=True, tag="refresh"):
    """`expired` closes them (3005); else they end at `expire_at` (Unix seconds), or never with 0.

    A non-empty `info` replaces their conn_info.
    """

    expired: bool = False
    expire_at: int = 0
    info: bytes = b""


class Forget(Body, frozen=True, kw_only=True, tag="forget"):
    """The history of `channel` was removed: nobody may be given what was in it."""

    channel: str


class AskChannels(Body, frozen=True, kw_only=True, tag="channels?"):
    """Up to `limit` channels with subscribers, by name, after the name `cursor`, that match `pattern`."""

    id: str
    pattern: str = ""
    cursor: str = ""
    limit: int


class AskInfo(Body, frozen=True, kw_only=True, tag="info?"):
    id: str


class Emulate(Body, frozen=True, kw_only=True, tag="emulate?"):
    """A frame of commands for the connection that holds `session`."""

    id: str
    session: str
    data: bytes


class LetGo(Body, frozen=True, kw_only=True, tag="let_go?"):
    """Make safe what has arrived of an upload, and let go of it if that leaves it at `offset` (in bytes)."""

    id: str
    upload: str
    offset: int | None = None


# ---- what is answered ----------------------------------------------------------------------------------


class Channels(Body, frozen=True, kw_only=True, tag="channels"):
    """Names and numbers of subscribers. `more`: there are others after the last name."""

    id: str
    channels: dict[str, int]
    more: bool = False


class Info(Body, frozen=True, kw_only=True, tag="info"):
    id: str
    info: NodeInfo


class Emulated(Body, frozen=True, kw_only=True, tag="emulated"):
    """`known`: there is such a session, and it has taken the frame."""

    id: str
    known: bool


class LetGone(Body, frozen=True, kw_only=True, tag="let_go"):
    """It was done, or the upload is not held here."""

    id: str


Question = AskChannels | AskInfo | Emulate | LetGo

Answer = Channels | Info | Emulated | LetGone

Message = Subscribe | Unsubscribe | Disconnect | Refresh | Forget | Question | Answer


# ---- who does it ---------------------------------------------------------------------------------------


class ChannelList(Protocol):
    """The channels of one replica."""

    def channel_names(self) -> list[str]:
        """The channels with subscribers here, in any order: a copy, since it is gone through in slices."""
        ...

    def num_clients(self, channel: str) -> int:
        """Subscribers of `channel` here; 0 when they have left meanwhile."""
        ...


class ControlTarget(ChannelList, Protocol):
    """What a replica does with its own connections. Nothing here blocks or raises.

    Calls that reach one connection take effect in the order of the calls: what has to be awaited takes its
    place in the connection's own order of work before the method returns.
    """

    def subscribe(self, call: Subscribe) -> asyncio.Future[Error | None]:
        """Done when every connection meant is subscribed, or none was; an error when one could not be."""
        ...

    def unsubscribe(self, call: Unsubscribe) -> None: ...

    def disconnect(self, call: Disconnect) -> None: ...

    def refresh(self, call: Refresh) -> None: ...

    def forget(self, channel: str) -> None: ...

    def info(self) -> NodeInfo: ...

    def emulate(self, session: str, data: bytes) -> bool:
        """Give a frame to the connection that holds `session`, after those before it; False: no such one."""
        ...


# ---- how it travels ------------------------------------------------------------------------------------


class Frame(Struct, frozen=True):
    """`sender` and `targets` are names of replicas; no targets means all. A beat has version 0."""

    v: int = 0
    sender: str = ""
    targets: list[str] = []
    body: Raw = Raw()


_decode_frame = msgspec.json.Decoder(Frame).decode
_decode_body: Callable[[Raw], Message] = msgspec.json.Decoder(Message).decode


def encode(message: Message, *, sender: str, targets: list[str]) -> bytes:
    """The body for `brokers.envelope.Control`."""
    return msgspec.json.encode(Frame(VERSION, sender, targets, Raw(msgspec.json.encode(message))))


def decode_frame(body: bytes) -> Frame:
    """The frame, its own body unread. Raises `msgspec.DecodeError`."""
    return _decode_frame(body)


def decode_message(frame: Frame) -> Message:
    """What `frame` carries. Raises `msgspec.DecodeError` for a version or a body not known here."""
    if frame.v != VERSION:
        raise msgspec.DecodeError(f"version {frame.v} of the control messages")
    return _decode_body(frame.body)
