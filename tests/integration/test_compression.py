"""permessage-deflate on the shipped command, with clients that bring their own implementation of it."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import Callable

import pytest
from tests.e2e.browser import Visitors, chromium
from tests.servers import RunningServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import PerMessageDeflate

DEADLINE = 20.0

Start = Callable[..., RunningServer]

LONG = "한 줄이면 봉수대가 모두 압니다. " * 100


def agreed(client: ClientConnection) -> bool:
    return any(isinstance(extension, PerMessageDeflate) for extension in client.protocol.extensions)


async def receive(client: ClientConnection) -> str:
    return str(await asyncio.wait_for(client.recv(), DEADLINE))


async def test_without_the_setting_nothing_is_agreed_on(bongsu_server: Start) -> None:
    server = bongsu_server()
    async with connect(f"{server.ws_url}/ws") as client:
        assert not agreed(client)


async def test_clients_with_and_without_compression_hear_the_same(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_WEBSOCKET__COMPRESSION="true")
    async with (
        connect(f"{server.ws_url}/ws") as deflating,
        connect(f"{server.ws_url}/ws", compression=None) as other,
    ):
        assert agreed(deflating)
        assert not agreed(other)
        for text in (LONG, "short", LONG, "🔥" * 5000, ""):
            for sender in (deflating, other):
                await sender.send(text)
                for client in (deflating, other):
                    assert await receive(client) == f"📢 새로운 알림: {text}"


async def test_a_deflated_broadcast_is_small_on_the_wire(bongsu_server: Start) -> None:
    """Without context takeover each message stands alone: the second one is as small as the first."""
    server = bongsu_server(BONGSU_WEBSOCKET__COMPRESSION="true")
    async with connect(f"{server.ws_url}/ws") as client:
        sizes: list[int] = []
        data_received = client.data_received

        def counted(data: bytes) -> None:
            sizes.append(len(data))
            data_received(data)

        client.data_received = counted  # type: ignore[method-assign]
        client.transport.set_protocol(client)
        for _ in range(2):
            await client.send(LONG)
            await receive(client)
        assert 0 < sum(sizes) < len(LONG.encode()) / 5


async def test_the_client_protocol_is_deflated_too(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_WEBSOCKET__COMPRESSION="true", BONGSU_CLIENT__INSECURE="true")
    async with connect(f"{server.ws_url}/connection/websocket") as client:
        assert agreed(client)
        await client.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"news"}}')
        assert [json.loads(await receive(client))["id"] for _ in range(2)] == [1, 2]
        await client.send(json.dumps({"id": 3, "publish": {"channel": "news", "data": LONG}}))
        got = [json.loads(await receive(client)) for _ in range(2)]
        assert {"id": 3, "publish": {}} in got
        assert any(one.get("push", {}).get("pub", {}).get("data") == LONG for one in got)


async def test_a_message_that_inflates_beyond_the_limit_is_refused(bongsu_server: Start) -> None:
    """A thousandth of its size on the wire: it is the inflated size that counts, and that is never made."""
    server = bongsu_server(BONGSU_WEBSOCKET__COMPRESSION="true")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (deflater.compress(b"x" * 40_000_000) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < 65536
    async with connect(f"{server.ws_url}/ws") as client:
        # A mask of zeros leaves the payload as it is.
        client.transport.write(struct.pack("!BBH", 0xC1, 0x80 | 126, len(bomb)) + b"\0\0\0\0" + bomb)
        with pytest.raises(ConnectionClosed) as closed:
            await receive(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_a_browser_agrees_and_sees_what_was_sent(bongsu_server: Start) -> None:
    server = bongsu_server(BONGSU_WEBSOCKET__COMPRESSION="true")
    async with chromium() as browser:
        visitors = Visitors(browser)
        visit = await visitors.visit(server.url)
        got = await visit.page.evaluate(
            """text => new Promise((resolve, reject) => {
                const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
                socket.onopen = () => socket.send(text);
                socket.onclose = event => reject(new Error("closed " + event.code));
                socket.onmessage = event => resolve([socket.extensions, event.data]);
            })""",
            LONG,
        )
        await visitors.leave()
    extensions, text = got
    assert extensions.startswith("permessage-deflate")
    assert text == f"📢 새로운 알림: {LONG}"
