"""The broker of a replica that runs alone: the same order, batches and back-pressure, no network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from bongsu.brokers.base import Backend, BrokerBusy, BrokerState, BrokerUnavailable, Event


class MemoryBroker(Backend):
    """Payloads sent in one loop turn reach `on_batch` together, in the next.

    `send` completes at once, except while reading is paused: then it completes when the payload has been
    handed over, so that publishers slow down with the subscribers.
    """

    kind = "memory"

    def __init__(self, url: str = "memory://", *, max_pending: int = 64 * 1024 * 1024) -> None:
        """`max_pending`: bytes that may wait for delivery before `send` answers `BrokerBusy`."""
        super().__init__()
        self._max_pending = max_pending
        self._pending_bytes = 0
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._pending: list[Event] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._scheduled = False
        self._paused = False
        self._state = BrokerState.CLOSED
        self._leases: dict[str, tuple[float, bytes]] = {}

    @property
    def state(self) -> BrokerState:
        return self._state

    async def connect(self) -> None:
        self._state = BrokerState.CONNECTED

    async def disconnect(self) -> None:
        self._state = BrokerState.CLOSED
        self._pending.clear()
        self._pending_bytes = 0
        for waiter in self._waiters:
            waiter.cancel()
        self._waiters.clear()

    def want(self, channel: str) -> asyncio.Future[None]:
        ready = self._wanted.get(channel)
        if ready is None:
            ready = self._wanted[channel] = _done()
        return ready

    def drop(self, channel: str) -> None:
        self._wanted.pop(channel, None)

    def send(self, channel: str, payload: bytes) -> asyncio.Future[None]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(BrokerUnavailable("the broker is not connected"))
        if channel not in self._wanted:
            return _done()
        if self._pending_bytes + len(payload) > self._max_pending:
            return _failed(BrokerBusy(f"{self._pending_bytes} bytes wait for delivery"))
        self._pending.append((channel, payload))
        self._pending_bytes += len(payload)
        if self._paused:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            return waiter
        self._schedule()
        return _done()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._pending:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._paused:
            return
        batch, self._pending = self._pending, []
        self._pending_bytes = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        # A channel may have been dropped between send and now; nobody is interested then.
        batch = [event for event in batch if event[0] in self._wanted]
        if batch:
            self._hand_over(batch)

    # Leases

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        now = time.monotonic()
        self._leases[replica] = (now + ttl, data)
        self._leases = {name: lease for name, lease in self._leases.items() if lease[0] > now}
        return {name: data for name, (_, data) in self._leases.items()}

    async def release(self, replica: str) -> None:
        self._leases.pop(replica, None)


def _done() -> asyncio.Future[None]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def _failed(error: Exception) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
