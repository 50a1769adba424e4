"""Every parser of the protocol: an input is accepted, or refused with its documented error. Nothing else.

Where an input is accepted, a second opinion is asked: Python's own JSON parser, or the way back.
"""

from __future__ import annotations

import json
import random

import msgspec
import pytest
from tests.fuzz.inputs import COUNT, inputs

from bongsu.protocol import api, delta, errors
from bongsu.protocol.actions import Authenticate, RefreshConnection, Subscribe, Unsubscribe
from bongsu.protocol.api import MalformedRequest, Refused
from bongsu.protocol.codec import Codec, documents
from bongsu.protocol.codec.documents import DocumentError
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.codec.protobuf import PROTOBUF
from bongsu.protocol.delta import DeltaError
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.filters import FilterError, compile_filter
from bongsu.protocol.messages import (
    Command,
    ConnectResult,
    FilterNode,
    PublishRequest,
    RefreshResult,
)
from bongsu.protocol.session import Session, SessionOptions

pytestmark = pytest.mark.soak

JSON_FRAMES = [
    b'{"id":1,"connect":{"token":"t","data":{"a":1},"name":"js","subs":{"#42":{"recover":true,"offset":3}}}}',
    b'{"id":2,"subscribe":{"channel":"c","flag":1,"delta":"fossil","tf":{"op":"not","nodes":[{"cmp":"ex"}]}}}',
    b'{"id":3,"publish":{"channel":"c","data":{"text":"\xeb\xb4\x89\\n","n":[1,2.5e3,null]}}}\n{}\n',
    b'{"id":4,"history":{"channel":"c","limit":-1,"since":{"offset":7,"epoch":"e"},"reverse":true}}',
    b'{"send":{"data":"x"}}\n{"id":5,"rpc":{"method":"m","data":null}}\n{"id":6,"refresh":{"token":null}}',
]
PROTOBUF_FRAMES = [
    b"\x00",
    b"\x0c\x08\x01\x22\x08\x0a\x01t\x12\x03{}\n",
    b"\x16\x08\x02\x2a\x12\x0a\x01c\x38\x07\x6a\x0b\x0a\x03not\x32\x04\x1a\x02ex",
    b"\x0b\x08\x03\x3a\x07\x0a\x01c\x12\x02hi\x00",
    b"\x0d\x08\x04\x52\x09\x0a\x01c\x42\x04\x08\x07\x12\x00\x04\x62\x02\x0a\x00",
]
API_BODIES = [
    b'{"channel":"c","data":{"a":1},"tags":{"k":"v"},"idempotency_key":"i","version":1}',
    b'{"channels":["a","b"],"b64data":"aGk="}',
    b'{"user":"42","channel":"c","info":{},"recover_since":{"offset":1,"epoch":"e"},"expire_at":9}',
    b'{"whitelist":["a"],"disconnect":{"code":4500,"reason":"banned"}}',
    b'{"commands":[{"publish":{"channel":"c","data":1}},{"info":{}}],"parallel":true}',
    b'{"method":"m","params":[1],"limit":-1,"pattern":"*","expired":true}',
]


@pytest.mark.parametrize(
    ("codec", "corpus"), [(JSON, JSON_FRAMES), (PROTOBUF, PROTOBUF_FRAMES)], ids=["json", "protobuf"]
)
def test_a_frame_is_commands_or_3501(codec: Codec, corpus: list[bytes]) -> None:
    accepted = 0
    for frame in inputs(corpus, seed=1):
        try:
            commands = codec.decode(frame)
        except ProtocolError as error:
            assert error.disconnect == errors.BAD_REQUEST, frame  # noqa: PT017  # each of thousands is judged
            continue
        accepted += 1
        if codec is JSON:
            lines = frame.removesuffix(b"\n").split(b"\n")
            assert len(lines) == len(commands), frame
            for line, command in zip(lines, commands, strict=True):
                _compare(json.loads(line), command)
    assert accepted > COUNT // 20  # else the inputs are too broken to test anything


def _compare(document: dict[str, object], command: Command) -> None:
    """The command says what Python's parser reads, and its payload can be sent on."""
    assert (document.get("id") or 0) == command.id
    if isinstance(command.request, PublishRequest):
        published = document["publish"]
        assert isinstance(published, dict)
        if command.request.data:
            assert b"\n" not in command.request.data
            assert json.loads(command.request.data) == _whole(published["data"])


