"""Requests and results of the server API, `POST /api/<method>`.

A request that is decoded is well formed: required fields are there, numbers in range, base64 decoded. What
depends on channels and connections is the caller's to check. Field names and zero-omission are the
protocol's, also for results, which `encode_answer` writes.

Source: the Centrifuge client protocol, §18 "HTTP server API".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Raw, Struct

from bongsu.protocol.codec import documents
from bongsu.protocol.codec.documents import DocumentError
from bongsu.protocol.codec.json import encode_object
from bongsu.protocol.errors import (
    API_BAD_REQUEST,
    API_NOT_FOUND,
    FORCE_DISCONNECT,
    ApiError,
    application_disconnect,
)
from bongsu.protocol.messages import (
    MAX_UINT64,
    Document,
    HistoryResult,
    Int32,
    Int64,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    RPCResult,
    StreamPosition,
    UInt32,
    UInt64,
)

MAX_BATCH: Final = 1000
"""Commands in one batch, and `MAX_BROADCAST` channels in one broadcast: a request's cost has an end."""

MAX_BROADCAST: Final = 10_000


class UnknownMethod(Exception):
    """There is no such method: HTTP 404."""


class MalformedRequest(Exception):
    """The body is not JSON of the method's form: HTTP 400. The message is for people."""


class Refused(Exception):
    """The method answers with `error`; `detail`, for people, says what was wrong with the request."""

    def __init__(self, error: ApiError, detail: str) -> None:
        super().__init__(f"{error.code} {error.message}: {detail}")
        self.error = error
        self.detail = detail


# ---- requests ------------------------------------------------------------------------------------------


class _Payload(Struct):
    """What is published. `b64data` wins over `data` and is decoded into it."""

    data: Document = b""
    b64data: str = ""
    skip_history: bool = False
    tags: dict[str, str] = {}
    idempotency_key: str = ""
    delta: bool = False
    version: UInt64 = 0
    version_epoch: str = ""

    def publication(self) -> Publication:
        """The publication to be, without a position; `binary` unless its data is JSON."""
        try:
            data = documents.canonical(self.data) if self.b64data else self.data
        except DocumentError:
            return Publication(self.data, tags=self.tags or None, binary=True)
        return Publication(data, tags=self.tags or None)


class PublishRequest(_Payload):
    channel: str = ""


class BroadcastRequest(_Payload):
    channels: list[str] = []


class OptionValue(Struct, frozen=True):
    value: bool = False


class ChannelOverride(Struct, frozen=True):
    """Options of the namespace that hold differently for one subscription; absent ones stay."""

    presence: OptionValue | None = None
    join_leave: OptionValue | None = None
    force_push_join_leave: OptionValue | None = None
    force_recovery: OptionValue | None = None
    force_positioning: OptionValue | None = None


class SubscribeRequest(Struct):
    """`expire_at` in Unix seconds, 0 = never. `b64info` and `b64data` are decoded into `info` and `data`."""

    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""
    info: Document = b""
    b64info: str = ""
    data: Document = b""
    b64data: str = ""
    expire_at: Int64 = 0
    recover_since: StreamPosition | None = None
    override: ChannelOverride | None = None


class UnsubscribeRequest(Struct):
    """An empty `channel` means all channels of the connections."""

    user: str = ""
    channel: str = ""
    client: str = ""
    session: str = ""


class DisconnectReason(Struct, frozen=True):
    """Without a `reason` it is that of a forced disconnect: SDKs need one."""

    code: UInt32 = 0
    reason: str = ""


class DisconnectRequest(Struct):
    """`whitelist` names client ids that stay."""

    user: str = ""
    client: str = ""
    session: str = ""
    whitelist: list[str] = []
    disconnect: DisconnectReason | None = None


class RefreshRequest(Struct):
    """`expire_at` in Unix seconds, 0 = the connection does not expire any more; `expired` ends it now."""

    user: str = ""
    client: str = ""
    session: str = ""
    expired: bool = False
    expire_at: Int64 = 0
    info: Document = b""


