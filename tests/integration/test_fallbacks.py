"""The client protocol without WebSockets: streamed responses, and requests beside them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from tests.integration.serving import serving
from tests.servers import API_KEY, RunningServer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import bongsu
from bongsu.auth import sign_connection_token
from bongsu.node.handlers import Caller
from bongsu.settings import load

DEADLINE = 10.0
"""Seconds; less than the first ping takes, so that nothing here is found out by a missing pong."""

SECRET = "a secret of at least thirty-two bytes"
ORIGIN = "https://app.example.org"
ENV = {
    "BONGSU_ALLOWED_ORIGINS": f'["{ORIGIN}"]',
    "BONGSU_TOKEN__HMAC_SECRET": SECRET,
    "BONGSU_CHANNELS__NAMESPACES__closed__PRESENCE": "true",
    **{
        f"BONGSU_{name}__ENABLED": "true"
        for name in ("HTTP_STREAM", "SSE", "UNI_HTTP_STREAM", "UNI_SSE", "UNI_WEBSOCKET")
    },
    **{
        f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": "true"
        for name in (
            "PRESENCE",
            "ALLOW_SUBSCRIBE_FOR_CLIENT",
            "ALLOW_SUBSCRIBE_FOR_ANONYMOUS",
            "ALLOW_PUBLISH_FOR_SUBSCRIBER",
            "ALLOW_PUBLISH_FOR_ANONYMOUS",
            "ALLOW_PRESENCE_FOR_SUBSCRIBER",
            "ALLOW_PRESENCE_FOR_ANONYMOUS",
        )
    },
}
OPENING = ("http_stream", "sse", "uni_http_stream", "uni_sse")
BINARY = {"Content-Type": "application/octet-stream"}

Start = Callable[..., RunningServer]


# A client


def wire_class(name: str) -> Any:
    """A message class made from the protocol's description, as a client in another language would."""
    pool = DescriptorPool()
    description = files("bongsu.protocol.codec").joinpath("client.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(description).file:
        pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"bongsu.client.{name}"))


WireCommand, WireReply, WireEmulation = map(wire_class, ("Command", "Reply", "EmulationRequest"))


class JsonLines:
    """JSON, a message a line."""

    headers: dict[str, str] = {}  # noqa: RUF012  # never changed

    def frame(self, *commands: dict[str, Any]) -> bytes:
        return "\n".join(map(json.dumps, commands)).encode()

    def envelope(self, node: str, session: str, frame: bytes) -> bytes:
        return json.dumps({"node": node, "session": session, "data": frame.decode()}).encode()

    def split(self, received: bytearray) -> dict[str, Any] | None:
        """Take the first message out of `received`; None: it is not complete yet."""
        line, end, rest = received.partition(b"\n")
        if not end:
            return None
        received[:] = rest
        message: dict[str, Any] = json.loads(line)
        return message


class Events(JsonLines):
    """JSON, a message an event."""

    def split(self, received: bytearray) -> dict[str, Any] | None:
        if received.startswith(b"\n"):
            del received[:1]
        event, end, rest = received.partition(b"\n\n")
        if not end:
            return None
        assert event.startswith(b"data: ")
        received[:] = rest
        message: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
        return message