def _whole(value: object) -> object:
    """`value` with U+FFFD for the halves of surrogate pairs that Python lets pass."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    whole: object = json.loads(text)
    return whole


def test_other_bodies_in_json_are_requests_or_3501() -> None:
    corpus = [b'{"token":"t","subs":{"a":{}}}', b'{"session":"s","node":"n","data":"{}\\n{\\"id\\":1}"}']
    for body in inputs(corpus, seed=2):
        for decode in (JSON.decode_connect, JSON.decode_emulation, PROTOBUF.decode_emulation):
            try:
                decode(body)
            except ProtocolError as error:
                assert error.disconnect == errors.BAD_REQUEST, body  # noqa: PT017


def test_a_payload_is_json_or_refused() -> None:
    corpus = [
        b'{"text":"\xeb\xb4\x89 \\ud83d\\ude00","n":[1,-2.5e3,null,{}]}',
        b' "a\\\\" ',
        b"[[[]]]\r\n",
    ]
    for document in inputs(corpus, seed=3):
        try:
            canonical = documents.canonical(document)
        except DocumentError:
            continue
        assert json.loads(canonical) == _whole(json.loads(document)), document
        assert b"\n" not in canonical
        assert b"\r" not in canonical


def test_a_delta_makes_its_target_or_is_refused() -> None:
    base = b'{"text":"0123456789abcdefghijklmnopqrstuvwxyz","n":1}'
    corpus = [
        delta.create(base, target) for target in (base, base[::-1], base * 3, b"x" + base[:-4] + b"22}")
    ]
    for patch in inputs(corpus, seed=4):
        try:
            target = delta.apply(base, patch, max_size=100_000)
        except DeltaError:
            continue
        assert delta.apply(base, delta.create(base, target)) == target, patch


def test_a_delta_is_made_of_whatever_there_is() -> None:
    corpus = [
        "봉수대의 불이 언덕으로".encode() * 20,
        b"0123456789abcdef" * 40,
        bytes(600),
        b"\x80" * 600,
    ]
    chance = random.Random(5)
    for target in inputs(corpus, seed=5):
        base = chance.choice(corpus)
        assert delta.apply(base, delta.create(base, target)) == target, target


def test_a_filter_decides_or_is_refused() -> None:
    corpus = [
        b'{"op":"and","nodes":[{"key":"a","cmp":"gte","val":"1.5"},{"op":"not","nodes":[{"key":"b","cmp":"ex"}]}]}',
        b'{"op":"or","nodes":[{"key":"a","cmp":"in","vals":["1","2"]},{"key":"a","cmp":"sw","val":"1"}]}',
    ]
    decoder = msgspec.json.Decoder(FilterNode)
    for document in inputs(corpus, seed=6):
        try:
            documents.check_utf8(document)
            wanted = compile_filter(documents.decode(decoder, document))
        except (DocumentError, FilterError):
            continue
        assert wanted({"a": "1.50", "b": ""}) in {True, False}


def test_an_api_request_is_decoded_or_refused() -> None:
    methods = sorted(api.METHODS)
    for number, body in enumerate(inputs(API_BODIES, seed=7)):
        try:
            request = api.decode(methods[number % len(methods)], body)
            if isinstance(request, api.BatchRequest):
                api.decode_batch(request)
            elif isinstance(request, api.PublishRequest | api.BroadcastRequest):
                publication = request.publication()
                if publication.data and not publication.binary:
                    json.loads(publication.data)
        except Refused as refused:
            assert refused.error == errors.API_BAD_REQUEST, body  # noqa: PT017
        except MalformedRequest:
            continue


def test_a_session_goes_on_or_closes_once_whatever_is_said_when() -> None:
    """Random commands, answers and clocks: no exception, and nothing after a close."""
    chance = random.Random(8)
    frames = list(inputs(JSON_FRAMES, seed=8))
    options = SessionOptions(channel_limit=2)
    for _ in range(COUNT):
        now = 0.0
        session = Session(options, now=now)
        closes = 0
        for frame in (JSON_FRAMES[0], *chance.choices(frames, k=6)):
            now += chance.choice((0.0, 0.1, 9.0, 30.0))
            actions = session.tick(now=now)
            try:
                commands = JSON.decode(frame)
            except ProtocolError as error:
                actions += session.close(error.disconnect)
                commands = []
            for command in commands:
                made = session.receive(command, now=now)
                for action in made:
                    _answer(session, action, now, chance)
                actions += made
            assert closes == 0 or not actions
            closes += sum(type(action).__name__ == "Close" for action in actions)
        assert closes <= 1


def _answer(session: Session, action: object, now: float, chance: random.Random) -> None:
    """As a node might: good news mostly."""
    good = chance.random() < 0.8
    match action:
        case Authenticate(id) if good:
            result = ConnectResult(client="c", version="v", expires=chance.random() < 0.5)
            session.connected(id, result, now=now, jitter=chance.random(), expires_at=now + 60)
        case Authenticate(id):
            session.refused(id, errors.ERROR_TOKEN_EXPIRED)
        case Subscribe(_, request) if good:
            session.subscribed(request.channel, refreshable=True, expires_at=now + 10)
        case Subscribe(_, request):
            session.unsubscribed(request.channel)
        case Unsubscribe(_, channel):
            session.unsubscribed(channel)
        case RefreshConnection(id):
            session.refreshed(id, RefreshResult(expires=True), expires_at=now + 60)
