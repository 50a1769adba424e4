"""A connection that has ended is gone at once: the collector is kept away from connections (server/run)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from bongsu.auth import TokenOptions, TokenVerifier
from bongsu.brokers.memory import MemoryBroker
from bongsu.metrics import Metrics
from bongsu.node.channels import ChannelOptions, Channels
from bongsu.node.client import ClientOptions
from bongsu.node.connection import Connection
from bongsu.node.handlers import Handlers
from bongsu.node.node import Node
from bongsu.node.services import Services
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.errors import PERMISSION_DENIED
from bongsu.transports.forms import LINE

CONNECT = '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"news"}}'


class Wire:
    """A socket that takes everything."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, chunks: Sequence[bytes]) -> None:
        self.written += b"".join(chunks)

    def unacknowledged(self) -> int:
        return 0

    def close(self, code: int, reason: str, *, within: float) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
async def services() -> AsyncIterator[Services]:
    metrics = Metrics()
    node = Node(replica="one", broker=MemoryBroker(), metrics=metrics)
    options = ChannelOptions(
        presence=True, history_size=10, history_ttl=60, force_recovery=True, allow_subscribe_for_client=True
    )
    options = options.model_copy(update={"allow_subscribe_for_anonymous": True})
    tokens = TokenVerifier(TokenOptions())
    services = Services(
        node,
        Channels(options, {}),
        tokens,
        tokens,
        ClientOptions(),
        Handlers(),
        metrics,
        anonymous=True,
    )
    await node.start()
    yield services
    await services.stop()
    await node.stop()


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("by_us", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 100])
async def test_no_cycle_keeps_it_however_it_ends_and_whatever_was_under_way(
    services: Services, without_collector: None, by_us: bool, turns: int
) -> None:
    wire = Wire()
    connection = Connection(services, wire, JSON, LINE, transport="websocket")
    connection.receive(CONNECT)
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns == 100:
        assert b'"subscribe"' in wire.written
    if by_us:
        connection.close(PERMISSION_DENIED)
    connection.lost(None)
    gone = asyncio.Event()
    ended = weakref.ref(connection, lambda _: gone.set())
    del connection
    await asyncio.wait_for(gone.wait(), 10)
    assert ended() is None
    assert not services.node.clients
