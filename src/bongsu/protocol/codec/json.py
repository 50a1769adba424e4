"""The JSON encoding: documents separated by newlines, payloads embedded as they are.

A payload is sliced out of the frame and joined into the next one; nothing decodes it. What makes this safe
is checked on the way in: the frame is UTF-8 (else one publisher could make every browser of a channel drop
its connection), its JSON is well-formed, it nests no deeper than `MAX_DEPTH`, and it keeps no raw newline
(which would end a document) nor carriage return (which would end an SSE field).

Source: the Centrifuge client protocol, §2 "Framing", §3 "Command and Reply", §15.3, §16.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from .. import delta
from ..errors import BAD_REQUEST, INAPPROPRIATE_PROTOCOL, ProtocolError
from ..messages import (
    MAX_UINT64,
    PUSH_NAMES,
    REQUESTS,
    RESULT_NAMES,
    ClientInfo,
    Command,
    ConnectRequest,
    EmulationRequest,
    HistoryRequest,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    Push,
    Reply,
    Request,
    RPCRequest,
    SendRequest,
    SubscribeRequest,
    UInt32,
)
from . import MAX_FRAME_SIZE

MAX_DEPTH: Final = 128
"""Arrays and objects in one another, the command's own included. Far above real payloads, far below the
depth at which anybody's recursive parser, ours or a subscriber's, runs out of stack."""

# Sent even when zero, as are user and client of a ClientInfo: SDKs read these without looking whether they
# are there.
_ALWAYS_SENT: Final[dict[type, frozenset[str]]] = {
    PresenceResult: frozenset({"presence"}),
    PresenceStatsResult: frozenset({"num_clients", "num_users"}),
    HistoryResult: frozenset({"publications", "epoch", "offset"}),
}

_encode = msgspec.json.Encoder().encode
_WireCommand = msgspec.defstruct(
    "_WireCommand",
    [("id", UInt32, 0), *((name, request | None, None) for name, request in REQUESTS.items())],
)
_command_decoder: Final = msgspec.json.Decoder(_WireCommand)
_connect_decoder: Final = msgspec.json.Decoder(ConnectRequest)
_raw_decoder: Final = msgspec.json.Decoder(Raw)
_object_decoder: Final = msgspec.json.Decoder(dict[str, Raw])
_array_decoder: Final = msgspec.json.Decoder(list[Raw])


class _WireEmulation(Struct):
    session: str = ""
    node: str = ""
    data: str = ""


_emulation_decoder: Final = msgspec.json.Decoder(_WireEmulation)


def canonical(document: bytes) -> bytes:
    """`document` without the whitespace that would break framing; ValueError when it is not JSON.

    For payloads that come from elsewhere than a frame. Everything but raw newlines, carriage returns and
    whitespace around the document stays byte-exact.
    """
    try:
        _check_utf8(document)
        if _too_deep(document):
            raise ValueError("the JSON document nests too deep")
        document = bytes(_raw_decoder.decode(document))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError("not a JSON document") from error
    return _one_line(document)


class JsonCodec:
    """The JSON encoding. With `bare_pushes`, as unidirectional transports want it: pushes without a reply."""

    name: Final = "json"
    ping: Final = b"{}"

    def __init__(self, *, bare_pushes: bool = False, max_size: int = MAX_FRAME_SIZE) -> None:
        self._max_size = max_size
        self._head, self._tail = (b"{", b"}") if bare_pushes else (b'{"push":{', b"}}")
        self._publication_tail = b"}" + self._tail

    def decode(self, frame: bytes | str) -> list[Command]:
        """The commands of one frame. One newline after the last document is tolerated."""
        lines = self._checked(frame).split(b"\n")
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        return [_command(line) for line in lines]

    def decode_connect(self, body: bytes | str) -> ConnectRequest:
        """The bare connect request that opens a unidirectional connection."""
        request: ConnectRequest = _typed(_connect_decoder, self._checked(body))
        _finish(request)
        return request

    def decode_emulation(self, body: bytes) -> EmulationRequest:
        """An emulation request. Its `data` is a string that holds the frame."""
        wire = _typed(_emulation_decoder, self._checked(body))
        return EmulationRequest(node=wire.node, session=wire.session, data=wire.data.encode())

    def reply(self, reply: Reply) -> bytes:
        """One reply document."""
        return _encode({"id": reply.id, RESULT_NAMES[type(reply.result)]: _plain(reply.result)})

    def push(self, push: Push) -> bytes:
        """One push document."""
        channel = b'"channel":%b,' % _encode(push.channel) if push.channel else b""
        name = PUSH_NAMES[type(push.body)].encode()
        return b'%b%b"%b":%b%b' % (self._head, channel, name, _encode(_plain(push.body)), self._tail)

    def push_prefix(self, channel: str) -> bytes:
        """A publication push up to and with the brace that opens the publication."""
        return b'%b"channel":%b,"pub":{' % (self._head, _encode(channel))

    def publication(self, prefix: bytes, publication: Publication) -> bytes:
        """One publication push."""
        return b"".join((prefix, _publication_fields(publication), self._publication_tail))

    def delta_form(self, publication: Publication, base: bytes | None) -> Publication:
        """With delta, `data` is always a JSON string: the document's text, or the patch's."""
        if publication.binary:
            raise _not_json()
        patch = None if base is None else delta.patch(base, publication.data)
        if patch is not None:
            return msgspec.structs.replace(publication, data=_encode(patch.decode()), delta=True)
        return msgspec.structs.replace(publication, data=_encode(publication.data.decode()))

    def join(self, messages: Iterable[bytes]) -> bytes:
        """Documents separated by newlines."""
        return b"\n".join(messages)

    def _checked(self, frame: bytes | str) -> bytes:
        try:
            octets = frame.encode() if isinstance(frame, str) else frame
            _check_utf8(octets)
        except UnicodeError as error:
            raise ProtocolError(BAD_REQUEST, "the frame is not UTF-8") from error
        if len(octets) > self._max_size:
            raise ProtocolError(BAD_REQUEST, "the frame is too large")
        return octets


def _command(line: bytes) -> Command:
    wire: Any = _typed(_command_decoder, line)
    for name in REQUESTS:
        request: Request | None = getattr(wire, name)
        if request is not None:
            _finish(request)
            return Command(wire.id, request)
    return Command(wire.id)


def _typed(decoder: msgspec.json.Decoder[Any], document: bytes) -> Any:
    if _too_deep(document):
        raise ProtocolError(BAD_REQUEST, "the JSON document nests too deep")
    try:
        try:
            return decoder.decode(document)
        except msgspec.ValidationError:
            # The wire lets null stand for any field's zero value; the types do not. Rare enough to pay twice.
            return decoder.decode(_encode(_without_nulls(Raw(document))))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(BAD_REQUEST, "not a command") from error


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


def _finish(request: Request) -> None:
    """Check what the types could not, and let go of the frame."""
    if isinstance(request, _WITH_DATA):
        request.data = _one_line(bytes(request.data))
    if isinstance(request, SubscribeRequest):
        _check_uint64(request.offset)
    elif isinstance(request, ConnectRequest):
        for subscription in request.subs.values():
            _finish(subscription)
    elif isinstance(request, HistoryRequest) and request.since is not None:
        _check_uint64(request.since.offset)


_WITH_DATA: Final = (PublishRequest, SubscribeRequest, ConnectRequest, RPCRequest, SendRequest)


def _check_uint64(value: int) -> None:
    if value > MAX_UINT64:
        raise ProtocolError(BAD_REQUEST, "an offset is out of range")


def _check_utf8(octets: bytes) -> None:
    if not octets.isascii():  # nearly all are, and this is much faster
        octets.decode()


def _one_line(document: bytes) -> bytes:
    # Inside strings both are escaped, so what is raw is whitespace between tokens.
    if b"\n" in document or b"\r" in document:
        return document.translate(None, b"\r\n")
    return document


_BRACKETS: Final = bytes.maketrans(b"{[", b"[[").translate(bytes.maketrans(b"}", b"]"))
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def _too_deep(document: bytes) -> bool:
    if document.count(b"[") + document.count(b"{") <= MAX_DEPTH:
        return False  # nearly every document; the rest pays for a walk
    # Brackets inside strings open nothing. Escapes first, so that \" does not end its string.
    outside = b"".join(document.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_BRACKETS, _NOT_BRACKETS)
    depths = accumulate(1 if bracket == 0x5B else -1 for bracket in brackets)
    return any(depth > MAX_DEPTH for depth in depths)


def _not_json() -> ProtocolError:
    return ProtocolError(INAPPROPRIATE_PROTOCOL, "the payload is not JSON")


def _embedded(payload: bytes) -> bytes:
    """A payload off the hot path, checked: it may come from a token or a Protobuf client."""
    try:
        return canonical(payload)
    except ValueError as error:
        raise _not_json() from error


def _publication_fields(publication: Publication) -> bytes:
    """The members of a publication. Trusts `data`: this is the hot path, and `binary` says when not to."""
    if publication.binary:
        raise _not_json()
    data = b'"data":%b' % publication.data if publication.data else b""
    if publication.offset:
        data = b'%b,"offset":%d' % (data, publication.offset) if data else b'"offset":%d' % publication.offset
    if (
        publication.info is None
        and not publication.tags
        and not (publication.delta or publication.epoch or publication.channel or publication.time)
    ):
        return data
    fields = [data] if data else []
    if publication.info is not None:
        fields.append(b'"info":' + _client_info(publication.info))
    if publication.tags:
        fields.append(b'"tags":' + _encode(publication.tags))
    if publication.delta:
        fields.append(b'"delta":true')
    if publication.time:
        fields.append(b'"time":%d' % publication.time)
    if publication.channel:
        fields.append(b'"channel":' + _encode(publication.channel))
    if publication.epoch:
        fields.append(b'"epoch":' + _encode(publication.epoch))
    return b",".join(fields)


def _client_info(info: ClientInfo) -> bytes:
    conn_info = b',"conn_info":' + _embedded(info.conn_info) if info.conn_info else b""
    chan_info = b',"chan_info":' + _embedded(info.chan_info) if info.chan_info else b""
    return b'{"user":%b,"client":%b%b%b}' % (_encode(info.user), _encode(info.client), conn_info, chan_info)


def _plain(value: Any) -> Any:
    """`value` as msgspec encodes it to the wire's JSON: zero values left out, payloads raw."""
    match value:
        case Publication():
            return Raw(b"{%b}" % _publication_fields(value))
        case ClientInfo():
            return Raw(_client_info(value))
        case Struct():
            always = _ALWAYS_SENT.get(type(value), frozenset())
            members = ((name, getattr(value, name)) for name in value.__struct_fields__)
            return {name: _plain(member) for name, member in members if member or name in always}
        case bytes():
            return Raw(_embedded(value))
        case tuple() if hasattr(value, "_asdict"):  # a row of a table of codes
            return {name: member for name, member in value._asdict().items() if member}
        case list() | tuple():
            return [_plain(element) for element in value]
        case dict():
            return {key: _plain(member) for key, member in value.items()}
        case _:
            return value


JSON: Final = JsonCodec()
JSON_UNIDIRECTIONAL: Final = JsonCodec(bare_pushes=True)