class Delimited:
    """Protobuf, each message after its length."""

    headers = BINARY

    def frame(self, *commands: dict[str, Any]) -> bytes:
        out = b""
        for command in commands:
            message = WireCommand(id=command.get("id", 0))
            for method, request in command.items():
                if method != "id":
                    fields = {name: value for name, value in request.items() if name != "data"}
                    ParseDict(fields, getattr(message, method))
                    getattr(message, method).SetInParent()
                if method == "publish":  # payloads are bytes here
                    message.publish.data = json.dumps(request["data"]).encode()
            octets = message.SerializeToString()
            assert len(octets) < 128
            out += bytes([len(octets)]) + octets
        return out

    def envelope(self, node: str, session: str, frame: bytes) -> bytes:
        octets: bytes = WireEmulation(node=node, session=session, data=frame).SerializeToString()
        return octets

    def split(self, received: bytearray) -> dict[str, Any] | None:
        size = shift = at = 0
        while at < len(received):
            size |= (received[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if received[at - 1] < 0x80:
                break
        else:
            return None
        if len(received) < at + size:
            return None
        reply = WireReply.FromString(bytes(received[at : at + size]))
        del received[: at + size]
        message: dict[str, Any] = MessageToDict(reply, preserving_proto_field_name=True)
        if "pub" in message.get("push", {}):
            message["push"]["pub"]["data"] = json.loads(reply.push.pub.data)
        return message


@dataclass(frozen=True)
class Way:
    """How a client opens its stream, and what it speaks there."""

    name: str
    path: str
    encoding: JsonLines | Delimited
    in_url: bool = False


WAYS = [
    Way("http_stream", "/connection/http_stream", JsonLines()),
    Way("http_stream, Protobuf", "/connection/http_stream", Delimited()),
    Way("sse", "/connection/sse", Events(), in_url=True),
    Way("sse, POST", "/connection/sse", Events()),
]
LINES, _, EVENTS, _ = WAYS


class Client:
    """A client of an emulated transport: it reads its stream, and sends each frame in a request."""

    def __init__(self, http: httpx.AsyncClient, response: httpx.Response, way: Way) -> None:
        self._http = http
        self._encoding = way.encoding
        self._chunks = response.aiter_raw()
        self._received = bytearray()
        self._id = 0
        self.response = response
        self.pushes: list[dict[str, Any]] = []
        self.id = self.session = self.node = ""
        self.ping = 0

    async def next(self) -> dict[str, Any] | None:
        """The next message; None: the response has ended."""
        async with asyncio.timeout(DEADLINE):
            while (message := self._encoding.split(self._received)) is None:
                try:
                    self._received += await anext(self._chunks)
                except StopAsyncIteration:
                    assert not self._received
                    return None
        return message

    async def send(
        self, *commands: dict[str, Any], session: str | None = None, node: str | None = None
    ) -> int:
        """One request; its status."""
        frame = self._encoding.frame(*commands)
        body = self._encoding.envelope(node or self.node, session or self.session, frame)
        answer = await self._http.post("/emulation", content=body, headers=self._encoding.headers)
        assert answer.content == b""
        return answer.status_code

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        self._id += 1
        assert await self.send({"id": self._id, method: request}) == 204
        return await self.answer(self._id, method)

    async def answer(self, id: int, method: str) -> dict[str, Any]:
        self._id = max(self._id, id)
        while True:
            message = await self.next()
            assert message is not None
            if "push" in message:
                self.pushes.append(message["push"])
            elif message.get("id") == id:
                assert "error" not in message, message
                result: dict[str, Any] = message.get(method, {})
                return result

    async def publication(self, channel: str) -> Any:
        """The data of the next publication in `channel`."""
        while True:
            for push in self.pushes:
                if push["channel"] == channel and "pub" in push:
                    self.pushes.remove(push)
                    return push["pub"]["data"]
            message = await self.next()
            assert message is not None
            if not message:  # a ping
                assert await self.send({}) == 204
            elif "push" in message:
                assert "disconnect" not in message["push"], message
                self.pushes.append(message["push"])

    async def until_the_end(self) -> list[dict[str, Any]]:
        """All that comes before the response ends."""
        messages = []
        while (message := await self.next()) is not None:
            messages.append(message)
        return messages


@asynccontextmanager
async def opened(url: str, way: Way, frame: bytes, **headers: str) -> AsyncIterator[Client]:
    """A client whose first frame is sent."""
    timeout = httpx.Timeout(DEADLINE)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, headers=headers) as http:
        if way.in_url:
            request = http.stream("GET", f"{way.path}?cf_connect={quote(frame)}")
        else:
            request = http.stream("POST", way.path, content=frame, headers=way.encoding.headers)
        async with request as response:
            yield Client(http, response, way)


@asynccontextmanager
async def client(url: str, way: Way) -> AsyncIterator[Client]:
    """A client that is connected."""
    async with opened(url, way, way.encoding.frame({"id": 1, "connect": {"name": "test"}})) as client:
        assert client.response.status_code == 200
        result = await client.answer(1, "connect")
        client.id, client.session, client.node = result["client"], result["session"], result["node"]
        client.ping = result["ping"]
        assert result["pong"]
        yield client


def api(url: str, method: str, **request: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/api/{method}", json=request, headers={"X-API-Key": API_KEY})
    result: dict[str, Any] = answer.json()["result"]
    return result


def present(url: str, channel: str) -> int:
    count: int = api(url, "presence_stats", channel=channel)["num_clients"]
    return count


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that only asking can tell. Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + DEADLINE
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.02)


# Servers


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`bongsu serve` with everything switched on."""
    server = RunningServer(tmp_path_factory.mktemp("fallbacks"), ENV, dev=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def url_of_shipped(shipped: RunningServer) -> str:
    return shipped.url


def app_of_this_process(directory: Path, monkeypatch: pytest.MonkeyPatch) -> bongsu.Bongsu:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    settings = load(
        dev=True,
        api_key=API_KEY,
        database_url=f"sqlite+aiosqlite:///{directory}/bongsu.sqlite",
        storage_url=f"file://{directory}/storage",
    )
    return bongsu.Bongsu(settings)


@pytest.fixture
async def plain_uvicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    async with serving(app_of_this_process(tmp_path, monkeypatch)) as address:
        yield address


@pytest.fixture(params=["bongsu serve", "uvicorn"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "uvicorn":
        address: str = request.getfixturevalue("plain_uvicorn")
        return address
    server: RunningServer = request.getfixturevalue("shipped")
    return server.url


# Both ways


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_a_client_subscribes_publishes_and_sees_who_is_there(url: str, way: Way) -> None:
    channel = way.name.replace(" ", "-")
    async with client(url, way) as one, client(url, LINES) as other:
        for each in (one, other):
            await each.call("subscribe", channel=channel)
        await one.call("publish", channel=channel, data={"text": "안녕"})
        for each in (one, other):
            assert await each.publication(channel) == {"text": "안녕"}
        await asyncio.to_thread(api, url, "publish", channel=channel, data=2)
        assert await one.publication(channel) == 2
        presence = (await one.call("presence", channel=channel))["presence"]
        assert presence.keys() == {one.id, other.id}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_who_goes_away_is_present_no_longer(url: str, way: Way) -> None:
    channel = f"gone-{way.name.replace(' ', '-')}"
    async with client(url, way) as leaving:
        await leaving.call("subscribe", channel=channel)
        assert await asyncio.to_thread(present, url, channel) == 1
    await until(lambda: present(url, channel) == 0, "the client to be gone")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_the_reason_for_an_end_is_the_last_message(url: str, way: Way) -> None:
    async with client(url, way) as breaking:
        assert await breaking.send({"id": 2, "connect": {}}) == 204
        *_, last = await breaking.until_the_end()
        assert last == {"push": {"disconnect": {"code": 3501, "reason": "bad request"}}}
        # Nobody holds the session any more; that is no error of the sender.
        assert await breaking.send({"id": 3, "presence": {"channel": "x"}}) == 204


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_a_first_frame_may_be_a_batch_and_a_bad_one_ends_in_3501(
    shipped: RunningServer, way: Way
) -> None:
    batch = way.encoding.frame({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "batch"}})
    async with opened(shipped.url, way, batch) as client:
        await client.answer(1, "connect")
        await client.answer(2, "subscribe")
    async with opened(shipped.url, way, b"\xff not a frame") as client:
        assert client.response.status_code == 200
        assert await client.until_the_end() == [
            {"push": {"disconnect": {"code": 3501, "reason": "bad request"}}}
        ]


async def test_commands_in_requests_one_after_another_keep_their_order(url: str) -> None:
    async with client(url, LINES) as sender:
        await sender.call("subscribe", channel="order")
        for number in range(50):
            status = await sender.send({"id": 10 + number, "publish": {"channel": "order", "data": number}})
            assert status == 204
        assert [await sender.publication("order") for _ in range(50)] == list(range(50))


async def test_the_commands_of_others_need_their_session(url: str) -> None:
    async with client(url, LINES) as own:
        await own.call("subscribe", channel="stolen")
        command = {"id": 9, "publish": {"channel": "stolen", "data": 1}}
        assert await own.send(command, session=own.id) == 204
        assert await own.send(command, node="no-such-replica") == 404
        await own.call("publish", channel="stolen", data=2)
        assert await own.publication("stolen") == 2


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[2]], ids=lambda way: way.name)
async def test_pings_come_in_the_stream_and_pongs_in_requests(bongsu_server: Start, way: Way) -> None:
    server = bongsu_server(**ENV, BONGSU_CLIENT__PING_INTERVAL="1s", BONGSU_CLIENT__PONG_TIMEOUT="900ms")
    async with client(server.url, way) as polite, client(server.url, way) as silent:
        assert polite.ping == 1
        for _ in range(3):
            assert await polite.next() == {}
            assert await polite.send({}) == 204
        *pings, last = await silent.until_the_end()
        assert pings == [{}]
        assert last == {"push": {"disconnect": {"code": 3012, "reason": "no pong"}}}
        await polite.call("subscribe", channel="alive")


async def test_a_replica_that_ends_tells_its_streams_to_connect_again(bongsu_server: Start) -> None:
    server = bongsu_server(**ENV)
    async with client(server.url, LINES) as one, client(server.url, EVENTS) as other:
        os.kill(server.pid, signal.SIGTERM)
        for each in (one, other):
            assert await each.until_the_end() == [
                {"push": {"disconnect": {"code": 3001, "reason": "shutdown"}}}
            ]


async def test_a_stream_that_is_not_read_is_cut_off_and_delays_nobody(bongsu_server: Start) -> None:
    """Setup: one reads nothing. Do: publish more than all buffers hold. Expect: it is out, and its
    connection is gone though nobody took what was sent; the other has everything.
    """
    server = bongsu_server(**ENV, BONGSU_CLIENT__DRAIN_TIMEOUT="1s")
    body = JsonLines().frame({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "slow"}})
    with socket.create_connection(("127.0.0.1", server.port)) as stuck:
        stuck.sendall(
            b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await until(lambda: present(server.url, "slow") == 1, "the slow client to be subscribed")
        port = stuck.getsockname()[1]
        async with client(server.url, LINES) as reader:
            await reader.call("subscribe", channel="slow")
            data = "x" * 60_000
            for number in range(200):
                await asyncio.to_thread(api, server.url, "publish", channel="slow", data=[number, data])
                assert await reader.publication("slow") == [number, data]
            await until(lambda: present(server.url, "slow") == 1, "the slow client to be out")
            connections = psutil.Process(server.pid).net_connections
            await until(
                lambda: port not in [one.raddr.port for one in connections() if one.raddr],
                "the connection to be cut off",
            )
            await reader.call("presence", channel="slow")
    assert "ASGI" not in server.log()
    assert "Traceback" not in server.log()


async def test_who_floods_a_busy_connection_with_requests_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests cannot be held back as a socket is; what waits for its turn has a bound all the same."""
    app = app_of_this_process(tmp_path, monkeypatch)
    answer_now = asyncio.Event()

    async def slow(caller: Caller, data: bytes) -> bytes:
        await answer_now.wait()
        return data

    app.handlers.rpc["slow"] = slow
    many = [{"id": 3 + number, "presence": {"channel": "x"}} for number in range(100)]
    async with serving(app) as url, client(url, LINES) as patient, client(url, LINES) as flooding:
        assert await flooding.send({"id": 2, "rpc": {"method": "slow", "data": 1}}) == 204
        for _ in range(70):
            assert await flooding.send(*many) == 204
        assert await flooding.until_the_end() == [
            {"push": {"disconnect": {"code": 3013, "reason": "too many requests"}}}
        ]
        for _ in range(2):  # having worked off what there is, it may be given as much again
            answer_now.clear()
            assert await patient.send({"id": 2, "rpc": {"method": "slow", "data": 1}}) == 204
            for _ in range(50):
                assert await patient.send(*many) == 204
            answer_now.set()
            assert await patient.answer(2, "rpc") == {"data": 1}
            for _ in range(50 * len(many)):
                reply = await patient.next()
                assert reply is not None
                assert "error" in reply
        await patient.call("subscribe", channel="x")


# Requests


@pytest.mark.parametrize("name", OPENING)
async def test_answers_are_not_to_be_kept_or_buffered(url: str, name: str) -> None:
    body = b"{}" if name.startswith("uni_") else b'{"id":1,"connect":{}}'
    async with (
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", f"/connection/{name}", content=body) as response,
    ):
        assert response.status_code == 200
        headers = response.headers
        first = await anext(response.aiter_raw())
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "private, no-cache, no-store, must-revalidate, max-age=0"
    assert headers["pragma"] == "no-cache"
    assert headers["expire"] == "0"
    if name.endswith("sse"):
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert first.startswith(b"\n"), "with a CR the npm package eventsource would lose the event behind it"


@pytest.mark.parametrize("path", [*(f"/connection/{name}" for name in OPENING), "/emulation"])
def test_bodies_have_a_limit_and_paths_their_methods(url_of_shipped: str, path: str) -> None:
    has_get = path.endswith("sse")
    allowed = "GET, POST, OPTIONS" if has_get else "POST, OPTIONS"
    with httpx.Client(base_url=url_of_shipped) as http:
        assert http.post(path, content=b" " * (64 * 1024 + 1)).status_code == 413
        for method in ("PUT", "DELETE", "HEAD", *([] if has_get else ["GET"])):
            refused = http.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
        preflight = http.options(path)
        assert (preflight.status_code, preflight.content) == (204, b"")
        assert preflight.headers["access-control-allow-methods"] == allowed
        assert preflight.headers["access-control-max-age"] == "300"
        assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b'{"session": 1}', b"\xff"])
