"""The JSON encoding: documents separated by newlines, payloads embedded as they are.

A payload is sliced out of the frame and joined into the next one; nothing decodes it. What makes this safe
is checked on the way in (`documents`).

Source: the Centrifuge client protocol, §2 "Framing", §3 "Command and Reply", §15.3, §16.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from bongsu.protocol import delta
from bongsu.protocol.codec import MAX_FRAME_SIZE, documents
from bongsu.protocol.codec.documents import DocumentError
from bongsu.protocol.errors import BAD_REQUEST, INAPPROPRIATE_PROTOCOL, ProtocolError
from bongsu.protocol.messages import (
    MAX_UINT64,
    PUSH_NAMES,
    REQUESTS,
    RESULT_NAMES,
    ClientInfo,
    Command,
    ConnectRequest,
    EmulationRequest,
    HistoryRequest,
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

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_WireCommand = msgspec.defstruct(
    "_WireCommand",
    [("id", UInt32, 0), *((name, request | None, None) for name, request in REQUESTS.items())],
)
_command_decoder: Final = msgspec.json.Decoder(_WireCommand)
_connect_decoder: Final = msgspec.json.Decoder(ConnectRequest)


class _WireEmulation(Struct):
    session: str = ""
    node: str = ""
    data: str = ""


_emulation_decoder: Final = msgspec.json.Decoder(_WireEmulation)


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
        name = RESULT_NAMES[type(reply.result)].encode()
        return b'{"id":%d,"%b":%b}' % (reply.id, name, encode_object(reply.result))

    def push(self, push: Push) -> bytes:
        """One push document."""
        channel = b'"channel":%b,' % _encode(push.channel) if push.channel else b""
        name = PUSH_NAMES[type(push.body)].encode()
        return b'%b%b"%b":%b%b' % (self._head, channel, name, encode_object(push.body), self._tail)

    def push_prefix(self, channel: str) -> bytes:
        """A publication push up to and with the brace that opens the publication."""
        return b'%b"channel":%b,"pub":{' % (self._head, _encode(channel))

    def publication(self, prefix: bytes, publication: Publication) -> bytes:
        """One publication push."""
        return _publication(prefix, publication, self._publication_tail)

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
            documents.check_utf8(octets)
        except (UnicodeEncodeError, DocumentError) as error:
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


def _typed(decoder: msgspec.json.Decoder[T], document: bytes) -> T:
    try:
        return documents.decode(decoder, document)
    except DocumentError as error:
        raise ProtocolError(BAD_REQUEST, str(error)) from error


def _finish(request: Request) -> None:
    """Check what the types could not, and let go of the frame."""
    if isinstance(request, _WITH_DATA):
        request.data = documents.one_line(bytes(request.data))
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


def _not_json() -> ProtocolError:
    return ProtocolError(INAPPROPRIATE_PROTOCOL, "the payload is not JSON")


def _embedded(payload: bytes) -> bytes:
    """A payload off the hot path, checked: it may come from a token or a Protobuf client."""
    try:
        return documents.canonical(payload)
    except DocumentError as error:
        raise _not_json() from error


def _publication(opening: bytes, publication: Publication, closing: bytes) -> bytes:
    """The members of a publication, in between. Trusts `data`: this is the hot path, and `binary` says when
    not to.
    """
    if publication.binary:
        raise _not_json()
    rest = b',"offset":%d' % publication.offset if publication.offset else b""
    if publication.info is not None:
        rest += b',"info":' + _client_info(publication.info)
    if publication.tags:
        rest += b',"tags":' + _encode(publication.tags)
    if publication.delta:
        rest += b',"delta":true'
    if publication.time:
        rest += b',"time":%d' % publication.time
    if publication.channel:
        rest += b',"channel":' + _encode(publication.channel)
    if publication.offset == 1 and publication.epoch:
        rest += b',"epoch":' + _encode(publication.epoch)
    if publication.data:
        return b'%b"data":%b%b%b' % (opening, publication.data, rest, closing)
    return opening + rest[1:] + closing


def _client_info(info: ClientInfo) -> bytes:
    conn_info = b',"conn_info":' + _embedded(info.conn_info) if info.conn_info else b""
    chan_info = b',"chan_info":' + _embedded(info.chan_info) if info.chan_info else b""
    return b'{"user":%b,"client":%b%b%b}' % (_encode(info.user), _encode(info.client), conn_info, chan_info)


def encode_object(value: object) -> bytes:
    """A message type as the wire's JSON: zero values left out, payloads raw. ProtocolError as in `Codec`."""
    return _encode(_plain(value))


def _plain(value: Any) -> Any:
    """`value` as msgspec encodes it to the wire's JSON: zero values left out, payloads raw."""
    if type(value) in _LEAVES:  # most members are
        return value
    match value:
        case Publication():
            return Raw(_publication(b"{", value, b"}"))
        case ClientInfo():
            return Raw(_client_info(value))
        case Struct():
            always = getattr(value, "always_sent", ())
            members = zip(value.__struct_fields__, msgspec.structs.astuple(value), strict=True)
            return {
                name: member if type(member) in _LEAVES else _plain(member)
                for name, member in members
                if member or name in always
            }
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


_LEAVES: Final = frozenset({str, int, bool, float})

JSON: Final = JsonCodec()
JSON_UNIDIRECTIONAL: Final = JsonCodec(bare_pushes=True)
