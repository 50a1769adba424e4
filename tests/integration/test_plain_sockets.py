"""`/ws` and `/ws/{channel}` on the shipped command, and on plain uvicorn where that must do as well."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from deploy.child import Child
from deploy.replica import answers
from tests.servers import API_KEY, RedisServer, RunningServer, free_port, outer_environment
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bongsu.auth import sign_connection_token

DEADLINE = 15.0
SECRET = "a secret of at least thirty-two bytes"

Start = Callable[..., RunningServer]


class PlainUvicorn:
    """The app under uvicorn as it comes, without our protocol class."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}"
        self.child = Child(
            "uvicorn",
            [
                *(sys.executable, "-m", "uvicorn", "--factory", "bongsu.app:create_app"),
                *("--port", str(self.port), "--ws", "websockets-sansio"),
            ],
            log=directory / "uvicorn.log",
            env={
                **outer_environment(),
                "BONGSU_DEV": "true",
                "BONGSU_API_KEY": API_KEY,
                "BONGSU_STORAGE_URL": f"file://{directory}/storage",
            },
            cwd=directory,
        )
        self.child.start()
        self.child.await_ready(lambda: answers(f"{self.url}/livez"))

    @property
    def pid(self) -> int:
        return self.child.pid

    def log(self) -> str:
        return self.child.log()


Server = RunningServer | PlainUvicorn


@pytest.fixture(params=["bongsu serve", "uvicorn"])
def server(request: pytest.FixtureRequest, tmp_path: Path, bongsu_server: Start) -> Iterator[Server]:
    if request.param == "bongsu serve":
        yield bongsu_server()
        return
    plain = PlainUvicorn(tmp_path)
    try:
        yield plain
    finally:
        plain.child.stop()


@asynccontextmanager
async def clients(
    server: Server, count: int, path: str = "/ws", **options: Any
) -> AsyncIterator[list[ClientConnection]]:
    async with asyncio.timeout(4 * DEADLINE), AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(f"{server.ws_url}{path}", **options))
            for _ in range(count)
        ]


async def receive(client: ClientConnection) -> str:
    async with asyncio.timeout(DEADLINE):
        message = await client.recv()
    assert isinstance(message, str)
    return message


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that only asking can tell. Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + DEADLINE
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.02)


def ready(server: Server, expected: int = 200) -> Callable[[], bool]:
    return lambda: answers(f"{server.url}/readyz", expected)


def health(server: Server) -> str:
    answer: str = httpx.get(f"{server.url}/readyz").json()["health"]
    return answer


