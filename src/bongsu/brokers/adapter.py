"""Any third party's `BroadcastBackend` as a broker: at most once, one event at a time, slower."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections import deque

import structlog
from broadcaster import BroadcastBackend

from bongsu.brokers.base import (
    BrokerBusy,
    BrokerState,
    BrokerUnavailable,
    OnBatch,
    OnRestored,
    OutcomeUnknown,
)

MAX_WAITING = 1000
"""Orders that may wait for the backend before `send` answers `BrokerBusy`."""

RESTART_PAUSE = 1.0

log = structlog.get_logger("bongsu.brokers.adapter")


class BackendAdapter:
    """One task gives the orders to the backend, in order; another reads its events.

    Payloads are bytes and backends carry text, so they travel as base64. What a backend swallows while it is
    away is lost without a sign: nothing here can tell.
    """

    kind = "backend"

    def __init__(self, backend: BroadcastBackend) -> None:
        self.kind = type(backend).__name__
        self._backend = backend
        self._on_batch: OnBatch | None = None
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._orders: deque[tuple[str, str, str, asyncio.Future[None]]] = deque()
        self._ordered = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._state = BrokerState.CLOSED

    @property
    def state(self) -> BrokerState:
        return self._state

    @property
    def is_away(self) -> bool:
        return self._state is not BrokerState.CONNECTED

    def listen(self, on_batch: OnBatch, on_restored: OnRestored | None = None) -> None:
        self._on_batch = on_batch  # a backend does not tell when it was away

    async def connect(self) -> None:
        log.warning("a third-party backend: at most once, one event at a time", backend=self.kind)
        await self._backend.connect()
        self._state = BrokerState.CONNECTED
        self._tasks = [
            asyncio.create_task(self._give_orders(), name=f"{self.kind} orders"),
            asyncio.create_task(self._read(), name=f"{self.kind} events"),
        ]

    async def disconnect(self) -> None:
        self._state = BrokerState.CLOSED
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._orders:
            *_, future = self._orders.popleft()
            _fail(future, BrokerUnavailable("the broker is shutting down"))
        await self._backend.disconnect()

    def want(self, channel: str) -> asyncio.Future[None]:
        ready = self._wanted.get(channel)
        if ready is None:
            ready = self._wanted[channel] = self._order("subscribe", channel)
        return ready

    def drop(self, channel: str) -> None:
        if self._wanted.pop(channel, None) is not None:
            self._order("unsubscribe", channel)

    def send(self, channel: str, payload: bytes) -> asyncio.Future[None]:
        if self._state is not BrokerState.CONNECTED:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(BrokerUnavailable("the broker is not connected"))
            return future
        if len(self._orders) >= MAX_WAITING:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(BrokerBusy(f"{len(self._orders)} orders wait for {self.kind}"))
            return future
        return self._order("publish", channel, b64encode(payload).decode())

    def pause(self) -> None:
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    def _order(self, verb: str, channel: str, message: str = "") -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._orders.append((verb, channel, message, future))
        self._ordered.set()
        return future

    async def _give_orders(self) -> None:
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            while self._orders:
                verb, channel, message, future = self._orders.popleft()
                try:
                    if verb == "subscribe":
                        await self._backend.subscribe(channel)
                    elif verb == "unsubscribe":
                        await self._backend.unsubscribe(channel)
                    else:
                        await self._backend.publish(channel, message)
                except Exception as error:  # a stranger's backend may raise anything; its caller hears of it
                    _fail(future, OutcomeUnknown(f"{self.kind}: {error!r}"))
                else:
                    if not future.done():
                        future.set_result(None)

    async def _read(self) -> None:
        while True:
            await self._may_read.wait()
            try:
                event = await self._backend.next_published()
                payload = b64decode(event.message, validate=True)
            except Exception as error:  # as above; a reader that ends would leave the replica deaf
                log.error("the backend's reader failed", backend=self.kind, error=repr(error))
                await asyncio.sleep(RESTART_PAUSE)
                continue
            if self._on_batch is not None and event.channel in self._wanted:
                self._on_batch([(event.channel, payload)])


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may be waiting
