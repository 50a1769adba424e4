"""The broker seam: what the node needs to reach the other replicas.

The lowest interface is `broadcaster.BroadcastBackend`; our brokers subclass it through `Backend`, so they
also serve under `broadcaster.Broadcast(backend=...)`. What that interface cannot say (bytes, batches,
order, acknowledgement, back-pressure) is said by the small protocols here.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from broadcaster import BroadcastBackend
from broadcaster import Event as TextEvent

Event: TypeAlias = tuple[str, bytes]
"""(channel, payload): one message as it came from the broker. A plain tuple, since it is made per message."""

OnBatch: TypeAlias = Callable[[list[Event]], None]


class BrokerError(Exception):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """Nothing was sent: there is no connection, or the broker refused for now. Safe to try again."""


class BrokerBusy(BrokerUnavailable):
    """Nothing was sent: too much is in flight already. Safe to try again, later."""


class OutcomeUnknown(BrokerError):
    """It was sent, and the connection died before the answer: it may or may not have happened.

    Trying again may do it twice, so nobody below the caller does.
    """


class BrokerState(enum.Enum):
    """What a broker connection is doing; shown in `/status`, `/readyz` and metrics."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    CONNECTED = "connected"


@runtime_checkable
class Broker(Protocol):
    """Carries payloads between replicas: at most once, in order, in batches.

    The caller promises: `listen` once, before `connect`; all calls from the one event loop; payloads are
    not empty. The broker promises:

    - Order: payloads sent to one channel by one broker object arrive in the order of the `send` calls at
      every replica that hears both. Different channels promise nothing to each other.
    - Delivery: a payload whose `send` began after a `want` of that channel had been acknowledged (here or
      on another replica) is delivered there once, unless the connection is lost in between. What a
      lost connection swallowed is not repeated; `state` and the log say that it happened.
    - Batches: `on_batch` gets everything one socket read contained, in order, and never re-entrantly. It
      must not block or raise.
    """

    kind: str
    """Short name for people: "memory", "redis"."""

    @property
    def state(self) -> BrokerState:
        """CONNECTED only when commands can be sent *and* every wanted channel is acknowledged."""
        ...

    def listen(self, on_batch: OnBatch) -> None:
        """Who gets the batches."""
        ...

    async def connect(self) -> None:
        """Start. Returns once connected, or after the first attempt failed: it goes on trying by itself."""
        ...

    async def disconnect(self) -> None:
        """Stop for good; `send`s in flight fail with `OutcomeUnknown`."""
        ...

    def want(self, channel: str) -> asyncio.Future[None]:
        """Wish to hear `channel` until `drop`. The wish survives reconnects.

        The future is done when the broker has acknowledged *on the present connection*; it is a new one
        after a reconnect, and every caller gets it, also the second. Shield it when you may be cancelled.
        """
        ...

    def drop(self, channel: str) -> None:
        """Take the wish back. Nothing is awaited between the decision and the order to the broker."""
        ...

    def send(self, channel: str, payload: bytes) -> asyncio.Future[None]:
        """Queue `payload` in order; the future is done when the broker has it.

        Fails with `BrokerUnavailable` (at once, when there is no connection), `BrokerBusy`, or
        `OutcomeUnknown`.
        """
        ...

    def pause(self) -> None:
        """Deliver no more batches until `resume` (the subscribers are behind)."""
        ...

    def resume(self) -> None: ...


@runtime_checkable
class Leases(Protocol):
    """Optional: who is alive, told by the broker's own clock, over its command connection."""

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        """Keep `replica` alive for `ttl` seconds with `data`; answers every replica alive now.

        Raises `BrokerError`.
        """
        ...

    async def release(self, replica: str) -> None:
        """Take the lease back, on a clean stop. Raises `BrokerError`."""
        ...


@runtime_checkable
class Restartable(Protocol):
    """Optional: a reading connection that can be replaced when it is up but deaf."""

    def restart_reading(self) -> None: ...


class Backend(BroadcastBackend, ABC):
    """The `BroadcastBackend` face of our brokers. Subclasses bring the `Broker` methods."""

    MAILBOX_SIZE = 1024

    kind = "abstract"

    def __init__(self) -> None:
        self._on_batch: OnBatch | None = None
        # Only filled under `Broadcast(backend=...)`; reading is paused when it is full, so it is bounded
        # by one socket read more than its size.
        self._mailbox: deque[Event] = deque()
        self._mail = asyncio.Event()

    def listen(self, on_batch: OnBatch) -> None:
        self._on_batch = on_batch

    def _hand_over(self, batch: list[Event]) -> None:
        if self._on_batch is not None:
            self._on_batch(batch)
            return
        self._mailbox.extend(batch)
        self._mail.set()
        if len(self._mailbox) >= self.MAILBOX_SIZE:
            self.pause()

    @abstractmethod
    def want(self, channel: str) -> asyncio.Future[None]: ...

    @abstractmethod
    def drop(self, channel: str) -> None: ...

    @abstractmethod
    def send(self, channel: str, payload: bytes) -> asyncio.Future[None]: ...

    @abstractmethod
    def pause(self) -> None: ...

    @abstractmethod
    def resume(self) -> None: ...

    # BroadcastBackend, in text

    async def subscribe(self, channel: str) -> None:
        await asyncio.shield(self.want(channel))

    async def unsubscribe(self, channel: str) -> None:
        self.drop(channel)

    async def publish(self, channel: str, message: str) -> None:
        await self.send(channel, message.encode())

    async def next_published(self) -> TextEvent:
        while not self._mailbox:
            self._mail.clear()
            await self._mail.wait()
        channel, payload = self._mailbox.popleft()
        if not self._mailbox:
            self.resume()
        return TextEvent(channel, payload.decode())
