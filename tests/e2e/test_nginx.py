"""The shipped nginx.conf in front of real replicas: what passes, what does not, and what is written down."""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from deploy.cluster import Cluster
from tests.servers import wait_until

from bongsu.uploads.tus import MAX_PARTS


async def test_a_page_of_the_same_origin_connects_and_a_foreign_one_is_refused(trio: Cluster) -> None:
    """nginx passes the Host on as the browser typed it, port included; without it no page could connect."""
    async with websockets.connect(f"{trio.ws_url}/ws", origin=websockets.Origin(trio.url)) as own:
        assert own.response is not None
        assert own.response.headers["X-Bongsu-Replica"].startswith("replica-")
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{trio.ws_url}/ws", origin=websockets.Origin("https://elsewhere.example"))
    assert refused.value.response.status_code == 403
    assert b"problem" in (refused.value.response.body or b"")


def test_a_handshake_with_a_blank_subprotocol_header_succeeds(trio: Cluster) -> None:
    address = urlsplit(trio.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as client:
        client.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Protocol: \r\n\r\n".encode()
        )
        assert client.recv(1024).startswith(b"HTTP/1.1 101 ")


async def test_metrics_are_for_whoever_reaches_the_replicas_only(
    trio: Cluster, http: httpx.AsyncClient
) -> None:
    assert (await http.get(f"{trio.url}/metrics")).status_code == 403
    for path in ("/metrics/", "//metrics", "/%6detrics"):
        assert "bongsu_clients" not in (await http.get(f"{trio.url}{path}")).text
    for replica in trio.replicas:
        assert "bongsu_clients" in (await http.get(f"{replica.url}/metrics")).text


async def test_a_publication_larger_than_nginxs_buffers_passes(
    trio: Cluster, http: httpx.AsyncClient
) -> None:
    """With request buffering an unprivileged worker would need a directory that it may not reach."""
    answer = await http.post(
        f"{trio.url}/api/publish",
        headers={"X-API-Key": trio.api_key},
        json={"channel": "broadcast", "data": "x" * 50_000},
    )
    assert answer.status_code == 200
    assert "error" not in answer.json()


async def test_the_access_log_names_the_replica_and_holds_no_query_string(
    trio: Cluster, http: httpx.AsyncClient
) -> None:
    answer = await http.get(f"{trio.url}/status?token=not-for-the-log")
    log = trio.state / "log" / "nginx-access.log"

    def logged() -> bool:
        return any(
            '"GET /status HTTP/1.1" 200' in line and line.endswith(answer.headers["X-Bongsu-Replica"])
            for line in log.read_text().splitlines()
        )

    wait_until(logged, within=30, what="the request in the access log")
    assert "not-for-the-log" not in log.read_text()


@pytest.mark.parametrize(
    ("path", "status"), [("/api/publish", 413), ("/api/nothing", 404), ("/emulation", 413)]
)
async def test_a_refusal_of_a_large_body_passes(
    trio: Cluster, http: httpx.AsyncClient, path: str, status: int
) -> None:
    """A replica that closed behind its answer reset the connection: nginx made a 502 of most."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100_000

    # nginx closes a connection whose request it has not read to its end, and does not say so in the answer.
    key = {"X-API-Key": trio.api_key, "Connection": "close"}
    for _ in range(10):
        declared = await http.post(f"{trio.url}{path}", headers=key, content=b"x" * 5_000_000)
        chunked = await http.post(f"{trio.url}{path}", headers=key, content=pieces())
        assert (declared.status_code, chunked.status_code) == (status, status)


async def test_headers_as_long_as_replicas_take_them_pass(trio: Cluster, http: httpx.AsyncClient) -> None:
    """nginx takes 8 KiB of a header by itself: it refused concatenations, and long metadata, with a page."""
    version = {"Tus-Resumable": "1.0.0"}
    unknown = " ".join(f"{trio.url}/files/{number:032x}" for number in range(MAX_PARTS))
    final = await http.post(f"{trio.url}/files/", headers=version | {"Upload-Concat": f"final;{unknown}"})
    assert (final.status_code, final.json()["code"]) == (400, "parts_unusable")
    metadata = f"filename {base64.b64encode(b'a.txt').decode()},note "
    metadata += "QUFB" * ((8192 - len(metadata)) // 4)
    made = await http.post(
        f"{trio.url}/files/", headers=version | {"Upload-Length": "0", "Upload-Metadata": metadata}
    )
    assert made.status_code == 201
    told = await http.head(f"{trio.url}{made.headers['Location']}", headers=version)
    assert told.headers["Upload-Metadata"] == metadata
    assert (await http.get(f"{trio.url}/", headers={"X-Long": "x" * 100_000})).status_code in {400, 431}
