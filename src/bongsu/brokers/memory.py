"""The broker of a replica that runs alone: the same order, batches and back-pressure, no network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from bongsu.brokers.base import (
    MAX_READ,
    Appended,
    Backend,
    BrokerBusy,
    BrokerState,
    BrokerUnavailable,
    Departed,
    Event,
    OutcomeUnknown,
    Page,
    Read,
    Relayed,
    StaleTerm,
    Standing,
    StreamOptions,
)
from bongsu.brokers.memory_presence import MemoryPresence
from bongsu.brokers.memory_streams import MemoryStreams
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult, Publication, StreamPosition

_T = TypeVar("_T")


class MemoryBroker(Backend):
    """Payloads sent in one loop turn reach `on_batch` together, in the next.

    `send` and `append` complete at once, except while reading is paused: then when the payload has been
    handed over, so that publishers slow down with the subscribers. Streams live as long as the object.
    """

    kind = "memory"

    def __init__(
        self,
        url: str = "memory://",
        *,
        max_pending: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_pending`: bytes that may wait for delivery before `send` answers `BrokerBusy`.

        `clock`: seconds, never going back.
        """
        super().__init__()
        self._clock = clock
        self._max_pending = max_pending
        self._pending_bytes = 0
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._pending: list[Event] = []
        self._waiters: list[tuple[asyncio.Future[Any], Any]] = []
        self._streams = MemoryStreams()
        self._presence = MemoryPresence()
        self._scheduled = False
        self._paused = False
        self._state = BrokerState.CLOSED
        self._leases: dict[str, tuple[float, bytes]] = {}

    @property
    def state(self) -> BrokerState:
        return self._state

    @property
    def is_away(self) -> bool:
        return self._state is not BrokerState.CONNECTED

    async def connect(self) -> None:
        self._state = BrokerState.CONNECTED

    async def disconnect(self) -> None:
        self._state = BrokerState.CLOSED
        self._pending.clear()
        self._pending_bytes = 0
        waiters, self._waiters = self._waiters, []
        for waiter, _ in waiters:
            if not waiter.done():
                waiter.set_exception(OutcomeUnknown("the broker was shut down before it delivered"))
                waiter.exception()  # nobody may be waiting

    def want(self, channel: str) -> asyncio.Future[None]:
        ready = self._wanted.get(channel)
        if ready is None:
            ready = self._wanted[channel] = _done(None)
        return ready

    def drop(self, channel: str) -> None:
        self._wanted.pop(channel, None)

    def send(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[None]:
        refusal = self._refusal(channel, len(payload))
        if refusal is not None:
            return _failed(refusal)
        try:
            if not self._streams.first_send(channel, idempotency_key, relayed=relayed, now=self._clock()):
                return _done(None)
        except StaleTerm as error:
            return _failed(error)
        return self._deliver_later(channel, payload, None)

    def _refusal(self, channel: str, size: int) -> BrokerUnavailable | None:
        if self._state is not BrokerState.CONNECTED:
            return _not_connected()
        if channel in self._wanted and self._pending_bytes + size > self._max_pending:
            return BrokerBusy(f"{self._pending_bytes} bytes wait for delivery")
        return None

    def _deliver_later(self, channel: str, payload: bytes, result: _T) -> asyncio.Future[_T]:
        """A future that is done with `result` when the payload may count as delivered."""
        if channel not in self._wanted:
            return _done(result)
        self._pending.append((channel, payload))
        self._pending_bytes += len(payload)
        if self._paused:
            waiter: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
            self._waiters.append((waiter, result))
            return waiter
        self._schedule()
        return _done(result)

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
        for waiter, result in waiters:
            if not waiter.done():
                waiter.set_result(result)
        # A channel may have been dropped between send and now; nobody is interested then.
        batch = [event for event in batch if event[0] in self._wanted]
        if batch:
            self._hand_over(batch)

    # Streams

    def append(
        self,
        channel: str,
        publication: Publication,
        options: StreamOptions,
        *,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[Appended]:
        refusal = self._refusal(channel, len(publication.data))
        if refusal is not None:
            return _failed(refusal)
        try:
            position, payload = self._streams.append(
                channel,
                publication,
                options,
                idempotency_key=idempotency_key,
                version=version,
                version_epoch=version_epoch,
                relayed=relayed,
                now=self._clock(),
            )
        except StaleTerm as error:
            return _failed(error)
        return _done(position) if payload is None else self._deliver_later(channel, payload, position)

    def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int,
        reverse: bool = False,
        meta_ttl: float,
    ) -> asyncio.Future[Page]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(_not_connected())
        page = self._streams.read(
            channel, since=since, limit=limit, reverse=reverse, meta_ttl=meta_ttl, now=self._clock()
        )
        return _done(page)

    def read_many(self, reads: Sequence[Read]) -> Awaitable[list[Page]]:
        for read in reads:
            if not 0 <= read.limit <= MAX_READ:
                raise ValueError(f"a limit of {read.limit}, not 0 to {MAX_READ}")
        return asyncio.gather(
            *[
                self.read(read.channel, since=read.since, limit=read.limit, meta_ttl=read.meta_ttl)
                for read in reads
            ]
        )

    def settle(self, channel: str, keys: Sequence[str]) -> asyncio.Future[None]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(_not_connected())
        self._streams.settle(channel, keys)
        return _done(None)

    def remove(self, channel: str) -> asyncio.Future[None]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(_not_connected())
        self._streams.remove(channel)
        return _done(None)

    # Presence

    @property
    def standing(self) -> Standing:
        return self._presence.standing

    def enter(self, channel: str, info: ClientInfo, *, announced: bool = False) -> asyncio.Future[bool]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(_not_connected())
        return _done(self._presence.enter(channel, info, announced=announced))

    def leave(self, channel: str, client: str) -> asyncio.Future[bool]:
        if self._state is not BrokerState.CONNECTED:
            return _failed(_not_connected())
        return _done(self._presence.leave(channel, client))

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        if self._state is not BrokerState.CONNECTED:
            raise _not_connected()
        return self._presence.presence(channel)

    async def presence_stats(self, channel: str) -> PresenceStatsResult:
        if self._state is not BrokerState.CONNECTED:
            raise _not_connected()
        return self._presence.presence_stats(channel)

    def renounce(self) -> None:
        self._presence.renounce()

    def sweep(self) -> AsyncIterator[list[Departed]]:
        return self._presence.sweep()

    # Leases

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        now = self._clock()
        # The replica's heartbeat: so what expired goes even when nobody publishes.
        self._streams.expire(now)
        self._leases[replica] = (now + ttl, data)
        self._leases = {name: lease for name, lease in self._leases.items() if lease[0] > now}
        return {name: data for name, (_, data) in self._leases.items()}

    async def release(self, replica: str) -> None:
        self._leases.pop(replica, None)


def _not_connected() -> BrokerUnavailable:
    return BrokerUnavailable("the broker is not connected")


def _done(result: _T) -> asyncio.Future[_T]:
    future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def _failed(error: Exception) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
