"""The Protobuf encoding: messages after their varint length, payloads opaque.

Field names in `client.proto` are those of our message types, so that both directions are a walk over names.
It is read as a compiled descriptor into a pool of its own. Generated classes would demand a Protobuf runtime
at least as new as their generator, of an application that mounts us too, and a process that also holds an
SDK would register the protocol twice.

Source: the Centrifuge client protocol, §17 "Protobuf encoding".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any, Final

import msgspec
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bongsu.protocol import delta
from bongsu.protocol.codec import MAX_FRAME_SIZE
from bongsu.protocol.errors import BAD_REQUEST, ProtocolError
from bongsu.protocol.messages import (
    PUSH_NAMES,
    REQUESTS,
    RESULT_NAMES,
    Command,
    ConnectRequest,
    EmulationRequest,
    FilterNode,
    HistoryRequest,
    Publication,
    Push,
    Reply,
    Request,
    StreamPosition,
    SubscribeRequest,
)


def _descriptors() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath("client.binpb").read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool: Final = _descriptors()


def _message_class(name: str) -> Any:
    return GetMessageClass(_pool.FindMessageTypeByName(f"bongsu.client.{name}"))


_WireCommand: Final = _message_class("Command")
_WireReply: Final = _message_class("Reply")
_WirePublication: Final = _message_class("Publication")
_WireEmulation: Final = _message_class("EmulationRequest")

_LENGTH_BYTES: Final = 5  # of a varint below 2^32

# Fields whose values are messages themselves; every other field of a request is the same on both sides.
_NESTED: Final = frozenset({"subs", "headers", "tf", "since"})
_SCALARS: Final[Mapping[type[Request], tuple[str, ...]]] = {
    kind: tuple(name for name in kind.__struct_fields__ if name not in _NESTED) for kind in REQUESTS.values()
}

# Tags (number << 3 | wire type 2) of what surrounds a publication.
_REPLY_PUSH: Final = b"\x22"
_PUSH_CHANNEL: Final = b"\x12"
_PUSH_PUB: Final = b"\x22"


class ProtobufCodec:
    """The Protobuf encoding."""

    name: Final = "protobuf"
    ping: Final = b"\x00"

    def __init__(self, *, max_size: int = MAX_FRAME_SIZE) -> None:
        self._max_size = max_size

    def decode(self, frame: bytes | str) -> list[Command]:
        """The commands of one frame. An empty message is a pong."""
        try:
            octets = frame.encode() if isinstance(frame, str) else frame
            if not octets:
                raise ProtocolError(BAD_REQUEST, "the frame is empty")
            return [_command(message) for message in _split(self._checked(octets))]
        except (DecodeError, UnicodeEncodeError) as error:
            raise ProtocolError(BAD_REQUEST, "not a command") from error

    def decode_emulation(self, body: bytes) -> EmulationRequest:
        """An emulation request. Its `data` is the frame."""
        try:
            wire = _WireEmulation.FromString(self._checked(body))
        except DecodeError as error:
            raise ProtocolError(BAD_REQUEST, "not an emulation request") from error
        return EmulationRequest(node=wire.node, session=wire.session, data=wire.data)

    def reply(self, reply: Reply) -> bytes:
        """One reply after its length."""
        message = _WireReply(id=reply.id)
        _fill(getattr(message, RESULT_NAMES[type(reply.result)]), reply.result)
        return _delimited(message.SerializeToString())

    def push(self, push: Push) -> bytes:
        """One push after its length."""
        message = _WireReply()
        message.push.channel = push.channel
        _fill(getattr(message.push, PUSH_NAMES[type(push.body)]), push.body)
        return _delimited(message.SerializeToString())

    def push_prefix(self, channel: str) -> bytes:
        """The channel field of a push."""
        return _PUSH_CHANNEL + _delimited(channel.encode())

    def publication(self, prefix: bytes, publication: Publication) -> bytes:
        """One publication push after its length."""
        message = _WirePublication()
        if (
            publication.info is None
            and not publication.tags
            and publication.offset != 1
            and not (publication.delta or publication.channel or publication.time)
        ):
            message.data = publication.data
            message.offset = publication.offset
        else:
            _fill(message, publication)
        push = prefix + _PUSH_PUB + _delimited(message.SerializeToString())
        return _delimited(_REPLY_PUSH + _delimited(push))

    def delta_form(self, publication: Publication, base: bytes | None) -> Publication:
        """With delta, `data` is the document or the patch."""
        patch = None if base is None else delta.patch(base, publication.data)
        if patch is None:
            return publication
        return msgspec.structs.replace(publication, data=patch, delta=True)

    def join(self, messages: Iterable[bytes]) -> bytes:
        """Messages one after another: each knows its length."""
        return b"".join(messages)

    def _checked(self, octets: bytes) -> bytes:
        if len(octets) > self._max_size:
            raise ProtocolError(BAD_REQUEST, "the frame is too large")
        return octets


def _split(frame: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(frame):
        length = shift = 0
        for octet in frame[at : at + _LENGTH_BYTES]:
            at += 1
            length |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        else:
            raise ProtocolError(BAD_REQUEST, "a message's length is malformed")
        if length > len(frame) - at:
            raise ProtocolError(BAD_REQUEST, "a message is cut off")
        yield frame[at : at + length]
        at += length


def _command(octets: bytes) -> Command:
    wire = _WireCommand.FromString(octets)
    for name, kind in REQUESTS.items():
        if wire.HasField(name):
            return Command(wire.id, _request(getattr(wire, name), kind))
    return Command(wire.id)


def _request(wire: Any, kind: type[Request]) -> Request:
    if kind is SubscribeRequest:
        return _subscribe(wire)
    request = kind(**_scalars(wire, kind))
    if isinstance(request, ConnectRequest):
        request.headers = dict(wire.headers)
        request.subs = {channel: _subscribe(member) for channel, member in wire.subs.items()}
    elif isinstance(request, HistoryRequest) and wire.HasField("since"):
        request.since = StreamPosition(wire.since.offset, wire.since.epoch)
    return request


def _subscribe(wire: Any) -> SubscribeRequest:
    request = SubscribeRequest(**_scalars(wire, SubscribeRequest))
    request.tf = _filter(wire.tf) if wire.HasField("tf") else None
    return request


def _scalars(wire: Any, kind: type[Request]) -> dict[str, Any]:
    return {name: getattr(wire, name) for name in _SCALARS[kind]}


def _filter(wire: Any) -> FilterNode:
    # The parser itself allows a hundred messages in one another.
    nodes = tuple(_filter(node) for node in wire.nodes)
    return FilterNode(wire.op, wire.key, wire.cmp, wire.val, tuple(wire.vals), nodes)


def _fill(message: Any, value: Any) -> None:
    """Set the fields of `message` from those of `value` that are not zero."""
    message.SetInParent()  # an empty result is a result all the same
    if isinstance(value, Publication) and value.offset != 1 and value.epoch:
        value = msgspec.structs.replace(value, epoch="")
    names = value.__struct_fields__ if isinstance(value, msgspec.Struct) else value._fields
    for name in names:
        member = getattr(value, name)
        if not member or name in _OURS_ALONE:
            continue
        match member:
            case bool() | int() | str() | bytes():
                setattr(message, name, member)
            case msgspec.Struct():
                _fill(getattr(message, name), member)
            case dict():
                _fill_map(getattr(message, name), member)
            case _:
                for element in member:
                    _fill(getattr(message, name).add(), element)


_OURS_ALONE: Final = frozenset({"plain", "binary", "patchable"})


def _fill_map(field: Any, members: Mapping[str, Any]) -> None:
    for key, member in members.items():
        if isinstance(member, str):
            field[key] = member
        else:
            _fill(field[key], member)


def _delimited(octets: bytes) -> bytes:
    length = len(octets)
    if length < 0x80:
        return b"%c%b" % (length, octets)
    if length < 0x4000:
        return b"%c%c%b" % (length & 0x7F | 0x80, length >> 7, octets)
    head = bytearray()
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + octets


PROTOBUF: Final = ProtobufCodec()
