"""The Protobuf codec, against the compiled protocol and against the JSON codec."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.protocol.codec.conversation import PUBLICATIONS, PUSHES, REPLIES

from bongsu.protocol import delta, errors
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.codec.protobuf import PROTOBUF, ProtobufCodec
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.messages import (
    ClientInfo,
    Command,
    ConnectRequest,
    EmulationRequest,
    FilterNode,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    Publication,
    PublishRequest,
    Push,
    RefreshRequest,
    Reply,
    RPCRequest,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
    UnsubscribeResult,
)

CODEC = files("bongsu.protocol.codec")


def wire_class(name: str) -> Any:
    """A message class made from the protocol's description, as a client in another language would."""
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(CODEC.joinpath("client.binpb").read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"bongsu.client.{name}"))


WireCommand, WireReply = wire_class("Command"), wire_class("Reply")


def frame(*commands: dict[str, Any]) -> bytes:
    """Commands as a client writes them. All are short: their lengths are single bytes."""
    out = b""
    for command in commands:
        message = ParseDict(command, WireCommand()).SerializeToString()
        assert len(message) < 128
        out += bytes([len(message)]) + message
    return out


def undelimited(message: bytes) -> bytes:
    length = shift = at = 0
    while True:
        length |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            break
    assert len(message) == at + length
    return message[at:]


def plain(message: Any) -> Any:
    """A message as JSON has it, without zeros: payloads parsed, maps and lists of messages included."""
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            out[field.name] = {key: plain(v) if hasattr(v, "ListFields") else v for key, v in value.items()}
        elif field.type == field.TYPE_MESSAGE:
            out[field.name] = plain(value) if hasattr(value, "ListFields") else [plain(v) for v in value]
        else:
            out[field.name] = json.loads(value) if isinstance(value, bytes) else value
    return out


PAYLOADS = {"data", "conn_info", "chan_info"}


def without_zeros(value: Any) -> Any:
    """Parsed JSON of ours without the zeros that are always sent; payloads stay."""
    if isinstance(value, dict):
        return {
            key: member if key in PAYLOADS else without_zeros(member)
            for key, member in value.items()
            if key in PAYLOADS or member or (isinstance(member, dict) and key != "presence")
        }
    return [without_zeros(element) for element in value] if isinstance(value, list) else value


def test_the_compiled_protocol_is_that_of_the_source(tmp_path: Path) -> None:
    compiled = tmp_path / "client.binpb"
    arguments = ["-I", str(CODEC), f"--descriptor_set_out={compiled}", "client.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
    assert compiled.read_bytes() == CODEC.joinpath("client.binpb").read_bytes()


@pytest.mark.parametrize(
    ("wire", "command"),
    [
        (
            {
                "id": 1,
                "connect": {
                    "token": "t",
                    "data": "/w==",
                    "headers": {"k": "v"},
                    "subs": {"#42": {"recover": True, "offset": 3, "tf": {"key": "k", "cmp": "ex"}}},
                },
            },
            Command(
                1,
                ConnectRequest(
                    token="t",
                    data=b"\xff",
                    headers={"k": "v"},
                    subs={"#42": SubscribeRequest(recover=True, offset=3, tf=FilterNode(key="k", cmp="ex"))},
                ),
            ),
        ),
        (
            {
                "id": 2,
                "subscribe": {"channel": "c", "tf": {"op": "not", "nodes": [{"cmp": "in", "vals": ["v"]}]}},
            },
            Command(
                2,
                SubscribeRequest("c", tf=FilterNode(op="not", nodes=(FilterNode(cmp="in", vals=("v",)),))),
            ),
        ),
        ({"id": 2, "subscribe": {"flag": -1, "type": -1}}, Command(2, SubscribeRequest(flag=-1, type=-1))),
        ({"id": 3, "unsubscribe": {"channel": "c"}}, Command(3, UnsubscribeRequest("c"))),
        ({"id": 4, "publish": {"channel": "c", "data": "AA=="}}, Command(4, PublishRequest("c", b"\0"))),
        ({"id": 5, "presence": {"channel": "c"}}, Command(5, PresenceRequest("c"))),
        ({"id": 6, "presence_stats": {"channel": "c"}}, Command(6, PresenceStatsRequest("c"))),
        (
            {
                "id": 7,
                "history": {"channel": "c", "limit": -1, "since": {"offset": 2**64 - 1}, "reverse": True},
            },
            Command(7, HistoryRequest("c", -1, StreamPosition(2**64 - 1), reverse=True)),
        ),
        ({"id": 7, "history": {}}, Command(7, HistoryRequest())),
        ({"id": 8, "rpc": {"method": "m"}}, Command(8, RPCRequest(method="m"))),
        ({"send": {"data": "AA=="}}, Command(0, SendRequest(b"\0"))),
        ({"id": 9, "refresh": {"token": "t"}}, Command(9, RefreshRequest("t"))),
        ({"id": 10, "sub_refresh": {"channel": "c"}}, Command(10, SubRefreshRequest("c"))),
        ({"id": 1, "rpc": {}, "subscribe": {}}, Command(1, SubscribeRequest())),
        ({"id": 3}, Command(3)),
        ({}, Command()),
    ],
)
def test_a_command_is_decoded(wire: dict[str, Any], command: Command) -> None:
    assert PROTOBUF.decode(frame(wire)) == [command]


def test_commands_of_a_frame_come_in_order_and_an_empty_one_is_a_pong() -> None:
    assert PROTOBUF.decode(frame({"id": 1}, {}, {"id": 2})) == [Command(1), Command(), Command(2)]
    assert PROTOBUF.decode(b"\x00") == [Command()]
    assert PROTOBUF.decode("\x00") == [Command()]  # a text frame that happens to hold one


def test_fields_that_we_do_not_know_are_skipped() -> None:
    # expect: field 11, ping, of a command, and field 99; both length delimited and empty
    assert PROTOBUF.decode(b"\x07\x08\x05\x5a\x00\x9a\x06\x00") == [Command(5)]


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x05\x08\x01",  # cut off
        b"\x80",
        b"\x80\x80\x80\x80\x80\x01",  # longer than any length
        b"\x02\x08\x80",  # the id is cut off
        b"\x03\x2a\x01\x0a",  # a request that is none
        b"\x05\x2a\x03\x0a\x01\xff",  # a channel that is not UTF-8
        "\ud800",
        b"\x7f" + b"\x2a\x7d" * 63,
    ],
)
def test_a_frame_that_breaks_the_protocol_is_refused_with_3501(octets: bytes | str) -> None:
    with pytest.raises(ProtocolError) as caught:
        PROTOBUF.decode(octets)
    assert caught.value.disconnect == errors.BAD_REQUEST


