"""Slow consumers on the shipped command: real sockets whose owner stops reading for a while."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.servers import API_KEY, RunningServer
from websockets.asyncio.client import ClientConnection, connect

DEADLINE = 20.0

COUNT = 1000
"""Publications of 4 KB: more than the kernel's buffers and the bound hold together."""

TEXT = random.Random(7).randbytes(2048).hex()

ENV = {
    "BONGSU_CLIENT__INSECURE": "true",
    "BONGSU_CLIENT__QUEUE_MAX_SIZE": "256KiB",
    # Here a policy is to act, not the silence.
    "BONGSU_CLIENT__SLOW_TIMEOUT": "60s",
    "BONGSU_CHANNELS__WITHOUT_NAMESPACE__SLOW_CONSUMER": "drop_oldest",
    "BONGSU_CHANNELS__NAMESPACES__oldest__SLOW_CONSUMER": "drop_oldest",
    "BONGSU_CHANNELS__NAMESPACES__latest__SLOW_CONSUMER": "conflate",
    "BONGSU_CHANNELS__NAMESPACES__prices__SLOW_CONSUMER": "conflate",
    "BONGSU_CHANNELS__NAMESPACES__prices__CONFLATE_KEY": "symbol",
}

Start = Callable[..., RunningServer]


@asynccontextmanager
async def subscriber(server: RunningServer, channel: str) -> AsyncIterator[ClientConnection]:
    """One client of the client protocol, subscribed to `channel`."""
    async with connect(
        f"ws://127.0.0.1:{server.port}/connection/websocket", compression=None, max_queue=None
    ) as client:
        await client.send(
            '{"id":1,"connect":{}}\n' + json.dumps({"id": 2, "subscribe": {"channel": channel}})
        )
        for method in ("connect", "subscribe"):
            assert method in json.loads(await asyncio.wait_for(client.recv(), DEADLINE))
        yield client


async def publish(server: RunningServer, channel: str, **tags: Callable[[int], str]) -> None:
    """`COUNT` publications [number, text], and a last one ["end"]."""
    commands: list[dict[str, Any]] = []
    for number in range(COUNT):
        told = {name: value(number) for name, value in tags.items()}
        commands.append({"publish": {"channel": channel, "data": [number, TEXT], "tags": told}})
    commands.append({"publish": {"channel": channel, "data": ["end"]}})
    async with httpx.AsyncClient(base_url=server.url, headers={"X-API-Key": API_KEY}) as api:
        for start in range(0, len(commands), 50):
            answer = await api.post("/api/batch", json={"commands": commands[start : start + 50]})
            assert all("publish" in reply for reply in answer.json()["replies"])


