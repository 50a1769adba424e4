"""Requests and results of the server API."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.protocol import api, errors
from bongsu.protocol.api import MalformedRequest, Refused, UnknownMethod
from bongsu.protocol.errors import ApiError
from bongsu.protocol.messages import (
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    RPCResult,
    StreamPosition,
)


@pytest.mark.parametrize(
    ("method", "body", "request_"),
    [
        ("publish", b'{"channel":"c","data":{"a": 1}}', api.PublishRequest(channel="c", data=b'{"a": 1}')),
        (
            "publish",
            b'{"channel":"c","data":null,"skip_history":true,"tags":{"k":"v"},"idempotency_key":"i","delta":true,'
            b'"version":18446744073709551615,"version_epoch":"e","unknown":[]}',
            api.PublishRequest(
                channel="c",
                data=b"null",
                skip_history=True,
                tags={"k": "v"},
                idempotency_key="i",
                delta=True,
                version=2**64 - 1,
                version_epoch="e",
            ),
        ),
        (
            "broadcast",
            b'{"channels":["a","b"],"data":1}',
            api.BroadcastRequest(channels=["a", "b"], data=b"1"),
        ),
        (
            "subscribe",
            b'{"user":"42","channel":"c","b64info":"AA==","data":\n[1],"expire_at":9,'
            b'"recover_since":{"offset":1,"epoch":"e"},"override":{"presence":{"value":true}}}',
            api.SubscribeRequest(
                user="42",
                channel="c",
                info=b"\0",
                b64info="AA==",
                data=b"[1]",
                expire_at=9,
                recover_since=StreamPosition(1, "e"),
                override=api.ChannelOverride(presence=api.OptionValue(True)),
            ),
        ),
        ("unsubscribe", b'{"user":"42"}', api.UnsubscribeRequest(user="42")),
        ("disconnect", b'{"whitelist":["a"]}', api.DisconnectRequest(whitelist=["a"])),
        (
            "disconnect",
            b'{"disconnect":{"code":4500,"reason":"banned"}}',
            api.DisconnectRequest(disconnect=api.DisconnectReason(4500, "banned")),
        ),
        (
            "disconnect",
            b'{"disconnect":{"code":4000}}',
            api.DisconnectRequest(disconnect=api.DisconnectReason(4000, "force disconnect")),
        ),
        ("refresh", b'{"user":"42","info":{}}', api.RefreshRequest(user="42", info=b"{}")),
        ("presence", b'{"channel":"c"}', api.PresenceRequest("c")),
        ("presence_stats", b'{"channel":"c"}', api.PresenceStatsRequest("c")),
        (
            "history",
            b'{"channel":"c","limit":-1,"since":{"offset":3},"reverse":true}',
            api.HistoryRequest("c", -1, StreamPosition(3), reverse=True),
        ),
        ("history", b'{"channel":"c"}', api.HistoryRequest("c")),
        ("history_remove", b'{"channel":"c"}', api.HistoryRemoveRequest("c")),
        ("channels", b"{}", api.ChannelsRequest()),
        ("channels", b'{"pattern":null}', api.ChannelsRequest()),
        ("info", b"", api.InfoRequest()),
        ("rpc", b'{"method":"m","params":[1]}', api.RPCRequest("m", b"[1]")),
    ],
)
def test_a_request_is_decoded(method: str, body: bytes, request_: api.Request) -> None:
    assert api.decode(method, body) == request_


def test_an_unknown_method_is_not_found() -> None:
    with pytest.raises(UnknownMethod):
        api.decode("map_publish", b"{}")


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"channel":1}', b'{"channel":"c","tags":{"k":1}}'])
def test_a_body_of_another_form_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        api.decode("publish", body)


@pytest.mark.parametrize(
    ("method", "body", "complaint"),
    [
        ("publish", b'{"data":1}', "channel is missing"),
        ("broadcast", b'{"data":1}', "channels is missing"),
        ("broadcast", b'{"channels":[%b]}' % b",".join([b'"c"'] * 10_001), "more than 10000"),
        ("subscribe", b"", "channel is missing"),
        ("presence", b"", "channel is missing"),
        ("presence_stats", b"", "channel is missing"),
        ("history", b"", "channel is missing"),
        ("history_remove", b"", "channel is missing"),
        ("rpc", b"", "method is missing"),
        ("batch", b'{"commands":[%b]}' % b",".join([b"{}"] * 1001), "more than 1000"),
        ("publish", b'{"channel":"c","b64data":"?"}', "not base64"),
        ("publish", b'{"channel":"c","b64data":"\xeb\xb4\x89"}', "not base64"),
        ("publish", b'{"channel":"c","version":18446744073709551616}', "out of range"),
        ("history", b'{"channel":"c","since":{"offset":18446744073709551616}}', "out of range"),
        ("disconnect", b'{"disconnect":{"code":1000,"reason":"x"}}', "3000-4999"),
        ("disconnect", b'{"disconnect":{"code":4000,"reason":"%s"}}' % (b"x" * 124), "1-123 bytes"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_with_107(method: str, body: bytes, complaint: str) -> None:
    with pytest.raises(Refused, match=complaint) as caught:
        api.decode(method, body)
    assert caught.value.error == errors.API_BAD_REQUEST


@pytest.mark.parametrize(
    ("body", "publication"),
    [
        (b'{"channel":"c","data":[1],"tags":{"k":"v"}}', Publication(b"[1]", tags={"k": "v"})),
        (b'{"channel":"c","data":1,"b64data":"IDIK"}', Publication(b"2")),  # " 2\n": JSON after all
        (b'{"channel":"c","b64data":"/w=="}', Publication(b"\xff", binary=True)),
        (b'{"channel":"c"}', Publication(b"")),
    ],
)
def test_a_request_makes_a_publication(body: bytes, publication: Publication) -> None:
    request = api.decode("publish", body)
    assert isinstance(request, api.PublishRequest)
    assert request.publication() == publication


def test_a_batch_is_decoded_command_by_command() -> None:
    body = b'{"commands":[{"publish":{"channel":"c","data":1}},{"presence":{}},{"info":{}}],"parallel":true}'
    batch = api.decode("batch", body)
    assert isinstance(batch, api.BatchRequest)
    assert batch.parallel
    (publish, first), (presence, second), (info, third) = api.decode_batch(batch)
    assert (publish, presence, info) == ("publish", "presence", "info")
    assert (first, third) == (api.PublishRequest(channel="c", data=b"1"), api.InfoRequest())
    assert isinstance(second, Refused)
    assert second.error == errors.API_BAD_REQUEST


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"{}", errors.API_NOT_FOUND),
        (b'{"nonsense":{}}', errors.API_NOT_FOUND),
        (b'{"batch":{}}', errors.API_NOT_FOUND),
        (b'{"info":{},"channels":{}}', errors.API_BAD_REQUEST),
    ],
)
def test_a_command_of_a_batch_that_is_none_is_refused_alone(command: bytes, error: ApiError) -> None:
    batch = api.decode("batch", b'{"commands":[%b,{"info":{}}]}' % command)
    assert isinstance(batch, api.BatchRequest)
    (method, refused), (_, other) = api.decode_batch(batch)
    assert isinstance(refused, Refused)
    assert (method, refused.error) == ("batch", error)
    assert other == api.InfoRequest()


def test_a_batch_with_a_request_of_another_form_is_malformed() -> None:
    batch = api.decode("batch", b'{"commands":[{"info":{}},{"info":1}]}')
    assert isinstance(batch, api.BatchRequest)
    with pytest.raises(MalformedRequest):
        api.decode_batch(batch)


@pytest.mark.parametrize(
    ("answer", "wire"),
    [
        (api.PublishResult(), {"result": {}}),
        (api.PublishResult(7, "e"), {"result": {"offset": 7, "epoch": "e"}}),
        (
            api.BroadcastResult([api.PublishResult(1, "e"), errors.API_UNKNOWN_CHANNEL, api.PublishResult()]),
            {
                "result": {
                    "responses": [
                        {"result": {"offset": 1, "epoch": "e"}},
                        {"error": {"code": 102, "message": "unknown channel"}},
                        {"result": {}},
                    ]
                }
            },
        ),
        (api.EmptyResult(), {"result": {}}),
        (PresenceResult(), {"result": {"presence": {}}}),
        (PresenceStatsResult(), {"result": {"num_clients": 0, "num_users": 0}}),
        (
            HistoryResult([Publication(b'{"a":1}', offset=1)], "e", 1),
            {"result": {"publications": [{"data": {"a": 1}, "offset": 1}], "epoch": "e", "offset": 1}},
        ),
        (api.ChannelsResult({}), {"result": {"channels": {}}}),
        (api.ChannelsResult({"c": api.ChannelInfo()}), {"result": {"channels": {"c": {"num_clients": 0}}}}),
        (
            api.InfoResult([api.NodeInfo("u", "n", "v", num_clients=2)]),
            {
                "result": {
                    "nodes": [
                        {
                            "uid": "u",
                            "name": "n",
                            "version": "v",
                            "num_clients": 2,
                            "num_users": 0,
                            "num_subs": 0,
                            "num_channels": 0,
                            "uptime": 0,
                        }
                    ]
                }
            },
        ),
        (RPCResult(b"[1]"), {"result": {"data": [1]}}),
        (ApiError(1000, "an application's"), {"error": {"code": 1000, "message": "an application's"}}),
    ],
)
def test_an_answer_is_encoded(answer: api.Result | ApiError, wire: object) -> None:
    assert json.loads(api.encode_answer(answer)) == wire


def test_an_answer_to_a_batch_has_no_result_around_it() -> None:
    answers: list[tuple[str, api.Result | ApiError]] = [
        ("publish", api.PublishResult(1, "e")),
        ("info", errors.API_INTERNAL),
    ]
    assert json.loads(api.encode_batch(answers)) == {
        "replies": [
            {"publish": {"offset": 1, "epoch": "e"}},
            {"error": {"code": 100, "message": "internal server error"}},
        ]
    }


def test_an_error_in_transport_mode_stands_alone() -> None:
    assert json.loads(api.encode_error(errors.API_CONFLICT)) == {"code": 113, "message": "conflict"}


@given(st.sampled_from(sorted(api.METHODS)), st.binary(max_size=60))
def test_whatever_comes_is_decoded_or_refused(method: str, body: bytes) -> None:
    try:
        outcome: object = type(api.decode(method, body))
    except (MalformedRequest, Refused) as error:
        outcome = type(error)
    assert outcome in (api.METHODS[method], MalformedRequest, Refused)
