"""The JSON codec: wire literals in both directions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.protocol.codec.conversation import FULL, PUBLICATIONS, PUSHES, REPLIES

from bongsu.protocol import delta, errors
from bongsu.protocol.codec.json import JSON, JSON_UNIDIRECTIONAL, JsonCodec
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.messages import (
    ClientInfo,
    Command,
    ConnectRequest,
    EmulationRequest,
    FilterNode,
    HistoryRequest,
    HistoryResult,
    Join,
    Message,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    Push,
    RefreshRequest,
    Reply,
    RPCRequest,
    RPCResult,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)

# ---- in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "command"),
    [
        ('{"id":1,"connect":{}}', Command(1, ConnectRequest())),
        (
            '{"id":1,"connect":{"token":"t","data":{"a": 1},"name":"js","version":"5","headers":{"k":"v"},'
            '"subs":{"#42":{"recover":true,"epoch":"e","offset":3}}}}',
            Command(
                1,
                ConnectRequest(
                    token="t",
                    data=b'{"a": 1}',
                    name="js",
                    version="5",
                    headers={"k": "v"},
                    subs={"#42": SubscribeRequest(recover=True, epoch="e", offset=3)},
                ),
            ),
        ),
        (
            '{"id":2,"subscribe":{"channel":"c","positioned":true,"recoverable":true,"join_leave":true,'
            '"delta":"fossil","flag":3,"type":-1,"tf":{"op":"not","nodes":[{"key":"k","cmp":"in","vals":["v"]}]}}}',
            Command(
                2,
                SubscribeRequest(
                    channel="c",
                    positioned=True,
                    recoverable=True,
                    join_leave=True,
                    delta="fossil",
                    flag=3,
                    type=-1,
                    tf=FilterNode(op="not", nodes=(FilterNode(key="k", cmp="in", vals=("v",)),)),
                ),
            ),
        ),
        ('{"id":3,"unsubscribe":{"channel":"c"}}', Command(3, UnsubscribeRequest("c"))),
        ('{"id":4,"publish":{"channel":"c","data":0}}', Command(4, PublishRequest("c", b"0"))),
        ('{"id":5,"presence":{"channel":"c"}}', Command(5, PresenceRequest("c"))),
        ('{"id":6,"presence_stats":{"channel":"c"}}', Command(6, PresenceStatsRequest("c"))),
        (
            '{"id":7,"history":{"channel":"c","limit":-1,"since":{"offset":18446744073709551615,"epoch":"e"},'
            '"reverse":true}}',
            Command(7, HistoryRequest("c", -1, StreamPosition(2**64 - 1, "e"), reverse=True)),
        ),
        ('{"id":8,"rpc":{"method":"m","data":[]}}', Command(8, RPCRequest(b"[]", "m"))),
        ('{"send":{"data":"x"}}', Command(0, SendRequest(b'"x"'))),
        ('{"id":9,"refresh":{"token":"t"}}', Command(9, RefreshRequest("t"))),
        ('{"id":10,"sub_refresh":{"channel":"c","token":"t"}}', Command(10, SubRefreshRequest("c", "t"))),
        ("{}", Command()),
        ('{"id":4294967295}', Command(2**32 - 1)),
        ('{"id":3,"ping":{}}', Command(3)),
        (
            '{"id":1,"nonsense":{"a":[1]},"connect":{"profile":"p","dict":"d","flag":1}}',
            Command(1, ConnectRequest()),
        ),
        (
            '{"id":1,"subscribe":null,"publish":{"channel":"c","data":null}}',
            Command(1, PublishRequest("c", b"null")),
        ),
    ],
)
def test_a_command_is_decoded(wire: str, command: Command) -> None:
    assert JSON.decode(wire) == [command]
    assert JSON.decode(wire.encode()) == [command]


def test_bit_2_of_the_flag_asks_for_an_error_where_a_position_cannot_be_recovered() -> None:
    assert [SubscribeRequest(flag=flag).reject_unrecovered for flag in (0, 1, 2, 3)] == [
        False,
        False,
        True,
        True,
    ]


def test_of_several_requests_the_first_of_the_protocols_order_counts() -> None:
    names = ["connect", "subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history", "rpc"]
    names += ["send", "refresh", "sub_refresh"]
    kinds = []
    for start in range(len(names)):
        wire = ",".join(f'"{name}":{{}}' for name in reversed(names[start:]))
        (command,) = JSON.decode(f'{{"id":1,{wire}}}')
        kinds.append(type(command.request))
    assert kinds == [
        *[ConnectRequest, SubscribeRequest, UnsubscribeRequest, PublishRequest, PresenceRequest],
        *[PresenceStatsRequest, HistoryRequest, RPCRequest, SendRequest, RefreshRequest, SubRefreshRequest],
    ]


def test_documents_of_a_frame_come_in_order_and_one_newline_may_end_it() -> None:
    assert [command.id for command in JSON.decode('{"id":1}\n{"id":2}\n{"id":3}\n')] == [1, 2, 3]
    assert JSON.decode("{}\n") == [Command()]


@pytest.mark.parametrize(
    "frame",
    [
        *["", "\n", "{}\n\n", "\n{}", "{}\n\n{}", "{}{}", "[]", "1", "null", "{", '{"id":}', "x"],
        *['{"id":-1}', '{"id":4294967296}', '{"id":1.5}', '{"id":"1"}', '{"id":1,"connect":[]}'],
        *['{"id":1,"history":{"limit":2147483648}}', '{"id":1,"subscribe":{"flag":9223372036854775808}}'],
        *['{"id":1,"subscribe":{"offset":18446744073709551616}}', '{"id":1,"subscribe":{"offset":-1}}'],
        *[
            '{"id":1,"history":{"since":{"offset":18446744073709551616}}}',
            '{"id":1,"publish":{"data":{"a":}}}',
        ],
        *[
            '{"id":1,"connect":{"subs":{"a":{"offset":18446744073709551616}}}}',
            "{}\n{",
            "\ufeff{}",
            '{"a":"\ud800"}',
        ],
        *[b"\xff", b'{"nobody":"\xff"}', '{"id":1,"publish":{"data":' + "[" * 200 + "]" * 200 + "}}"],
        '{"id":1,"subscribe":{"tf":' + '{"nodes":[' * 5000,
    ],
)
def test_a_frame_that_breaks_the_protocol_is_refused_as_a_whole_with_3501(frame: str | bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        JSON.decode(frame)
    assert caught.value.disconnect == errors.BAD_REQUEST


def test_a_frame_over_the_limit_is_refused() -> None:
    frame = '{"id":1}'
    assert JsonCodec(max_size=len(frame)).decode(frame) == [Command(1)]
    with pytest.raises(ProtocolError, match="3501 bad request: the frame is too large"):
        JsonCodec(max_size=len(frame) - 1).decode(frame)


def test_payloads_come_out_byte_exact_but_for_carriage_returns_between_tokens() -> None:
    (command,) = JSON.decode('{"id":1,"publish":{"channel":"c","data": {"b" :1.0,\r"a":"\\r\\n é"} }}')
    assert isinstance(command.request, PublishRequest)
    assert command.request.data == '{"b" :1.0,"a":"\\r\\n é"}'.encode()


def test_the_connect_request_of_a_unidirectional_connection_is_bare() -> None:
    assert JSON.decode_connect('{"token":"t","data":[1]}') == ConnectRequest(token="t", data=b"[1]")
    with pytest.raises(ProtocolError):
        JSON.decode_connect(b"")


def test_an_emulation_request_brings_its_frame_as_a_string() -> None:
    body = b'{"session":"s","node":"n","data":"{\\"id\\":1}\\n{}"}'
    request = JSON.decode_emulation(body)
    assert request == EmulationRequest(node="n", session="s", data=b'{"id":1}\n{}')
    assert JSON.decode(request.data) == [Command(1), Command()]
    with pytest.raises(ProtocolError):
        JSON.decode_emulation(b'{"data":{}}')


@given(st.binary(max_size=80) | st.text(max_size=80))
def test_whatever_comes_is_decoded_or_refused(frame: bytes | str) -> None:
    try:
        outcome: object = bool(JSON.decode(frame))
    except ProtocolError as error:
        outcome = error.disconnect
    assert outcome in (True, errors.BAD_REQUEST)


# ---- out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (Reply(1, PublishResult()), b'{"id":1,"publish":{}}'),
        (Reply(1, PresenceResult()), b'{"id":1,"presence":{"presence":{}}}'),
        (Reply(1, PresenceStatsResult()), b'{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}'),
        (Reply(1, HistoryResult()), b'{"id":1,"history":{"publications":[],"epoch":"","offset":0}}'),
        (
            Reply(1, PresenceResult({"c": ClientInfo()})),
            b'{"id":1,"presence":{"presence":{"c":{"user":"","client":""}}}}',
        ),
        (Reply(1, RPCResult(b'{"a": [null]}')), b'{"id":1,"rpc":{"data":{"a": [null]}}}'),
        (
            Reply(1, errors.ERROR_TOO_MANY_REQUESTS),
            b'{"id":1,"error":{"code":111,"message":"too many requests","temporary":true}}',
        ),
        (Reply(1, errors.ERROR_EXPIRED), b'{"id":1,"error":{"code":110,"message":"expired"}}'),
    ],
)
def test_a_reply_leaves_out_what_is_zero_but_for_what_sdks_count_on(reply: Reply, wire: bytes) -> None:
    assert JSON.reply(reply) == wire


def test_a_full_publication_has_every_member() -> None:
    assert json.loads(JSON.push(Push("chat:1", FULL))) == {
        "push": {
            "channel": "chat:1",
            "pub": {
                "data": {"text": "hi"},
                "info": {"user": "42", "client": "9f0c", "conn_info": {"n": 1}, "chan_info": []},
                "offset": 1,
                "tags": {"lang": "en"},
                "delta": True,
                "time": 1_700_000_000_000,
                "channel": "chat:1",
                "epoch": "xQmZ",
            },
        }
    }


def test_a_push_about_the_connection_has_no_channel() -> None:
    assert (
        JSON.push(Push("", errors.SHUTDOWN)) == b'{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}'
    )


@pytest.mark.parametrize("codec", [JSON, JSON_UNIDIRECTIONAL], ids=["bidirectional", "unidirectional"])
@pytest.mark.parametrize("channel", ["chat:1", 'a"b\\', "봉수"])
@pytest.mark.parametrize("publication", PUBLICATIONS, ids=range(len(PUBLICATIONS)))
def test_a_publication_is_the_same_with_a_prefix_made_once(
    codec: JsonCodec, channel: str, publication: Publication
) -> None:
    assert codec.publication(codec.push_prefix(channel), publication) == codec.push(
        Push(channel, publication)
    )


@pytest.mark.parametrize("codec", [JSON, JSON_UNIDIRECTIONAL], ids=["bidirectional", "unidirectional"])
def test_every_message_is_one_document_on_one_line(codec: JsonCodec) -> None:
    messages = [*map(codec.reply, REPLIES), *map(codec.push, PUSHES), codec.ping]
    lines = codec.join(messages).split(b"\n")
    assert lines == messages
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_unidirectional_pushes_are_bare() -> None:
    message = Push("a", Publication(b"1", offset=3))
    assert JSON.push(message) == b'{"push":{"channel":"a","pub":{"data":1,"offset":3}}}'
    assert JSON_UNIDIRECTIONAL.push(message) == b'{"channel":"a","pub":{"data":1,"offset":3}}'


@pytest.mark.parametrize(
    "body",
    [
        Publication(b"\x00\xff", binary=True),
        Publication(b"1", info=ClientInfo("u", "c", b"\xff")),
        Publication(b"1", info=ClientInfo("u", "c", b"", b"{")),
        Join(ClientInfo("u", "c", b"{}{}")),
        Message(b"not json"),
    ],
)
def test_a_payload_that_is_not_json_is_signalled_as_3506(body: Publication | Join | Message) -> None:
    with pytest.raises(ProtocolError) as caught:
        JSON.push(Push("a", body))
    assert caught.value.disconnect == errors.INAPPROPRIATE_PROTOCOL
    if isinstance(body, Publication):
        with pytest.raises(ProtocolError):
            JSON.publication(JSON.push_prefix("a"), body)


# ---- delta ---------------------------------------------------------------------------------------------

TEXT = '{"text":"' + "봉수 " * 40 + '","n":%d}'
BASE, NEXT = (TEXT % 1).encode(), (TEXT % 2).encode()


def test_with_delta_data_is_always_a_string_the_document_or_a_patch() -> None:
    first = JSON.delta_form(Publication(BASE, offset=1), None)
    second = JSON.delta_form(Publication(NEXT, offset=2), BASE)
    short = JSON.delta_form(Publication(b"1", offset=3), NEXT)
    assert [first.delta, second.delta, short.delta] == [False, True, False]
    assert json.loads(first.data).encode() == BASE
    assert delta.apply(BASE, json.loads(second.data).encode()) == NEXT
    assert short.data == b'"1"'
    assert b"\n" not in second.data
    assert second.offset == 2


def test_with_delta_too_a_payload_that_is_not_json_is_signalled() -> None:
    with pytest.raises(ProtocolError) as caught:
        JSON.delta_form(Publication(b"\xff", binary=True), None)
    assert caught.value.disconnect == errors.INAPPROPRIATE_PROTOCOL
