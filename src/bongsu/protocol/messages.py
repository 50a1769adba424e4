"""What travels: commands, replies, pushes and publications, the same for every codec.

Names and numeric ranges are the protocol's. A field that the wire leaves out has its zero value here.
Payloads (`data`, `conn_info`, `chan_info`) stay bytes from the publisher to the subscriber. Fields of
features we do not have (map subscriptions, shared poll, dictionary compression) are not here: codecs skip
them, except `type`, which must be seen to be refused.

Source: the Centrifuge client protocol, §3 "Command and Reply", §7 "Pushes", §10 "Tags filter".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from bongsu.protocol.errors import Disconnect, Error, Unsubscribe

# A payload inside a request. msgspec must be told to slice it out unparsed; the codec then replaces the
# slice, which would keep the whole frame alive, by bytes of its own before anybody sees the request.
if TYPE_CHECKING:
    Document = bytes
else:
    Document = msgspec.Raw

MAX_UINT64 = 2**64 - 1

UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Meta(ge=0)]  # msgspec knows no bound above int64; codecs check the upper one
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is on the other end: `user` is "" for an anonymous one, `trusted` marks the API key's holder.

    `expire_at` is the Unix time in seconds at which the connection ends; None = never.
    """

    user: str = ""
    trusted: bool = False
    expire_at: float | None = None


class ClientInfo(msgspec.Struct, frozen=True, gc=False):
    """One connection as others see it: in presence, join, leave, and beside what it published.

    `conn_info` and `chan_info` are JSON documents, or any bytes where only Protobuf clients listen.
    """

    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""


class StreamPosition(msgspec.Struct, frozen=True, gc=False):
    """A place in a channel's stream: `offset` counts publications within one `epoch`, from 1."""

    offset: UInt64 = 0
    epoch: str = ""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One message in a channel.

    `data` is one JSON document without raw newlines, kept byte-exact from publisher to subscriber; with
    `binary` it is any bytes, and JSON subscribers cannot get it (3506). `offset` is 0 outside a stream.
    `plain` marks a text that a plain client (`/ws`) sent: `data` is then a JSON string, and other plain
    clients are shown it through the template. `plain`, `binary` and `patchable` never travel to clients.
    """

    data: bytes
    plain: bool = False
    offset: int = 0
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    delta: bool = False  # `data` is a patch against the previous publication
    binary: bool = False
    epoch: str = ""  # sent only beside offset 1: a client that knew no epoch learns it
    channel: str = ""  # only where it differs from the push's channel
    time: int = 0  # Unix milliseconds
    patchable: bool = False  # its publisher allows subscribers with delta to be sent a patch


class FilterNode(msgspec.Struct, frozen=True):
    """A tags filter: a comparison when `op` is empty, else `and`, `or` or `not` over `nodes`. Hashable."""

    op: str = ""
    key: str = ""
    cmp: str = ""
    val: str = ""
    vals: tuple[str, ...] = ()
    nodes: tuple[FilterNode, ...] = ()


# ---- commands ------------------------------------------------------------------------------------------


class SubscribeRequest(msgspec.Struct):
    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: UInt64 = 0
    data: Document = b""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: FilterNode | None = None
    flag: Int64 = 0
    type: Int32 = 0

    @property
    def reject_unrecovered(self) -> bool:
        """Answer error 112 instead of subscribing when the position cannot be recovered."""
        return bool(self.flag & 2)


class ConnectRequest(msgspec.Struct):
    token: str = ""
    data: Document = b""
    subs: dict[str, SubscribeRequest] = {}
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}


class UnsubscribeRequest(msgspec.Struct):
    channel: str = ""


class PublishRequest(msgspec.Struct):
    channel: str = ""
    data: Document = b""
    type: Int32 = 0


class PresenceRequest(msgspec.Struct):
    channel: str = ""


class PresenceStatsRequest(msgspec.Struct):
    channel: str = ""


class HistoryRequest(msgspec.Struct):
    channel: str = ""
    limit: Int32 = 0
    since: StreamPosition | None = None
    reverse: bool = False


class RPCRequest(msgspec.Struct):
    data: Document = b""
    method: str = ""


class SendRequest(msgspec.Struct):
    data: Document = b""


class RefreshRequest(msgspec.Struct):
    token: str = ""


class SubRefreshRequest(msgspec.Struct):
    channel: str = ""
    token: str = ""
    type: Int32 = 0


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | RPCRequest
    | SendRequest
    | RefreshRequest
    | SubRefreshRequest
)

# The order is the wire's: of several requests in one command the first one counts.
REQUESTS: Mapping[str, type[Request]] = {
    "connect": ConnectRequest,
    "subscribe": SubscribeRequest,
    "unsubscribe": UnsubscribeRequest,
    "publish": PublishRequest,
    "presence": PresenceRequest,
    "presence_stats": PresenceStatsRequest,
    "history": HistoryRequest,
    "rpc": RPCRequest,
    "send": SendRequest,
    "refresh": RefreshRequest,
    "sub_refresh": SubRefreshRequest,
}


class Command(msgspec.Struct, frozen=True):
    """What a client says. Without `request` it is a pong, or nothing that we know; the session decides."""

    id: int = 0
    request: Request | None = None


class EmulationRequest(msgspec.Struct, frozen=True):
    """A frame of commands for a connection that lives in a response of replica `node`."""

    node: str
    session: str
    data: bytes


# `always_sent` names what JSON sends even when it is zero, as `user` and `client` of a ClientInfo are too:
# SDKs read these without looking whether they are there. Every other zero value is left out.

# ---- results -------------------------------------------------------------------------------------------


class SubscribeResult(msgspec.Struct, kw_only=True):
    """`ttl` in seconds. `publications` are ascending by offset."""

    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: Sequence[Publication] = ()
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: bytes = b""
    was_recovering: bool = False
    delta: bool = False


class ConnectResult(msgspec.Struct, kw_only=True):
    """Also the body of the push `connect`. `ttl` and `ping` in seconds, `time` in Unix milliseconds."""

    client: str
    version: str
    expires: bool = False
    ttl: int = 0
    data: bytes = b""
    subs: dict[str, SubscribeResult] = {}
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    time: int = 0


class UnsubscribeResult(msgspec.Struct):
    pass


class PublishResult(msgspec.Struct):
    pass


class PresenceResult(msgspec.Struct):
    """`presence` maps client ids to their infos."""

    always_sent: ClassVar = frozenset({"presence"})

    presence: dict[str, ClientInfo] = {}


class PresenceStatsResult(msgspec.Struct):
    always_sent: ClassVar = frozenset({"num_clients", "num_users"})

    num_clients: int = 0
    num_users: int = 0


class HistoryResult(msgspec.Struct):
    """`epoch` and `offset` are the stream's top, whatever `publications` holds."""

    always_sent: ClassVar = frozenset({"publications", "epoch", "offset"})

    publications: Sequence[Publication] = ()
    epoch: str = ""
    offset: int = 0