async def publications(client: ClientConnection) -> list[dict[str, Any]]:
    """Those up to the last one. Answers pings."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["data"] != ["end"]:
        message = json.loads(await asyncio.wait_for(client.recv(), DEADLINE))
        if "push" in message:
            found.append(message["push"]["pub"])
        else:
            await client.send("{}")
    return found


def metric(server: RunningServer, name: str) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return 0.0


@pytest.mark.parametrize("channel", ["oldest:x", "latest:x"])
async def test_a_slow_subscriber_is_kept_misses_some_and_is_told_how_many(
    bongsu_server: Start, channel: str
) -> None:
    """Setup: one who stops reading, one who reads. Expect: order for both, all for the second."""
    server = bongsu_server(**ENV)
    async with subscriber(server, channel) as slow, subscriber(server, channel) as other:
        slow.transport.pause_reading()
        reading = asyncio.create_task(publications(other))
        await publish(server, channel)
        all_of_them = await reading
        assert [one["data"][0] for one in all_of_them] == [*range(COUNT), "end"]
        assert not any("bongsu_dropped" in one.get("tags", {}) for one in all_of_them)
        slow.transport.resume_reading()
        some = await publications(slow)
        numbers = [one["data"][0] for one in some[:-1]]
        assert numbers == sorted(set(numbers))
        assert len(numbers) < COUNT
        told = sum(int(one.get("tags", {}).get("bongsu_dropped", 0)) for one in some)
        assert told == COUNT - len(numbers)
        policy = "conflate" if channel.startswith("latest") else "drop_oldest"
        assert metric(server, f'bongsu_dropped_publications_total{{policy="{policy}"}}') == told
        assert metric(server, 'bongsu_disconnects_total{code="3008"}') == 0


async def test_conflation_by_key_keeps_the_latest_of_each(bongsu_server: Start) -> None:
    server = bongsu_server(**ENV)
    async with subscriber(server, "prices:x") as slow:
        slow.transport.pause_reading()
        await publish(server, "prices:x", symbol=lambda number: "abc"[number % 3])
        slow.transport.resume_reading()
        some = await publications(slow)
        last_ones = {one["data"][0] for one in some[-4:-1]}
        assert last_ones == {COUNT - 3, COUNT - 2, COUNT - 1}
        assert len(some) < COUNT


async def test_the_built_in_broadcast_has_the_policy_of_channels_without_a_namespace(
    bongsu_server: Start,
) -> None:
    server = bongsu_server(**ENV)
    async with connect(
        f"ws://127.0.0.1:{server.port}/ws", compression=None, max_queue=None, ping_interval=None
    ) as slow:
        slow.transport.pause_reading()
        await publish(server, "broadcast")
        slow.transport.resume_reading()
        numbers: list[Any] = []
        while not numbers or numbers[-1] != "end":
            numbers.append(json.loads(await asyncio.wait_for(slow.recv(), DEADLINE))[0])
        assert len(numbers) < COUNT
        assert numbers[:-1] == sorted(set(numbers[:-1]))
        assert metric(server, "bongsu_clients") == 1


async def test_a_policy_where_history_promises_more_stops_the_start(bongsu_server: Start) -> None:
    with pytest.raises(Exception, match="would break the promise of history"):
        bongsu_server(
            BONGSU_CHANNELS__NAMESPACES__news__SLOW_CONSUMER="drop_oldest",
            BONGSU_CHANNELS__NAMESPACES__news__HISTORY_SIZE="10",
            BONGSU_CHANNELS__NAMESPACES__news__HISTORY_TTL="60s",
        )


CONNECT = b'{"id":1,"connect":{}}\n'
SUBSCRIBE = b'{"id":2,"subscribe":{"channel":"own"}}'
OPENINGS = {
    "websocket": [
        b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
        b"\x81%c\0\0\0\0%b" % (0x80 | len(CONNECT + SUBSCRIBE), CONNECT + SUBSCRIBE),
    ],
    "http_stream": [
        b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        % len(CONNECT + SUBSCRIBE),
        CONNECT + SUBSCRIBE,
    ],
}


@pytest.mark.parametrize("way", OPENINGS)
async def test_who_reads_slowly_but_steadily_has_everything(bongsu_server: Start, way: str) -> None:
    """Setup: one reads 8 KB a second, one nothing; both have small buffers. Expect: the second is closed.

    The kernel takes more only when a third of its buffer is free: for longer than the patience the first
    looked as if it read nothing, and was closed too.
    """
    server = bongsu_server(
        **ENV | {"BONGSU_CLIENT__SLOW_TIMEOUT": "2s", "BONGSU_CLIENT__QUEUE_MAX_SIZE": "8MiB"}
    )
    loop = asyncio.get_running_loop()
    stalled = 'bongsu_slow_clients_total{reason="stalled"}'
    with socket.socket() as steady, socket.socket() as silent:
        for one in (steady, silent):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", server.port))
            one.setblocking(False)
            for part in OPENINGS[way]:
                await loop.sock_sendall(one, part)
            received = b""
            while b'"subscribe"' not in received:
                received += await asyncio.wait_for(loop.sock_recv(one, 2048), DEADLINE)
        received = b""
        await publish(server, "own")
        for _ in range(80):
            await asyncio.sleep(0.05)  # how slow it is
            received += await asyncio.wait_for(loop.sock_recv(steady, 400), DEADLINE)
        async with asyncio.timeout(DEADLINE):
            while metric(server, stalled) == 0:
                received += await loop.sock_recv(steady, 400)
                await asyncio.sleep(0.05)
            while b'["end"]' not in received[-1000:]:
                data = await loop.sock_recv(steady, 65536)
                assert data, "it was closed"
                received += data
        assert [int(number) for number in re.findall(rb'"data":\[(\d+),', received)] == list(range(COUNT))
        assert metric(server, stalled) == 1