def test_a_filter_nested_without_end_is_refused_by_the_parser() -> None:
    node = b""
    for _ in range(200):
        node = b"\x32" + _varint(len(node)) + node
    subscribe = b"\x6a" + _varint(len(node)) + node
    command = b"\x2a" + _varint(len(subscribe)) + subscribe
    with pytest.raises(ProtocolError):
        PROTOBUF.decode(_varint(len(command)) + command)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        ProtobufCodec(max_size=2).decode(b"\0\0\0")


def test_an_emulation_request_brings_its_frame_as_bytes() -> None:
    body = wire_class("EmulationRequest")(node="n", session="s", data=b"\0").SerializeToString()
    assert PROTOBUF.decode_emulation(body) == EmulationRequest("n", "s", b"\0")
    with pytest.raises(ProtocolError):
        PROTOBUF.decode_emulation(b"\xff")


@given(st.binary(max_size=80) | st.text(max_size=20))
def test_whatever_comes_is_decoded_or_refused(octets: bytes | str) -> None:
    try:
        outcome: object = bool(PROTOBUF.decode(octets))
    except ProtocolError as error:
        outcome = error.disconnect
    assert outcome in (True, errors.BAD_REQUEST)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: f"{reply.id}")
def test_a_reply_says_what_it_says_in_json(reply: Reply) -> None:
    message = WireReply.FromString(undelimited(PROTOBUF.reply(reply)))
    assert plain(message) == without_zeros(json.loads(JSON.reply(reply)))


@pytest.mark.parametrize("push", PUSHES, ids=range(len(PUSHES)))
def test_a_push_says_what_it_says_in_json(push: Push) -> None:
    message = WireReply.FromString(undelimited(PROTOBUF.push(push)))
    assert plain(message) == without_zeros(json.loads(JSON.push(push)))


@pytest.mark.parametrize("channel", ["chat:1", "봉수"])
@pytest.mark.parametrize("publication", PUBLICATIONS, ids=range(len(PUBLICATIONS)))
def test_a_publication_is_the_same_with_a_prefix_made_once(channel: str, publication: Publication) -> None:
    with_prefix = PROTOBUF.publication(PROTOBUF.push_prefix(channel), publication)
    assert with_prefix == PROTOBUF.push(Push(channel, publication))


def test_wire_literals() -> None:
    assert PROTOBUF.ping == b"\x00"
    assert PROTOBUF.reply(Reply(3, UnsubscribeResult())) == b"\x04\x08\x03\x3a\x00"
    publication = Publication(b"hi", offset=300)
    assert PROTOBUF.push(Push("a", publication)) == b"\x0e\x22\x0c\x12\x01a\x22\x07\x22\x02hi\x30\xac\x02"
    assert PROTOBUF.push(Push("", errors.SHUTDOWN)).endswith(b"\x5a\x0d\x08\xb9\x17\x12\x08shutdown")


def test_payloads_may_be_any_bytes() -> None:
    info = ClientInfo("u", "c", b"\xff", b"\0")
    message = WireReply.FromString(
        undelimited(PROTOBUF.push(Push("a", Publication(b"\xfe", info=info, binary=True))))
    )
    assert message.push.pub.data == b"\xfe"
    assert message.push.pub.info.conn_info == b"\xff"
    assert message.push.pub.info.chan_info == b"\0"


def test_messages_are_joined_into_a_frame() -> None:
    assert PROTOBUF.join([b"\x00", b"\x01a"]) == b"\x00\x01a"


def test_with_delta_data_is_the_document_or_a_patch() -> None:
    base, target = b'{"text":"%b","n":1}' % (b"x" * 100), b'{"text":"%b","n":2}' % (b"x" * 100)
    first, second = (PROTOBUF.delta_form(Publication(target, offset=2), known) for known in (None, base))
    assert first == Publication(target, offset=2)
    assert second.delta
    assert delta.apply(base, second.data) == target
    assert not PROTOBUF.delta_form(Publication(b"\xff", binary=True), base).delta


def test_the_server_holds_the_protocol_without_registering_it_for_others() -> None:
    """An SDK in the same process registers its own description; a second one under its names would fail."""
    program = "import bongsu.protocol.codec.protobuf\nfrom google.protobuf.descriptor_pool import Default\n"
    program += "Default().FindMessageTypeByName('bongsu.client.Command')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "KeyError" in done.stderr