@pytest.mark.parametrize("headers", [{}, BINARY], ids=["JSON", "Protobuf"])
def test_an_emulation_request_that_cannot_be_read_is_400(
    url_of_shipped: str, body: bytes, headers: dict[str, str]
) -> None:
    answer = httpx.post(f"{url_of_shipped}/emulation", content=body, headers=headers)
    # To Protobuf nothing is a request too, to a replica without a name.
    assert answer.status_code == (404 if headers and not body else 400)
    assert answer.content == b""


@pytest.mark.parametrize("request_line", ["sse", "uni_sse?cf_connect={", "uni_sse?cf_connect="])
def test_events_without_a_first_frame_are_400(url_of_shipped: str, request_line: str) -> None:
    answer = httpx.get(f"{url_of_shipped}/connection/{request_line}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize("path", [*(f"/connection/{name}" for name in OPENING), "/emulation"])
@pytest.mark.parametrize("origin", [ORIGIN, "own"])
def test_pages_of_allowed_origins_may_read_answers_even_refusals(
    url_of_shipped: str, path: str, origin: str
) -> None:
    origin = url_of_shipped if origin == "own" else origin
    with httpx.Client(base_url=url_of_shipped, headers={"Origin": origin}) as http:
        preflight = http.options(
            path,
            headers={
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type, x-own",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "content-type, x-own"
        refused = http.post(path, content=b" " * (64 * 1024 + 1))
        assert refused.status_code == 413
        for answer in (preflight, refused):
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("path", [*(f"/connection/{name}" for name in OPENING), "/emulation"])
def test_pages_of_other_origins_are_refused(url_of_shipped: str, path: str) -> None:
    with httpx.Client(base_url=url_of_shipped, headers={"Origin": "https://elsewhere.example"}) as http:
        answers = [http.post(path, content=b"{}")]
        if path.endswith("sse"):
            answers.append(http.get(f"{path}?cf_connect={{}}"))
        assert [answer.status_code for answer in answers] == [403] * len(answers)
        for answer in (*answers, http.options(path)):
            assert "access-control-allow-origin" not in answer.headers


async def test_the_stream_itself_may_be_read_by_pages_of_allowed_origins(url: str) -> None:
    frame = JsonLines().frame({"id": 1, "connect": {}})
    for way in (LINES, EVENTS):
        async with opened(url, way, frame, Origin=ORIGIN) as client:
            assert client.response.headers["access-control-allow-origin"] == ORIGIN


async def test_what_is_not_switched_on_is_not_there(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_HTTP_STREAM__ENABLED="false", BONGSU_SSE__ENABLED="false")
    for path in (*(f"/connection/{name}" for name in OPENING), "/emulation"):
        answer = await asyncio.to_thread(httpx.post, f"{server.url}{path}", content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{server.ws_url}/connection/uni_websocket")
    assert refused.value.response.status_code == 404


# One way


def token(**claims: Any) -> str:
    return sign_connection_token(SECRET, user="42", now=time.time(), ttl=60, **claims)


UNI_WAYS = [
    Way("uni_http_stream", "/connection/uni_http_stream", JsonLines()),
    Way("uni_sse", "/connection/uni_sse", Events(), in_url=True),
    Way("uni_sse, POST", "/connection/uni_sse", Events()),
]


@pytest.mark.parametrize("way", UNI_WAYS, ids=lambda way: way.name)
async def test_a_listener_is_sent_bare_pushes_of_its_channels(url: str, way: Way) -> None:
    channel = f"to-{way.name.replace(' ', '-')}"
    request = json.dumps({"token": token(channels=[channel]), "name": "curl"}).encode()
    async with opened(url, way, request) as listener:
        first = await listener.next()
        assert first is not None
        opened_with = first["connect"]
        assert opened_with["subs"].keys() == {channel}
        assert opened_with["session"]
        assert "pong" not in opened_with
        await asyncio.to_thread(api, url, "publish", channel=channel, data={"text": "안녕"})
        assert await listener.next() == {"channel": channel, "pub": {"data": {"text": "안녕"}}}
        presence = await asyncio.to_thread(api, url, "presence", channel=channel)
        assert [info["user"] for info in presence["presence"].values()] == ["42"]
    await until(lambda: present(url, channel) == 0, "the listener to be gone")


async def test_a_listener_asks_for_what_it_may_subscribe_to(url: str) -> None:
    request = json.dumps({"subs": {"asked-for": {}, "closed:x": {}}}).encode()
    async with opened(url, UNI_WAYS[0], request) as listener:
        first = await listener.next()
        assert first is not None
        assert first["connect"]["subs"].keys() == {"asked-for"}


async def test_an_empty_request_is_enough_for_a_listener_and_pings_need_no_answer(
    bongsu_server: Start,
) -> None:
    server = bongsu_server(**ENV, BONGSU_CLIENT__PING_INTERVAL="500ms", BONGSU_CLIENT__PONG_TIMEOUT="400ms")
    async with opened(server.url, UNI_WAYS[0], b"{}") as listener:
        first = await listener.next()
        assert first is not None
        assert first["connect"]["ping"] == 1
        for _ in range(4):
            assert await listener.next() == {}
    async with connect(f"{server.ws_url}/connection/uni_websocket", ping_interval=None) as socket:
        await socket.send("{}")
        async with asyncio.timeout(DEADLINE):
            assert "connect" in json.loads(await socket.recv())
            for _ in range(4):
                assert await socket.recv() == "{}"


@pytest.mark.parametrize("way", UNI_WAYS, ids=lambda way: way.name)
async def test_a_refused_listener_is_told_why_at_the_end_of_its_stream(
    shipped: RunningServer, way: Way
) -> None:
    expired = sign_connection_token(SECRET, user="42", now=time.time() - 60, ttl=1)
    for text, code, reason in ((expired, 3005, "connection expired"), ("x", 3500, "invalid token")):
        async with opened(shipped.url, way, json.dumps({"token": text}).encode()) as listener:
            assert await listener.until_the_end() == [{"disconnect": {"code": code, "reason": reason}}]


async def test_a_listening_socket_connects_by_its_url_or_its_first_frame(url: str) -> None:
    address = f"{url.replace('http', 'ws')}/connection/uni_websocket"
    request = json.dumps({"token": token(channels=["to-sockets"])})
    async with connect(address) as by_frame, connect(f"{address}?cf_connect={quote(request)}") as by_url:
        await by_frame.send(request)
        async with asyncio.timeout(DEADLINE):
            for each in (by_frame, by_url):
                assert json.loads(await each.recv())["connect"]["subs"].keys() == {"to-sockets"}
                await each.send("what it says now is not listened to")
            await asyncio.to_thread(api, url, "publish", channel="to-sockets", data=1)
            for each in (by_frame, by_url):
                assert json.loads(await each.recv()) == {"channel": "to-sockets", "pub": {"data": 1}}


async def test_a_refused_listening_socket_is_told_why_in_a_push_and_in_the_close_frame(url: str) -> None:
    for frame, code, reason in (('{"token":"x"}', 3500, "invalid token"), ("x", 3501, "bad request")):
        async with connect(f"{url.replace('http', 'ws')}/connection/uni_websocket") as socket:
            await socket.send(frame)
            async with asyncio.timeout(DEADLINE):
                assert json.loads(await socket.recv()) == {"disconnect": {"code": code, "reason": reason}}
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
