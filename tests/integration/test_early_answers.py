"""An answer that comes before the body has been read reaches the client, however much that still sends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import pytest
from tests.servers import API_KEY, RunningServer

BODY: Final = b"x" * 5_000_000
TIMES: Final = 20
UNIDIRECTIONAL = {f"BONGSU_UNI_{name}__ENABLED": "true" for name in ("SSE", "HTTP_STREAM")}

KEY = f"X-API-Key: {API_KEY}\r\n"
REFUSED: Final = [
    ("/api/publish", KEY, 413),
    ("/api/publish", "X-API-Key: wrong\r\n", 401),
    ("/api/nothing", KEY, 404),
    ("/emulation", "", 413),
    ("/emulation", "Origin: https://elsewhere.example\r\n", 403),
    ("/connection/http_stream", "", 413),
    ("/connection/sse", "", 413),
    ("/connection/uni_http_stream", "", 413),
    ("/connection/uni_sse", "", 413),
    ("/ws", "", 426),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("early"), UNIDIRECTIONAL, dev=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def answered(url: str, path: str, headers: str, *, chunked: bool) -> tuple[int, int, int]:
    """Status, declared length and length of the answer, to who reads only after it has sent."""
    address = urlsplit(url)
    if chunked:
        length, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    else:
        length, body = f"Content-Length: {len(BODY)}", BODY
    # Nothing is kept alive, as proxies ask it by default: then a server closes right behind its answer.
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n{headers}{length}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=30) as client:
        client.sendall(head.encode() + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    fields, _, document = answer.partition(b"\r\n\r\n")
    declared = fields.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return int(fields.split()[1]), int(declared), len(document)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize(("path", "headers", "status"), REFUSED)
def test_a_refusal_is_read_whole_by_who_sends_a_large_body(
    server: RunningServer, path: str, headers: str, status: int, chunked: bool
) -> None:
    """The server closed behind its 413 with the body unread: a client saw a reset, nginx made it a 502."""
    for _ in range(TIMES):
        got, declared, came = answered(server.url, path, headers, chunked=chunked)
        assert (got, came) == (status, declared)
