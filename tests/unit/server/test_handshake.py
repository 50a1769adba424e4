"""The opening handshake: what is read out of it, what is refused, what the answer looks like."""

from __future__ import annotations

import pytest

from bongsu.protocol.problems import Problem
from bongsu.server.handshake import Fields, Handshake, Head, plain_head, read, response

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GOOD: Fields = [(b"host", b"a"), (b"sec-websocket-version", b"13"), (b"sec-websocket-key", KEY)]


def extensions(*offers: str) -> Fields:
    return [*GOOD, *[(b"sec-websocket-extensions", offer.encode()) for offer in offers]]


def test_the_key_of_the_rfc_has_the_answer_of_the_rfc() -> None:
    assert read("GET", GOOD, deflate=True) == Handshake(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", [], False)


def test_subprotocols_of_several_headers_are_one_list_and_blank_ones_are_none() -> None:
    offered = [(b"sec-websocket-protocol", value) for value in (b"a, b", b"", b" ,c")]
    assert read("GET", [*GOOD, *offered], deflate=False).subprotocols == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", GOOD, 405),
        ("GET", GOOD[:2], 400),
        ("GET", [GOOD[0], GOOD[2]], 400),
        ("GET", [GOOD[0], (b"sec-websocket-version", b"8"), GOOD[2]], 400),
        ("GET", [*GOOD[:2], (b"sec-websocket-key", b"c2hvcnQ=")], 400),
        ("GET", [*GOOD[:2], (b"sec-websocket-key", b"no base64")], 400),
        ("GET", [*GOOD, (b"sec-websocket-key", KEY)], 400),
        ("GET", [*GOOD, (b"origin", b"http://a"), (b"origin", b"http://b")], 400),
        ("GET", [*GOOD, (b"content-length", b"5")], 400),
        ("GET", [*GOOD, (b"transfer-encoding", b"chunked")], 400),
        ("GET", [*GOOD, *[(b"x-%d" % number, b"y") for number in range(126)]], 400),
    ],
)
def test_a_handshake_that_breaks_a_rule_is_refused(method: str, headers: Fields, status: int) -> None:
    with pytest.raises(Problem) as refused:
        read(method, headers, deflate=True)
    assert refused.value.kind.status == status
    assert refused.value.detail


@pytest.mark.parametrize(
    "offers",
    [
        ["permessage-deflate"],
        ["permessage-deflate; client_max_window_bits"],
        ["permessage-deflate; client_max_window_bits=9; server_no_context_takeover"],
        ['permessage-deflate; server_max_window_bits="15"; client_no_context_takeover'],
        ["x-webkit-deflate-frame", "permessage-deflate; server_max_window_bits=10, permessage-deflate"],
    ],
)
def test_compression_is_agreed_on_where_it_is_on_and_an_offer_fits(offers: list[str]) -> None:
    assert read("GET", extensions(*offers), deflate=True).deflate
    assert not read("GET", extensions(*offers), deflate=False).deflate


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; unknown",
        "permessage-bzip2",
        "",
    ],
)
def test_an_offer_that_does_not_fit_is_declined(offer: str) -> None:
    assert not read("GET", extensions(offer), deflate=True).deflate


def test_the_answer_names_what_was_agreed_on() -> None:
    plain = response(Handshake(b"answer", ["a"], False), None, [(b"x-bongsu-replica", b"one")])
    assert plain == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: answer\r\nx-bongsu-replica: one\r\n\r\n"
    )
    agreed = response(Handshake(b"answer", ["a"], True), "a", [])
    assert b"\r\nSec-WebSocket-Protocol: a\r\n" in agreed
    assert (
        b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
        b"client_no_context_takeover\r\n" in agreed
    )


PLAIN = b"GET /ws?a=b?c HTTP/1.1\r\nHost: a\r\nupgrade:WebSocket\r\nConnection: keep-alive, Upgrade \r\n\r\n"


def test_a_plain_head_is_read_and_what_follows_it_is_not() -> None:
    headers = [(b"host", b"a"), (b"upgrade", b"WebSocket"), (b"connection", b"keep-alive, Upgrade ")]
    assert plain_head(PLAIN + b"\x81\x80") == (Head(b"/ws", b"a=b?c", headers), len(PLAIN))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"GET", b"POST"),
        (b"/1.1", b"/1.0"),
        (b"/ws", b"ws"),
        (b"/ws", b"//ws"),
        (b"/ws", b"/w s"),
        (b"/ws", b"/ws#"),
        (b"b?c", b"b#c"),
        (b"Host: a", b"Host : a"),
        (b"Host: a", b"Host: a\r\n b"),
        (b"Host: a", b"Host: a\x00"),
        (b"Host: a", b"Host: a\r\nHost: b"),
        (b"Host: a", b"X: a"),
        (b"Host: a", b"Host: a\r\nContent-Length: 0"),
        (b"Host: a", b"Host: a\r\nTransfer-Encoding: chunked"),
        (b"Host: a", b"Host: " + b"y" * 16384),
        (b"WebSocket", b"h2c"),
        (b", Upgrade", b""),
        (b"\r\n\r\n", b"\r\n"),
        (b"\r\n", b"\n"),
    ],
)
def test_a_head_that_is_not_plain_is_left_to_the_parser(before: bytes, after: bytes) -> None:
    assert before in PLAIN
    assert plain_head(PLAIN.replace(before, after)) is None
