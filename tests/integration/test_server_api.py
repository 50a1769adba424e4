"""The server API of the shipped command, method by method."""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.servers import API_KEY, RedisServer, RunningServer

CHANNELS = {
    "HISTORY_SIZE": "10",
    "HISTORY_TTL": "300s",
    "PRESENCE": "true",
}
ENV = {
    **{f"BONGSU_CHANNELS__NAMESPACES__kept__{name}": value for name, value in CHANNELS.items()},
    "BONGSU_CHANNELS__NAMESPACES__objects__PUBLICATION_DATA_FORMAT": "json_object",
    "BONGSU_CHANNELS__NAMESPACES__anything__PUBLICATION_DATA_FORMAT": "binary",
    "BONGSU_CHANNELS__NAMESPACES__anything__HISTORY_SIZE": "10",
    "BONGSU_CHANNELS__NAMESPACES__anything__HISTORY_TTL": "300s",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("api"), ENV, dev=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Api:
    """One backend."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"X-API-Key": API_KEY})

    def post(self, method: str, body: Any, **headers: str) -> httpx.Response:
        return self._http.post(f"/api/{method}", json=body, headers=headers)

    def call(self, method: str, /, **request: Any) -> Any:
        answer = self.post(method, request)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]

    def fail(self, method: str, /, **request: Any) -> int:
        answer = self.post(method, request)
        assert answer.status_code == 200, answer.text
        code: int = answer.json()["error"]["code"]
        return code

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def api(server: RunningServer) -> Iterator[Api]:
    api = Api(server.url)
    try:
        yield api
    finally:
        api.close()


def test_publishing_with_history_answers_the_position_and_without_it_nothing(api: Api) -> None:
    assert api.call("publish", channel="news", data={"a": 1}) == {}
    first = api.call("publish", channel="kept:position", data=1)
    second = api.call("publish", channel="kept:position", data=2)
    assert (first["offset"], second["offset"]) == (1, 2)
    assert first["epoch"] == second["epoch"] != ""
    assert api.call("publish", channel="kept:position", data=3, skip_history=True) == {}
    assert api.call("history", channel="kept:position", limit=-1)["offset"] == 2


def test_history_pages_both_ways_and_keeps_data_and_tags(api: Api) -> None:
    channel = "kept:pages"
    for number in range(12):
        api.call("publish", channel=channel, data={"n": number}, tags={"n": str(number)})

    def offsets(**request: Any) -> list[int]:
        page = api.call("history", channel=channel, **request)
        assert page["offset"] == 12
        return [publication["offset"] for publication in page["publications"]]

    epoch = api.call("history", channel=channel)["epoch"]
    assert offsets() == []
    assert offsets(limit=-1) == list(range(3, 13))
    assert offsets(limit=3) == [3, 4, 5]
    assert offsets(limit=3, reverse=True) == [12, 11, 10]
    assert offsets(limit=3, since={"offset": 6, "epoch": epoch}) == [7, 8, 9]
    assert offsets(limit=3, since={"offset": 6, "epoch": epoch}, reverse=True) == [5, 4, 3]
    page = api.call("history", channel=channel, limit=1, since={"offset": 6})
    assert page["publications"] == [{"data": {"n": 6}, "offset": 7, "tags": {"n": "6"}}]
    assert api.fail("history", channel=channel, limit=1, since={"offset": 6, "epoch": "other"}) == 112
    assert api.fail("history", channel=channel, limit=1, since={"epoch": epoch}, reverse=True) == 107
    assert api.call("history_remove", channel=channel) == {}
    assert offsets(limit=-1) == []


def test_a_repeat_with_the_same_key_publishes_nothing(api: Api) -> None:
    request = {"channel": "kept:once", "data": 1, "idempotency_key": "k"}
    assert api.call("publish", **request) == api.call("publish", **request)
    assert len(api.call("history", channel="kept:once", limit=-1)["publications"]) == 1
    assert api.call("publish", channel="news", data=1, idempotency_key="k") == {}


def test_a_version_that_is_not_newer_publishes_nothing(api: Api) -> None:
    for version in (5, 5, 4, 6):
        api.call("publish", channel="kept:versions", data=version, version=version)
    kept = api.call("history", channel="kept:versions", limit=-1)["publications"]
    assert [publication["data"] for publication in kept] == [5, 6]


def test_bytes_in_base64_are_published_as_what_they_are(api: Api) -> None:
    json_bytes = base64.b64encode(b'{"a": 1}').decode()
    api.call("publish", channel="kept:base64", b64data=json_bytes, data="ignored")
    kept = api.call("history", channel="kept:base64", limit=-1)["publications"]
    assert [publication["data"] for publication in kept] == [{"a": 1}]
    assert api.fail("publish", channel="news", b64data="not base64!") == 107
    api.call("publish", channel="anything:x", b64data=base64.b64encode(b"\x00\xff").decode())
    assert api.fail("history", channel="anything:x", limit=-1) == 108


def test_broadcast_answers_for_each_channel_in_order(api: Api) -> None:
    responses = api.call("broadcast", channels=["kept:a", "none:x", "news"], data=1)["responses"]
    assert responses[0]["result"]["offset"] == 1
    assert responses[1]["error"]["code"] == 102
    assert responses[2] == {"result": {}}
    assert api.fail("broadcast", channels=[], data=1) == 107
    many = api.call("broadcast", channels=[f"kept:{i}" for i in range(10_000)], data=1)["responses"]
    assert [one["result"]["offset"] for one in many] == [1] * 10_000


def test_a_backend_that_leaves_with_requests_unanswered_is_no_error(
    bongsu_server: Callable[..., RunningServer], redis_server: RedisServer
) -> None:
    """
    Setup: Redis, so that answers are waited for. Do: many publishes in one write, then a reset, as often
    as it takes to meet in every way.
    Expect: nothing in the log.
    """
    server = bongsu_server(BONGSU_BROKER_URL=redis_server.url)
    address = urlsplit(server.url)
    body = b'{"channel":"news","data":{}}'
    request = (
        f"POST /api/publish HTTP/1.1\r\nHost: {address.netloc}\r\nX-API-Key: {server.api_key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    for answered in range(20):
        with socket.create_connection((address.hostname, address.port), timeout=30) as backend:
            backend.sendall(request * 200)
            for _ in range(answered):
                backend.recv(100)
            backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert "Exception in ASGI application" not in server.log()


def test_a_batch_takes_effect_in_its_order(api: Api) -> None:
    commands = [
        {"publish": {"channel": "kept:batch", "data": 1}},
        {"publish": {"channel": "none:x", "data": 1}},
        {"history": {"channel": "kept:batch", "limit": -1}},
        {"publish": {"channel": "kept:batch", "data": 2}},
        {"presence_stats": {"channel": "kept:batch"}},
    ]
    for parallel in (False, True):
        replies = api.post("batch", {"commands": commands, "parallel": parallel}).json()["replies"]
        assert [next(iter(reply)) for reply in replies] == [
            "publish",
            "error",
            "history",
            "publish",
            "presence_stats",
        ]
    kept = api.call("history", channel="kept:batch", limit=-1)["publications"]
    assert [publication["data"] for publication in kept] == [1, 2, 1, 2]


def test_each_command_of_a_batch_is_answered_also_those_that_are_none(api: Api) -> None:
    commands = [
        {"nonsense": {}},
        {"publish": {"channel": "kept:each", "data": 1}},
        {"publish": {}, "history": {}},
        {},
    ]
    replies = api.post("batch", {"commands": commands}).json()["replies"]
    assert [reply.get("error", {}).get("code") for reply in replies] == [104, None, 107, 104]
    assert replies[1]["publish"]["offset"] == 1


def test_presence_is_there_where_the_namespace_keeps_it(api: Api) -> None:
    assert api.call("presence", channel="kept:p") == {"presence": {}}
    assert api.call("presence_stats", channel="kept:p") == {"num_clients": 0, "num_users": 0}
    assert api.fail("presence", channel="news") == 108
    assert api.fail("presence_stats", channel="news") == 108
    assert api.fail("history", channel="news") == 108
    assert api.fail("history_remove", channel="news") == 108


REFUSED = [
    ("publish", {"data": 1}, 107),
    ("publish", {"channel": "news"}, 107),
    ("publish", {"channel": "none:x", "data": 1}, 102),
    ("publish", {"channel": "채널", "data": 1}, 107),
    ("publish", {"channel": "objects:x", "data": [1]}, 107),
    ("history", {}, 107),
    ("presence", {"channel": "none:x"}, 102),
    ("rpc", {}, 107),
    ("rpc", {"method": "nobody"}, 104),
]


@pytest.mark.parametrize(("method", "request_body", "code"), REFUSED)
def test_refusals_have_their_codes_and_in_transport_mode_a_status(
    api: Api, method: str, request_body: dict[str, Any], code: int
) -> None:
    assert api.fail(method, **request_body) == code
    answer = api.post(method, request_body, **{"X-Centrifugo-Error-Mode": "transport"})
    assert answer.status_code == {102: 404, 104: 404, 107: 400, 108: 400}[code]
    assert answer.json()["code"] == code


def test_sequential_calls_keep_their_order(api: Api) -> None:
    for number in range(50):
        api.call("publish", channel="kept:order", data=number)
    kept = api.call("history", channel="kept:order", limit=-1)["publications"]
    assert [publication["data"] for publication in kept] == list(range(40, 50))


def test_a_body_that_comes_in_pieces_is_waited_for(api: Api, server: RunningServer) -> None:
    body = b'{"channel":"kept:pieces","data":1}'
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /api/publish HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
            b"X-API-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (API_KEY.encode(), len(body), body[:10])
        )
        api.call("info")  # the first piece is read before this is answered
        connection.sendall(body[10:])
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"offset":1' in answer


def test_the_api_document_shows_every_method_with_examples(server: RunningServer) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    from bongsu.api.server import METHODS

    shown = {path.removeprefix("/api/") for path in paths if path.startswith("/api/")}
    assert shown == METHODS
    for method in METHODS:
        content = paths[f"/api/{method}"]["post"]["requestBody"]["content"]["application/json"]
        assert "example" in content