class PresenceRequest(Struct):
    channel: str = ""


class PresenceStatsRequest(Struct):
    channel: str = ""


class HistoryRequest(Struct):
    """`limit` 0 means the position only, a negative one everything."""

    channel: str = ""
    limit: Int32 = 0
    since: StreamPosition | None = None
    reverse: bool = False


class HistoryRemoveRequest(Struct):
    channel: str = ""


class ChannelsRequest(Struct):
    """`pattern` is a glob; "" means all."""

    pattern: str = ""


class InfoRequest(Struct):
    pass


class RPCRequest(Struct):
    method: str = ""
    params: Document = b""


class BatchRequest(Struct):
    """One command a dict of one member, method to request; `parallel` allows any order."""

    commands: list[dict[str, Raw]] = []
    parallel: bool = False


Request = (
    PublishRequest
    | BroadcastRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | DisconnectRequest
    | RefreshRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | HistoryRemoveRequest
    | ChannelsRequest
    | InfoRequest
    | RPCRequest
    | BatchRequest
)

METHODS: Final[Mapping[str, type[Request]]] = {
    "publish": PublishRequest,
    "broadcast": BroadcastRequest,
    "subscribe": SubscribeRequest,
    "unsubscribe": UnsubscribeRequest,
    "disconnect": DisconnectRequest,
    "refresh": RefreshRequest,
    "presence": PresenceRequest,
    "presence_stats": PresenceStatsRequest,
    "history": HistoryRequest,
    "history_remove": HistoryRemoveRequest,
    "channels": ChannelsRequest,
    "info": InfoRequest,
    "rpc": RPCRequest,
    "batch": BatchRequest,
}


# ---- results -------------------------------------------------------------------------------------------


class PublishResult(Struct):
    """The position of the publication; nothing where the channel has no history."""

    offset: int = 0
    epoch: str = ""


class BroadcastResult(Struct):
    """One result or error a channel, in the order of the request."""

    responses: Sequence[PublishResult | ApiError]


class EmptyResult(Struct):
    """Of subscribe, unsubscribe, disconnect, refresh, history_remove."""


class ChannelInfo(Struct, frozen=True):
    always_sent: ClassVar = frozenset({"num_clients"})

    num_clients: int = 0


class ChannelsResult(Struct):
    always_sent: ClassVar = frozenset({"channels"})

    channels: dict[str, ChannelInfo]
    missing: list[str] = []  # our own: replicas that did not answer


class NodeInfo(Struct, frozen=True):
    """One replica. `uptime` in seconds."""

    always_sent: ClassVar = frozenset({"num_clients", "num_users", "num_subs", "num_channels", "uptime"})

    uid: str
    name: str
    version: str
    num_clients: int = 0
    num_users: int = 0
    num_subs: int = 0
    num_channels: int = 0
    uptime: int = 0


class InfoResult(Struct):
    nodes: Sequence[NodeInfo]
    missing: list[str] = []  # our own: replicas that did not answer


Result = (
    PublishResult
    | BroadcastResult
    | EmptyResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | ChannelsResult
    | InfoResult
    | RPCResult
)

# ---- in and out ----------------------------------------------------------------------------------------

_DECODERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    method: msgspec.json.Decoder(request) for method, request in METHODS.items()
}


def decode(method: str, body: bytes) -> Request:
    """The request in `body`; an empty body is an empty request.

    Raises UnknownMethod, MalformedRequest (HTTP 400), or Refused with error 107.
    """
    decoder = _DECODERS.get(method)
    if decoder is None:
        raise UnknownMethod(method)
    try:
        documents.check_utf8(body)
        request: Request = documents.decode(decoder, body or b"{}")
    except DocumentError as error:
        raise MalformedRequest(str(error)) from error
    _finish(request)
    return request


def decode_batch(request: BatchRequest) -> list[tuple[str, Request | Refused]]:
    """The commands of a batch by their methods; one that names no method is refused under `batch`.

    Raises MalformedRequest, which spoils all of it.
    """
    return [_batched(command) for command in request.commands]


