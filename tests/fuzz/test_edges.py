"""What comes from outside before, beside and below the client protocol: tokens, frames, forms, Redis.

As everywhere: an input is accepted, or refused with its documented error. Where it comes in pieces, the cuts
make no difference.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import random
import zlib
from collections.abc import Callable, Iterable

import hiredis
import httptools
import pytest
from tests.fuzz.inputs import COUNT, inputs

from bongsu.auth import (
    ConnectionToken,
    InvalidToken,
    SubscriptionToken,
    TokenExpired,
    TokenOptions,
    TokenVerifier,
)
from bongsu.brokers import envelope
from bongsu.brokers.base import Appended, BrokerError, Page
from bongsu.brokers.redis import scripts
from bongsu.protocol import problems
from bongsu.protocol.messages import ClientInfo, Join, Leave, Publication
from bongsu.protocol.problems import Problem
from bongsu.server import handshake
from bongsu.server.framing import BrokenFrame, FrameReader, Message, close_code
from bongsu.uploads.multipart import FileData, FileStart, UploadForm
from bongsu.uploads.ranges import parse_range

pytestmark = pytest.mark.soak


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# ---- tokens


def test_a_token_is_somebody_or_refused() -> None:
    secret = "a secret of at least thirty-two bytes"
    claims = [
        b'{"sub":"42","exp":2000,"info":{"a":1},"subs":{"x":{"data":1,"override":{"presence":{"value":true}}}}}',
        b'{"sub":"42","channel":"news","client":"c","expire_at":0,"b64info":"e30=","aud":["a","b"],"iss":"i"}',
        b'{"channels":["a","b"],"nbf":1,"iat":1.5,"jti":"j","meta":{"a":[1]}}',
    ]
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")

    def sign(payload: bytes) -> str:
        signed = header + b"." + base64.urlsafe_b64encode(payload).rstrip(b"=")
        signature = hmac.digest(secret.encode(), signed, "sha256")
        return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()

    tokens = [sign(payload).encode() for payload in claims]
    verifier = TokenVerifier(TokenOptions(hmac_secret=secret))

    async def judge(token: str) -> bool:
        accepted = False
        for verify in (verifier.verify_connection, verifier.verify_subscription):
            try:
                somebody = await verify(token, now=1000.0)
            except (InvalidToken, TokenExpired):
                continue
            assert isinstance(somebody, ConnectionToken | SubscriptionToken)
            accepted = True
        return accepted

    async def run() -> None:
        accepted = 0
        for payload in inputs(claims, seed=31):
            accepted += await judge(sign(payload))
        assert accepted > COUNT // 20
        for text in inputs(tokens, seed=32):
            # Whoever has no key can change nothing.
            assert text in tokens or not await judge(text.decode("utf-8", "replace"))

    asyncio.run(run())


# ---- between replicas, and from Redis


def test_an_envelope_is_a_message_or_unknown() -> None:
    info = ClientInfo("42", "c", b"{}", b"[1]")
    corpus = [
        envelope.encode(message)
        for message in (
            Publication(b'{"a":1}'),
            Publication(b'"b"', offset=7, epoch="abcdefgh", info=info, tags={"k": "v"}, patchable=True),
            Publication(b"\xff", binary=True, plain=True, time=1),
            Join(info),
            Leave(info),
            envelope.Control(b"{}"),
        )
    ]
    for payload in inputs(corpus, seed=33):
        try:
            message = envelope.decode(payload)
        except envelope.UnknownEnvelope:
            continue
        assert envelope.decode(envelope.encode(message)) == message, payload


def test_an_answer_of_redis_is_a_position_or_a_page_or_an_error() -> None:
    kept = envelope.encode(Publication(b'"b"', offset=7, epoch="abcdefgh"))
    corpus = [
        b"*4\r\n:7\r\n$8\r\nabcdefgh\r\n:0\r\n$3\r\nnew\r\n",
        b"*3\r\n$1\r\n7\r\n$8\r\nabcdefgh\r\n:1\r\n",
        b"*3\r\n$8\r\nabcdefgh\r\n:7\r\n*1\r\n$%d\r\n%s\r\n" % (len(kept), kept),
        b"*3\r\n$8\r\nabcdefgh\r\n$1\r\n7\r\n*0\r\n",
    ]
    parsers: tuple[tuple[Callable[[object], object], type], ...] = (
        (scripts.appended, Appended),
        (scripts.page, Page),
    )
    for data in inputs(corpus, seed=34):
        reader = hiredis.Reader()
        reader.feed(data)
        try:
            answer = reader.gets()
        except (hiredis.ProtocolError, TypeError, MemoryError):  # as `Link` takes them
            continue
        for parse, kind in parsers:
            try:
                assert isinstance(parse(answer), kind)
            except BrokerError:
                continue


# ---- sockets


def frame(first: int, payload: bytes) -> bytes:
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes((first, 0x80 | len(payload))) + mask + body


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def read(parts: Iterable[bytes], *, inflates: bool) -> tuple[list[Message], int]:
    """Messages, and the code that the connection failed with, or 0."""
    reader, found = FrameReader(1000, inflates=inflates), []
    try:
        for part in parts:
            reader.feed(part)
            while (message := reader.read()) is not None:
                found.append(message)
                if message.opcode == 8:
                    close_code(message.payload)
    except BrokenFrame as broken:
        return found, broken.code
    return found, 0


def test_frames_are_messages_or_a_failed_connection_however_they_are_cut() -> None:
    corpus = [
        frame(0x81, b'{"id":1,"connect":{}}') + frame(0x89, b"ping"),
        frame(0x01, b"one ") + frame(0x8A, b"") + frame(0x00, b"two ") + frame(0x80, b"three"),
        frame(0x82, b"\x00\xff") + frame(0x88, b"\x03\xe8bye"),
        frame(0xC1, deflated(b"again and again and again")) + frame(0x88, b""),
        b"\x81\xfe\x03\xe8\x00\x00\x00\x00" + bytes(1000),
        b"\x81\xff" + (1001).to_bytes(8, "big") + bytes(4),
    ]
    chance = random.Random(35)
    whole = 0
    for data in inputs(corpus, seed=35):
        inflates = chance.random() < 0.5
        messages, code = read([data], inflates=inflates)
        assert code in (0, 1002, 1007, 1008, 1009), data
        assert all(len(message.payload) <= 1000 for message in messages), data
        assert read(pieces(data, chance), inflates=inflates) == (messages, code), data
        whole += bool(messages)
    assert whole > COUNT // 20


def test_a_handshake_is_understood_or_refused() -> None:
    corpus = [
        b"upgrade: websocket\nconnection: Upgrade\nsec-websocket-version: 13\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\nsec-websocket-protocol: centrifuge-json, x\n"
        b"sec-websocket-extensions: permessage-deflate; client_max_window_bits, x-unknown; a=1",
        b"connection: keep-alive, upgrade\nsec-websocket-version: 13\nsec-websocket-protocol: \n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\ncontent-length: 0",
    ]
    for head in inputs(corpus, seed=36):
        fields = [
            (name.strip().lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in head.split(b"\n"))
        ]
        try:
            understood = handshake.read("GET", fields, deflate=True)
        except Problem as problem:
            assert problem.kind is problems.BAD_REQUEST, head  # noqa: PT017  # as above
            continue
        answer = handshake.response(understood, None, ())
        assert answer.index(b"\r\n\r\n") == len(answer) - 4, head


class _Parsed:
    """What the HTTP parser reads in the head of a handshake; `size` is None where it reads something else."""

    def __init__(self, segment: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.size: int | None = None
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(segment)
        except httptools.HttpParserUpgrade as upgrade:
            self.size = upgrade.args[0]
        except httptools.HttpParserError:
            pass

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def test_a_plain_head_is_what_the_parser_reads() -> None:
    """Else a proxy before us and we could see two requests in one."""
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    corpus = [
        b"GET /ws/a%20b?a=b HTTP/1.1\r\nHost: a:80\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + key
        + b"\r\n",
        b"GET / HTTP/1.1\r\nhost:a\r\nX-Forwarded-For: \t a, b \r\nconnection: keep-alive, upgrade\r\n"
        + key
        + b"Origin: http://a\r\nupgrade: WebSocket\r\nX:\r\n\r\n\x81\x80abcd",
    ]
    plain = 0
    for segment in inputs(corpus, seed=37):
        if (read := handshake.plain_head(segment)) is None:
            continue
        head, size = read
        parsed = _Parsed(segment)
        assert (parsed.size, parsed.headers) == (size, head.headers), segment
        assert parsed.parser.get_method() == b"GET"
        assert parsed.parser.get_http_version() == "1.1"
        url = httptools.parse_url(parsed.url)
        assert (url.path, url.query or b"") == (head.path, head.query), segment
        plain += 1
    assert plain > COUNT // 20


# ---- uploads


def test_a_form_is_a_file_or_refused_however_it_is_cut() -> None:
    head = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
    corpus = [
        head + b"Content-Type: text/plain\r\n\r\nhello\r\n--cut--\r\n",
        b'--cut\r\nContent-Disposition: form-data; name="note"\r\n\r\nx\r\n' + head + b"\r\n--cut--\r\n",
        head.replace(b"a.txt", "불꽃.txt".encode()) + b"\r\n" + b"\r\n-" * 20 + b"\r\n--cut--\r\n",
    ]
    kinds = {problems.MULTIPART_MALFORMED, problems.FILE_FIELD_MISSING, problems.FILE_NAME_MISSING}
    chance = random.Random(37)
    accepted = 0

    def parse(parts: Iterable[bytes]) -> tuple[str, str, bytes] | None:
        form = UploadForm("multipart/form-data; boundary=cut")
        events: list[FileStart | FileData] = []
        try:
            for part in parts:
                events += form.feed(part)
            form.end()
        except Problem as problem:
            assert problem.kind in kinds  # noqa: PT017  # each of thousands is judged
            return None
        start = events[0]
        assert isinstance(start, FileStart)
        content = b"".join(event.data for event in events if isinstance(event, FileData))
        return start.filename, start.content_type, content

    for body in inputs(corpus, seed=37):
        found = parse([body])
        assert parse(pieces(body, chance)) == found, body
        accepted += found is not None
    assert accepted > COUNT // 20


def test_a_range_is_within_the_file_or_ignored_or_refused() -> None:
    corpus = [b"bytes=0-499", b"bytes=500-", b"bytes=-1", b"bytes = 1-2", b"bytes=0-0,-1", b"lines=1-2"]
    chance = random.Random(38)
    for header in inputs(corpus, seed=38):
        size = chance.choice((0, 1, 500, 2**40))
        try:
            found = parse_range(header.decode("latin-1"), size)
        except Problem as problem:
            assert problem.kind is problems.RANGE_NOT_SATISFIABLE, header  # noqa: PT017
            continue
        assert found is None or 0 <= found[0] < found[1] <= size, header