class RPCResult(msgspec.Struct):
    data: bytes = b""


class RefreshResult(msgspec.Struct, kw_only=True):
    """`ttl` in seconds."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(msgspec.Struct, kw_only=True):
    """`ttl` in seconds."""

    expires: bool = False
    ttl: int = 0


Result = (
    ConnectResult
    | SubscribeResult
    | UnsubscribeResult
    | PublishResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | RPCResult
    | RefreshResult
    | SubRefreshResult
)

RESULT_NAMES: Mapping[type[Result | Error], str] = {
    Error: "error",
    ConnectResult: "connect",
    SubscribeResult: "subscribe",
    UnsubscribeResult: "unsubscribe",
    PublishResult: "publish",
    PresenceResult: "presence",
    PresenceStatsResult: "presence_stats",
    HistoryResult: "history",
    RPCResult: "rpc",
    RefreshResult: "refresh",
    SubRefreshResult: "sub_refresh",
}


class Reply(msgspec.Struct, frozen=True):
    """The answer to the command with the same `id`."""

    id: int
    result: Result | Error


# ---- pushes --------------------------------------------------------------------------------------------


class Join(msgspec.Struct, frozen=True):
    info: ClientInfo


class Leave(msgspec.Struct, frozen=True):
    info: ClientInfo


class Message(msgspec.Struct, frozen=True):
    """From the server to one connection, in no channel."""

    data: bytes


class Subscribe(msgspec.Struct, frozen=True, kw_only=True):
    """A server-side subscription begins. Client-side ones are told by the reply."""

    recoverable: bool = False
    epoch: str = ""
    offset: int = 0
    positioned: bool = False
    data: bytes = b""


class Refresh(msgspec.Struct, frozen=True, kw_only=True):
    """The connection's expiry was changed by the server. `ttl` in seconds."""

    expires: bool = False
    ttl: int = 0


PushBody = (
    Publication | Join | Leave | Unsubscribe | Message | Subscribe | ConnectResult | Disconnect | Refresh
)

PUSH_NAMES: Mapping[type[PushBody], str] = {
    Publication: "pub",
    Join: "join",
    Leave: "leave",
    Unsubscribe: "unsubscribe",
    Message: "message",
    Subscribe: "subscribe",
    ConnectResult: "connect",
    Disconnect: "disconnect",
    Refresh: "refresh",
}


class Push(msgspec.Struct, frozen=True):
    """Sent without being asked. `channel` is "" where the body concerns the connection itself."""

    channel: str
    body: PushBody