def status(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{server.url}/status").json()
    return answer


def metric(server: Server, line: str) -> float:
    for row in httpx.get(f"{server.url}/metrics").text.splitlines():
        if row.startswith(line + " "):
            return float(row.rsplit(" ", 1)[1])
    return 0.0


def publish(server: Server, body: str | bytes, key: str = API_KEY) -> httpx.Response:
    return httpx.post(f"{server.url}/api/publish", content=body, headers={"X-API-Key": key})


async def test_what_one_client_sends_reaches_all_in_the_words_of_the_contract(server: Server) -> None:
    async with clients(server, 3) as everybody:
        for number, sender in enumerate(everybody):
            await sender.send(f'안녕 "{number}" <b>\n')
            for client in everybody:
                assert await receive(client) == f'📢 새로운 알림: 안녕 "{number}" <b>\n'


async def test_one_senders_messages_arrive_in_order_at_everybody(server: Server) -> None:
    async with clients(server, 5) as everybody:
        sent = [str(number) for number in range(2000)]

        async def send() -> None:
            for text in sent:
                await everybody[0].send(text)

        sending = asyncio.create_task(send())
        for client in everybody:
            assert [(await receive(client)).rsplit(" ", 1)[1] for _ in sent] == sent
        await sending


async def test_channels_are_apart_and_ws_is_the_channel_broadcast(server: Server) -> None:
    async with (
        clients(server, 1) as [plain],
        clients(server, 1, "/ws/broadcast") as [named],
        clients(server, 1, "/ws/news") as [news],
    ):
        await news.send("only here")
        assert await receive(news) == "📢 새로운 알림: only here"
        await plain.send("there")
        assert await receive(plain) == await receive(named) == "📢 새로운 알림: there"


async def test_what_a_backend_publishes_arrives_as_the_same_json(server: Server) -> None:
    documents = [
        '{"z":1, "a" : [1.0, 1e400, 12345678901234567890123, "\\u00e9 é"]}',
        '"a string is JSON here too"',
        "null",
        "0",
    ]
    async with clients(server, 1, "/ws/news") as [client]:
        for document in documents:
            answer = publish(server, '{"channel":"news","data":' + document + "}")
            assert (answer.status_code, answer.json()) == (200, {"result": {}})
            assert await receive(client) == document
        publish(server, '{"channel":"news","data":{"a":\n1\r\n}}')
        assert await receive(client) == '{"a":1}'


API_REFUSALS: list[tuple[str, int]] = [
    ('{"data":1}', 107),
    ('{"channel":"","data":1}', 107),
    ('{"channel":"news"}', 107),
    ('{"channel":"unknown:x","data":1}', 102),
    ('{"channel":"채널","data":1}', 107),
    ('{"channel":"' + "x" * 256 + '","data":1}', 107),
]


@pytest.mark.parametrize(("body", "code"), API_REFUSALS)
def test_the_server_api_refuses_with_its_codes(one_server: RunningServer, body: str, code: int) -> None:
    answer = publish(one_server, body)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == code


def test_the_server_api_wants_its_key_a_known_method_and_json(one_server: RunningServer) -> None:
    good = '{"channel":"news","data":1}'
    for wrong in ("", "wrong", API_KEY + "x"):
        answer = publish(one_server, good, wrong)
        assert (answer.status_code, answer.content) == (401, b"")
    assert httpx.post(f"{one_server.url}/api/publish", content=good).status_code == 401
    key = {"X-API-Key": API_KEY}
    assert httpx.post(f"{one_server.url}/api/nothing", content=good, headers=key).status_code == 404
    assert httpx.get(f"{one_server.url}/api/publish", headers=key).status_code == 405
    for body in ("", "{", '{"channel":"news","data":}', "\x00", "[" * 100_000):
        assert publish(one_server, body).status_code in (400, 200)
    assert publish(one_server, "{").status_code == 400
    assert publish(one_server, '{"channel":"news","data":"' + "x" * 2**20 + '"}').status_code == 413
    deep = '{"channel":"news","data":' + "[" * 50_000 + "]" * 50_000 + "}"
    assert publish(one_server, deep).status_code == 400
    authorization = {"Authorization": f"apikey {API_KEY}"}
    answer = httpx.post(f"{one_server.url}/api/publish", content=good, headers=authorization)
    assert answer.json() == {"result": {}}


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One shipped server for all tests that leave no trace in it."""
    server = RunningServer(tmp_path_factory.mktemp("one"), {}, dev=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


BROKEN: list[tuple[str, bytes | str, int]] = [
    ("binary", b"bytes", 1003),
    ("too big", "x" * 65537, 1009),
    ("too big in characters of three bytes", "한" * 21846, 1009),
]


@pytest.mark.parametrize(("what", "message", "code"), BROKEN, ids=[row[0] for row in BROKEN])
async def test_input_that_breaks_a_rule_closes_with_its_code(
    server: Server, what: str, message: bytes | str, code: int
) -> None:
    async with clients(server, 2) as [hostile, other]:
        await hostile.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            await receive(hostile)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert closed.value.rcvd.reason
        await other.send("still here")
        assert await receive(other) == "📢 새로운 알림: still here"


async def test_a_message_at_the_limit_passes(server: Server) -> None:
    async with clients(server, 1, max_size=None) as [client]:
        await client.send("x" * 65536)
        assert len(await receive(client)) == len("📢 새로운 알림: ") + 65536


async def test_text_that_is_not_utf8_closes_with_1007(one_server: RunningServer) -> None:
    async with clients(one_server, 1) as [client]:
        client.transport.write(masked(0x81, b"\xff\xfe"))
        with pytest.raises(ConnectionClosed) as closed:
            await receive(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


async def test_whole_messages_before_a_broken_one_still_count(one_server: RunningServer) -> None:
    async with clients(one_server, 2) as [hostile, other]:
        hostile.transport.write(masked(0x81, b"whole") + masked(0x83, b"reserved opcode"))
        assert await receive(other) == "📢 새로운 알림: whole"
        with pytest.raises(ConnectionClosed) as closed:
            await receive(hostile)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1002


def masked(first: int, payload: bytes) -> bytes:
    """One client frame, by hand."""
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    if len(payload) < 126:
        return bytes((first, 0x80 | len(payload))) + mask + body
    return struct.pack("!BBH", first, 0x80 | 126, len(payload)) + mask + body


async def test_frames_of_noise_disturb_nobody(one_server: RunningServer) -> None:
    seeded = random.Random(7)
    async with clients(one_server, 1) as [witness]:
        for _ in range(100):
            async with connect(f"{one_server.ws_url}/ws") as client:
                client.transport.write(seeded.randbytes(seeded.randint(1, 400)))
                client.transport.abort()
        await witness.send("still here")
        while await receive(witness) != "📢 새로운 알림: still here":
            pass
    assert "Traceback" not in one_server.log()


async def test_a_flood_of_tiny_frames_lets_others_have_their_turn(one_server: RunningServer) -> None:
    async with clients(one_server, 2) as [flood, witness]:
        flood.transport.write(masked(0x8A, b"") * 200_000 + masked(0x81, b"flood is over"))
        await witness.send("in between")
        assert await receive(witness) == "📢 새로운 알림: in between"
        assert await receive(witness) == "📢 새로운 알림: flood is over"


async def test_a_message_of_endless_fragments_is_refused(one_server: RunningServer) -> None:
    async with clients(one_server, 1) as [client]:
        client.transport.write(masked(0x01, b"x") + masked(0x00, b"") * 2000)
        with pytest.raises(ConnectionClosed) as closed:
            await receive(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_a_burst_in_one_write_arrives_everywhere_once_and_in_order(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    """A read of thousands of small messages once overran the pipeline, and was delivered here only."""
    env = {"BONGSU_BROKER_URL": redis_server.url, "BONGSU_CLIENT__QUEUE_MAX_SIZE": "64MiB"}
    one, two = bongsu_server(**env), bongsu_server(**env)
    async with clients(one, 2, max_queue=None) as [sender, here], clients(two, 1, max_queue=None) as [there]:
        sent = [str(number) for number in range(20_000)]
        sender.transport.write(b"".join(masked(0x81, text.encode()) for text in sent))
        for client in (here, there):
            assert [(await receive(client)).rsplit(" ", 1)[1] for _ in sent] == sent
        assert metric(one, 'bongsu_publications_total{outcome="here_only"}') == 0


def test_trailers_of_a_body_are_bounded(one_server: RunningServer) -> None:
    """They were once kept without a bound: 20 bytes of memory for each byte sent."""
    with socket.create_connection(("127.0.0.1", int(one_server.url.rsplit(":", 1)[1])), DEADLINE) as client:
        head = "POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        client.sendall(head.encode())
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # noqa: PT012  # some writes still fit
            for _ in range(2000):
                client.sendall(b"X: a\r\n" * 10_000)
    assert answers(f"{one_server.url}/livez")


def test_text_that_is_not_utf8_is_not_published(one_server: RunningServer) -> None:
    assert publish(one_server, b'{"channel":"news","data":"\xff\xfe"}').status_code == 400


def handshake_request(
    server: Server,
    path: str,
    *extra: str,
    version: str = "13",
    key: str = "dGhlIHNhbXBsZSBub25jZQ==",
    line: str = "GET {path} HTTP/1.1",
) -> bytes:
    lines = [
        line.format(path=path),
        f"Host: 127.0.0.1:{server.url.rsplit(':', 1)[1]}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Version: {version}",
        f"Sec-WebSocket-Key: {key}",
        *extra,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def handshake(server: Server, path: str, *extra: str, **parts: str) -> tuple[bytes, bytes]:
    """A handshake by hand: (head, body) of the answer."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), DEADLINE) as client:
        client.sendall(handshake_request(server, path, *extra, **parts))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(4096) or pytest.fail(f"closed after {answer!r}")
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            while data := client.recv(4096):
                body += data
        return head, body


REFUSED = [
    ("/nowhere", [], 404, "not_found"),
    ("/ws", ["Origin: https://evil.example"], 403, "origin_not_allowed"),
    ("/ws/" + "x" * 300, [], 400, "bad_channel"),
    ("/ws/%00control", [], 400, "bad_channel"),
    ("/ws/%EC%B1%84", [], 400, "bad_channel"),
    ("/ws/unknown:x", [], 404, "unknown_channel"),
    ("/ws", ["X-API-Key: wrong"], 401, "unauthorized"),
    ("/ws", ["Sec-WebSocket-Protocol: bongsu, bongsu.token.wrong"], 401, "unauthorized"),
]


@pytest.mark.parametrize(("path", "extra", "expected", "code"), REFUSED)
def test_a_refused_handshake_is_a_problem_and_names_its_replica(
    one_server: RunningServer, path: str, extra: list[str], expected: int, code: str
) -> None:
    is_problem(handshake(one_server, path, *extra), expected, code)


MALFORMED: list[tuple[dict[str, str], list[str], int, str]] = [
    ({"version": "8"}, [], 400, "bad_request"),
    ({}, ["Sec-WebSocket-Version: 13"], 400, "bad_request"),
    ({}, ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="], 400, "bad_request"),
    ({"key": "c2hvcnQ="}, [], 400, "bad_request"),
    ({"key": "no base64"}, [], 400, "bad_request"),
    ({}, ["Origin: http://a", "Origin: http://b"], 400, "bad_request"),
    ({"line": "POST {path} HTTP/1.1"}, [], 405, "method_not_allowed"),
    ({"line": "GET {path} HTTP/1.0"}, [], 400, "bad_request"),
]


@pytest.mark.parametrize(("parts", "extra", "expected", "code"), MALFORMED)
def test_a_handshake_that_breaks_its_own_rules_is_refused_in_the_same_form(
    one_server: RunningServer, parts: dict[str, str], extra: list[str], expected: int, code: str
) -> None:
    is_problem(handshake(one_server, "/ws", *extra, **parts), expected, code)


def is_problem(answer: tuple[bytes, bytes], expected: int, code: str) -> None:
    head, body = answer
    lines = head.lower().splitlines()
    assert lines[0].split()[1] == str(expected).encode()
    assert b"content-type: application/problem+json" in lines
    assert any(line.startswith(b"x-bongsu-replica: ") for line in lines)
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (expected, code)
    assert problem["detail"]


@pytest.mark.parametrize("path", ["/ws", "/ws/news", "/connection/websocket", "/connection/websocket/"])
def test_a_request_for_a_socket_that_is_no_handshake_is_told_to_upgrade(
    one_server: RunningServer, path: str
) -> None:
    answer = httpx.get(one_server.url + path)
    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert httpx.get(one_server.url + "/connection/uni_websocket").status_code == 404  # not switched on


@pytest.mark.parametrize("extra", [["X: 1"], ["X: 1", "X: 2"]], ids=["at the door", "by the HTTP parser"])
async def test_messages_in_the_segment_of_the_handshake_are_handled_in_order(
    one_server: RunningServer, extra: list[str]
) -> None:
    """A client that doesn't wait for 101: what came behind its handshake was lost without a word."""
    async with clients(one_server, 1) as [other]:
        port = int(one_server.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        frames = b"".join(masked(0x81, text) for text in (b"first", b"second", b"x" * 9000))
        writer.write(handshake_request(one_server, "/ws", *extra) + frames)
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"101"
        writer.write(masked(0x81, b"last"))
        for text in ("first", "second", "x" * 9000, "last"):
            assert await receive(other) == f"📢 새로운 알림: {text}"
        writer.close()


def test_an_accepted_handshake_names_its_replica_and_a_blank_subprotocol_is_none(
    one_server: RunningServer,
) -> None:
    """centrifuge-python sends the blank header; RFC 6455 has no such form, and uvicorn answers 400 to it."""
    for extra in ([], ["Sec-WebSocket-Protocol: "], ["Sec-WebSocket-Protocol:", "Origin: " + one_server.url]):
        head, _ = handshake(one_server, "/ws", *extra)
        lines = head.lower().splitlines()
        assert lines[0].split()[1] == b"101"
        assert sum(line.startswith(b"x-bongsu-replica: ") for line in lines) == 1
        assert not any(line.startswith(b"sec-websocket-protocol") for line in lines)


def test_handshakes_and_heads_that_are_too_long_get_an_answer(one_server: RunningServer) -> None:
    head, body = handshake(one_server, "/ws", *[f"X-{number}: y" for number in range(200)])
    assert head.split()[1] == b"400"
    assert json.loads(body)["code"] == "bad_request"
    answer = httpx.get(f"{one_server.url}/livez", headers={"X-Long": "y" * 100_000})
    assert (answer.status_code, answer.json()["code"]) == (431, "headers_too_large")
    assert answer.headers["x-bongsu-replica"] == status(one_server)["replica"]


async def test_outside_development_a_socket_needs_a_token(bongsu_server: Start) -> None:
    server = bongsu_server(
        dev=False,
        BONGSU_TOKEN__HMAC_SECRET=SECRET,
        BONGSU_CHANNELS__NAMESPACES__chat__ALLOW_SUBSCRIBE_FOR_CLIENT="true",
        BONGSU_API_KEY="a key of the tests that is long",
    )
    token = sign_connection_token(SECRET, user="42", now=time.time(), ttl=60)
    expired = sign_connection_token(SECRET, user="42", now=time.time() - 120, ttl=60)
    refused_options: list[dict[str, Any]] = [
        {},
        {"additional_headers": {"Authorization": f"Bearer {expired}"}},
    ]
    for options in refused_options:
        with pytest.raises(InvalidStatus) as refused:
            async with clients(server, 1, **options):
                pass
        assert refused.value.response.status_code == 401
    bearer: dict[str, Any] = {"additional_headers": {"Authorization": f"Bearer {token}"}}
    offered: dict[str, Any] = {"subprotocols": ["bongsu", f"bongsu.token.{token}"]}
    async with clients(server, 1, **bearer) as [one], clients(server, 1, **offered) as [two]:
        assert two.subprotocol == "bongsu"
        await one.send("hello")
        assert await receive(two) == "📢 새로운 알림: hello"
    with pytest.raises(InvalidStatus) as refused:
        async with clients(server, 1, "/ws/news", **bearer):
            pass
    assert refused.value.response.status_code == 403
    async with clients(server, 1, "/ws/chat:room", **bearer) as [reader]:
        await reader.send("may not")
        with pytest.raises(ConnectionClosed) as closed:
            await receive(reader)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3507
    assert token not in server.log()


async def test_a_socket_does_not_outlive_its_token(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_TOKEN__HMAC_SECRET=SECRET, BONGSU_CLIENT__EXPIRED_CLOSE_DELAY="500ms")
    token = sign_connection_token(SECRET, user="42", now=time.time(), ttl=2)
    headers = {"Authorization": f"Bearer {token}"}
    async with clients(server, 1, additional_headers=headers) as [client], clients(server, 1) as [other]:
        with pytest.raises(ConnectionClosed) as closed:
            await receive(client)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3005, "connection expired")
        await other.send("still here")
        assert await receive(other) == "📢 새로운 알림: still here"


async def test_the_feed_of_uploads_can_be_heard_and_not_spoken_on(server: Server) -> None:
    async with clients(server, 1, "/ws/uploads:feed") as [listener]:
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{server.url}/upload-file/", files={"file": ("a.txt", b"content")})
        assert answer.json()["message"] == "파일 업로드 중..."
        states = []
        while "stored" not in states:
            event = json.loads(await receive(listener))
            states.append(event["upload"]["state"])
        assert states.index("received") < states.index("stored")
        await listener.send("may not")
        with pytest.raises(ConnectionClosed) as closed:
            await receive(listener)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3507


async def test_the_count_follows_clients_that_come_leave_or_are_cut_off(server: Server) -> None:
    async with clients(server, 5) as everybody:
        assert status(server)["clients"] == 5
        await everybody[0].close()
        everybody[1].transport.abort()
        reset(everybody[2])
        await until(lambda: status(server)["clients"] == 2, "two clients to be left")
        await everybody[3].send("still here")
        assert await receive(everybody[4]) == "📢 새로운 알림: still here"
    await until(lambda: status(server)["clients"] == 0, "no client to be left")


def reset(client: ClientConnection) -> None:
    """Cut the connection with a TCP reset, as a crashed host does."""
    tcp = client.transport.get_extra_info("socket")
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


async def test_a_client_that_stops_reading_is_closed_as_slow_and_delays_nobody(server: Server) -> None:
    """Setup: 10 clients, one stops reading. Do: send more than its bound. Expect: the others get all."""
    async with clients(server, 10, max_queue=None) as everybody:
        everybody[0].transport.pause_reading()
        # Noise, since plain uvicorn compresses: 8 MB of one letter would fit into the kernel's buffers.
        text, expected = random.Random(7).randbytes(3072).hex(), [str(number) for number in range(2000)]
        # As fast as the slowest of those who read, not faster: else they would be slow ones, too.
        on_the_way = asyncio.Semaphore(9 * 20)

        async def send() -> None:
            for number in expected:
                for _ in range(9):
                    await on_the_way.acquire()
                await everybody[1].send(f"{number} {text}")

        async def read(client: ClientConnection) -> list[str]:
            got = []
            for _ in expected:
                got.append((await receive(client)).split()[-2])
                on_the_way.release()
            return got

        sending = asyncio.create_task(send())
        got = await asyncio.gather(*[read(client) for client in everybody[1:]])
        await sending
        assert got == [expected] * 9
        await until(lambda: status(server)["clients"] == 9, "the stalled client to be gone")
        assert metric(server, 'bongsu_disconnects_total{code="3008"}') == 1
        everybody[0].transport.abort()  # it reads nothing, so it would wait in vain for its close


async def test_a_client_that_stops_reading_under_little_traffic_is_found_by_its_silence(
    bongsu_server: Start,
) -> None:
    """Below the byte bound it is the missing progress that counts."""
    server = bongsu_server(BONGSU_CLIENT__SLOW_TIMEOUT="1s", BONGSU_CLIENT__QUEUE_MAX_SIZE="100MiB")
    async with clients(server, 2, max_queue=None) as [stalled, other]:
        tcp = stalled.transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.transport.pause_reading()
        for _ in range(200):
            await other.send("x" * 60_000)
            await receive(other)
        await until(lambda: status(server)["clients"] == 1, "the stalled client to be gone")
        assert metric(server, 'bongsu_disconnects_total{code="3008"}') == 1
        stalled.transport.abort()


async def test_a_flood_of_pings_by_somebody_who_reads_nothing_is_bounded(bongsu_server: Start) -> None:
    server = bongsu_server()
    async with clients(server, 1) as [client]:
        client.transport.pause_reading()
        ping = masked(0x89, b"x" * 125) * 500
        before = resident(server.pid)
        for _ in range(400):
            client.transport.write(ping)
            await asyncio.sleep(0)
        assert status(server)["ready"]
        assert resident(server.pid) - before < 64 * 1024
        client.transport.abort()


def resident(pid: int) -> int:
    """RSS in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


async def test_at_sigterm_clients_are_told_to_reconnect_and_the_process_ends_well(
    bongsu_server: Start,
) -> None:
    server = bongsu_server()
    async with clients(server, 20) as everybody:
        await everybody[0].send("last words")
        for client in everybody:
            assert await receive(client) == "📢 새로운 알림: last words"
        os.kill(server.pid, signal.SIGTERM)
        for client in everybody:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(client)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3001, "shutdown")
    await until(lambda: not server.running, "the server to end")
    assert server.exit_code == 0
    assert "Traceback" not in server.log()


async def test_a_stalled_client_does_not_hold_up_the_end(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_CLIENT__DRAIN_TIMEOUT="1s", BONGSU_CLIENT__SLOW_TIMEOUT="60s")
    async with clients(server, 2, max_queue=None) as [stalled, other]:
        stalled.transport.pause_reading()
        for _ in range(50):
            await other.send("x" * 60_000)
            await receive(other)
        os.kill(server.pid, signal.SIGTERM)
        await until(lambda: not server.running, "the server to end")
        assert server.exit_code == 0
        stalled.transport.abort()


async def test_plain_uvicorn_says_once_that_it_is_slower(tmp_path: Path) -> None:
    plain = PlainUvicorn(tmp_path)
    try:
        async with clients(plain, 3):
            pass
        assert plain.log().count("no raw sockets") == 1
    finally:
        plain.child.stop()


async def test_while_redis_is_away_clients_here_hear_each_other_and_backends_are_told(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    one = bongsu_server(BONGSU_BROKER_URL=redis_server.url)
    two = bongsu_server(BONGSU_BROKER_URL=redis_server.url)
    for server in (one, two):
        await until(ready(server), "the replica to be ready")
    async with clients(one, 2) as [a, b], clients(two, 1) as [c]:
        await a.send("before")
        for client in (a, b, c):
            assert await receive(client) == "📢 새로운 알림: before"
        redis_server.kill()
        await until(ready(one, 503), "the replica to say so")
        assert health(one) == "broker down"
        assert answers(f"{one.url}/livez")
        await a.send("meanwhile")
        for client in (a, b):
            assert await receive(client) == "📢 새로운 알림: meanwhile"
        assert publish(one, '{"channel":"broadcast","data":1}').json()["error"]["code"] == 100
        for client in (a, b):
            assert await receive(client) == "1"
        async with clients(one, 1) as [late]:
            await late.send("late")
            for client in (a, b, late):
                assert await receive(client) == "📢 새로운 알림: late"
        redis_server.start()
        for server in (one, two):
            await until(ready(server), "the replica to be ready")
        await c.send("after")
        for client in (a, b, c):
            assert await receive(client) == "📢 새로운 알림: after"

        def all_are_counted() -> bool:
            cluster = status(one)["cluster"]
            return (cluster["clients"], len(cluster["replicas"])) == (3, 2)

        await until(all_are_counted, "the other replica's count to be told again")


async def test_the_edges_of_an_outage_close_no_sender_and_keep_the_order(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    """
    Setup: five senders on each of two replicas, who never rest. Do: kill -9 Redis and start it again, some
    times: its two connections break and come back one after the other. Expect: nobody is closed, and a
    sender hears everything of its own once, in its order.
    """
    one = bongsu_server(BONGSU_BROKER_URL=redis_server.url)
    two = bongsu_server(BONGSU_BROKER_URL=redis_server.url)
    over = asyncio.Event()

    async def send(sender: int, client: ClientConnection) -> int:
        count = 0
        while not over.is_set():
            await client.send(f"{sender}:{count}")
            count += 1
            await asyncio.sleep(0.02)
        return count

    async def hear(sender: int, client: ClientConnection) -> list[int]:
        own: list[int] = []
        while True:
            text = (await receive(client)).rpartition(" ")[2]
            if text == "end":
                return own
            whose, _, number = text.partition(":")
            if int(whose) == sender:
                own.append(int(number))

    for server in (one, two):
        await until(ready(server), "the replica to be ready")
    async with clients(one, 5) as some, clients(two, 5) as others, asyncio.TaskGroup() as tasks:
        everybody = [*some, *others]
        sending = [tasks.create_task(send(*numbered)) for numbered in enumerate(everybody)]
        hearing = [tasks.create_task(hear(*numbered)) for numbered in enumerate(everybody)]
        for _ in range(4):
            redis_server.kill()
            for server in (one, two):
                await until(ready(server, 503), "the replica to say that the broker is down")
            redis_server.start()
            for server in (one, two):
                await until(ready(server), "the replica to be ready")
        over.set()
        counts = [await each for each in sending]
        await everybody[0].send("end")
        for count, own in zip(counts, [await each for each in hearing], strict=True):
            assert own == sorted(set(own))
            assert len(own) > count // 2  # what was on its way when Redis died is lost