def _batched(command: dict[str, Raw]) -> tuple[str, Request | Refused]:
    if len(command) > 1:
        return "batch", Refused(API_BAD_REQUEST, "each command of a batch has one method")
    for method, body in command.items():
        if method in METHODS and method != "batch":
            try:
                return method, decode(method, bytes(body))
            except Refused as refused:
                return method, refused
    return "batch", Refused(API_NOT_FOUND, "the command names no method of a batch")


def encode_answer(answer: Result | ApiError) -> bytes:
    """The body of an answer: `{"result": ...}` or `{"error": ...}`. ProtocolError: a payload is not JSON."""
    return b"{%b}" % _member("result", answer)


def encode_batch(replies: Sequence[tuple[str, Result | ApiError]]) -> bytes:
    """The body of an answer to a batch: each result under its method."""
    return b'{"replies":[%b]}' % b",".join(b"{%b}" % _member(method, answer) for method, answer in replies)


def encode_error(error: ApiError) -> bytes:
    """The body of an error in transport mode, where `error.status` is the HTTP status."""
    return encode_object(error)


def _member(name: str, answer: Result | ApiError) -> bytes:
    if type(answer) is PublishResult and answer.offset and answer.epoch:  # what most answers are
        return b'"%b":{"offset":%d,"epoch":"%b"}' % (name.encode(), answer.offset, answer.epoch.encode())
    if isinstance(answer, BroadcastResult):
        responses = b",".join(b"{%b}" % _member("result", response) for response in answer.responses)
        return b'"%b":{"responses":[%b]}' % (name.encode(), responses)
    return b'"%b":%b' % (b"error" if isinstance(answer, ApiError) else name.encode(), encode_object(answer))


_REQUIRED: Final[Mapping[type[Request], str]] = {
    PublishRequest: "channel",
    BroadcastRequest: "channels",
    SubscribeRequest: "channel",
    PresenceRequest: "channel",
    PresenceStatsRequest: "channel",
    HistoryRequest: "channel",
    HistoryRemoveRequest: "channel",
    RPCRequest: "method",
}


def _finish(request: Request) -> None:
    """Check what the types could not; replace slices of the body, and base64, by bytes."""
    required = _REQUIRED.get(type(request))
    if required is not None and not getattr(request, required):
        raise Refused(API_BAD_REQUEST, f"{required} is missing")
    match request:
        case PublishRequest() | BroadcastRequest():
            request.data = _payload(request.data, request.b64data)
            _check_uint64(request.version)
            if isinstance(request, BroadcastRequest):
                _check_count(request.channels, MAX_BROADCAST)
        case BatchRequest():
            _check_count(request.commands, MAX_BATCH)
        case SubscribeRequest():
            request.data = _payload(request.data, request.b64data)
            request.info = _payload(request.info, request.b64info)
            _check_since(request.recover_since)
        case RefreshRequest():
            request.info = _payload(request.info, "")
        case HistoryRequest():
            _check_since(request.since)
        case RPCRequest():
            request.params = _payload(request.params, "")
        case DisconnectRequest(disconnect=DisconnectReason(code=code, reason=reason)):
            request.disconnect = DisconnectReason(code, reason or FORCE_DISCONNECT.reason)
            try:
                application_disconnect(code, request.disconnect.reason)
            except ValueError as error:
                raise Refused(API_BAD_REQUEST, str(error)) from error
        case _:
            pass


def _check_count(members: Sequence[object], most: int) -> None:
    if len(members) > most:
        raise Refused(API_BAD_REQUEST, f"more than {most} in one request")


def _payload(document: bytes, base64_text: str) -> bytes:
    if not base64_text:
        return documents.one_line(bytes(document))
    try:
        return base64.b64decode(base64_text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(API_BAD_REQUEST, "not base64") from error


def _check_since(position: StreamPosition | None) -> None:
    if position is not None:
        _check_uint64(position.offset)


def _check_uint64(value: int) -> None:
    if value > MAX_UINT64:
        raise Refused(API_BAD_REQUEST, "a number is out of range")
