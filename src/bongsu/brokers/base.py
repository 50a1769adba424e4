"""The broker seam: what the node needs to reach the other replicas.

The lowest interface is `broadcaster.BroadcastBackend`; our brokers subclass it through `Backend`, so they
also serve under `broadcaster.Broadcast(backend=...)`. What that interface cannot say (bytes, batches,
order, acknowledgement, back-pressure) is said by the small protocols here. `Broker` is what the node needs;
the others are optional, and looked up once, at start.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from os import urandom
from string import ascii_letters
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from broadcaster import BroadcastBackend
from broadcaster import Event as TextEvent

from bongsu.brokers.envelope import EPOCH_SIZE
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult, Publication, StreamPosition

Event: TypeAlias = tuple[str, bytes]
"""(channel, payload): one message as it came from the broker. A plain tuple, since it is made per message."""

OnBatch: TypeAlias = Callable[[list[Event]], None]
OnRestored: TypeAlias = Callable[[], None]


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


class StaleTerm(BrokerError):
    """Nothing was published: a relay of a later term has published on this channel. See `Relayed`."""


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

    @property
    def is_away(self) -> bool:
        """Whether there is no connection for payloads to come in by, and none can be made at the moment.

        Then nothing that was sent so far will still be delivered here.
        """
        ...

    def listen(self, on_batch: OnBatch, on_restored: OnRestored | None = None) -> None:
        """Who gets the batches.

        `on_restored` is called when every wish is acknowledged again after the reading connection was lost,
        before whoever awaits a `want` hears of it: what was published in between was not heard.
        """
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


IDEMPOTENCY_TTL = 300.0
"""Seconds for which a repeat with the same idempotency key is known as one."""

RELAYED_TTL = 86_400.0
"""Seconds for which a relayed publication that was not settled is known, and at least a channel's term
without history.
"""

MAX_READ = 500
"""Most publications of one channel in `Streams.read_many`: a longer read holds up everybody else."""


class StreamOptions(NamedTuple):
    """How much of a channel's stream is kept.

    `size`: publications in the window, at least 1. `ttl`: seconds after the last publication until the whole
    window is forgotten. `meta_ttl`: seconds after the last append or read until the position is forgotten
    too, and the stream begins anew in another epoch; longer than `ttl`.
    """

    size: int
    ttl: float
    meta_ttl: float


class Relayed(NamedTuple):
    """Marks a publication as one that a relay of the outbox publishes.

    `key` names the outbox's row: published once until it is settled, whoever tries. `term` (1 to 2**64 - 1)
    names the relay's time in office: a channel that has seen a later one refuses it with `StaleTerm`. Both
    are needed. A relay that froze before it published and thaws when the row is gone, settled by its
    successor, would not be known by the key; one that died between publishing and deleting the row leaves
    it to a successor that is not stopped by the term.
    """

    term: int
    key: str


class Appended(NamedTuple):
    """The position of an appended publication.

    `cached`: nothing was published, this is the position that the first call with this idempotency key got.
    `suppressed`: nothing was published, the version was not newer; this is the stream's top.
    """

    offset: int
    epoch: str
    cached: bool = False
    suppressed: bool = False


class Page(NamedTuple):
    """Publications of one channel, each with its offset and epoch, and the stream's top at that moment.

    `offset` is 0 in a stream without publications yet.
    """

    publications: list[Publication]
    offset: int
    epoch: str


class Read(NamedTuple):
    """One channel's part of `Streams.read_many`; as the arguments of `Streams.read`."""

    channel: str
    since: StreamPosition | None
    limit: int
    meta_ttl: float


@runtime_checkable
class Streams(Protocol):
    """Optional: channels with history, where every publication has a position.

    The caller promises the same of all calls as for `Broker`. The broker promises:

    - Positions: offsets count from 1 without holes within one epoch, and no pair of epoch and offset is ever
      given to two publications, whatever the broker forgot: when it was restarted from older data, or a
      follower was promoted behind its leader, the stream goes on in a new epoch with an empty window. An
      epoch survives the window's expiry and `remove`, and has `envelope.EPOCH_SIZE` ASCII characters.
    - Atomicity: position, window and delivery are one step. Whoever hears a publication, or reads a top,
      finds it in the window, unless it was trimmed, expired or removed since.
    - Order: appended publications reach every listener in the order of their offsets. `append`, `read`,
      `remove` and `send` to one channel by one broker object take effect in the order of the calls: each
      queues its command before it returns.
    - Delivery of what was appended is that of `Broker.send`, as an envelope that carries the position.

    All futures fail like that of `Broker.send`. After `OutcomeUnknown` only a call with an idempotency key
    may be repeated safely. A call whose future was cancelled may have happened.

    Source: the Centrifuge client protocol, §6 "History and recovery".
    """

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
        """Give `publication` the next offset, keep it, and deliver it; its own offset and epoch are ignored.

        With `idempotency_key`: only once within `IDEMPOTENCY_TTL`. With `relayed`, instead of that key: only
        once until it is settled, and by no relay of an older term (fails with `StaleTerm`). With `version`
        (1 to 2**64 - 1): only when it is newer than the last one of the channel, or of another, non-empty
        `version_epoch`.
        """
        ...

    def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int,
        reverse: bool = False,
        meta_ttl: float,
    ) -> asyncio.Future[Page]:
        """Up to `limit` publications (0: only the position; negative: all that are kept) and the top.

        Ascending from the oldest one kept, or with `since` from the one after it; with `reverse` descending
        from the newest, or from the one before `since`. The epoch of `since` is not looked at: the caller
        compares it with the page's. A stream that does not exist begins, in a new epoch at offset 0.
        """
        ...

    def read_many(self, reads: Sequence[Read]) -> Awaitable[list[Page]]:
        """A page for each of `reads`, in their order, in one go; at most `MAX_READ` publications each.

        Raises ValueError for a limit that is negative or over `MAX_READ`. Awaiting fails when one read fails.
        """
        ...

    def remove(self, channel: str) -> asyncio.Future[None]:
        """Forget the channel's window. Its epoch and offset go on."""
        ...

    def send(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[None]:
        """`Broker.send`, outside the stream; `idempotency_key` and `relayed` as in `append`."""
        ...

    def settle(self, channel: str, keys: Sequence[str]) -> asyncio.Future[None]:
        """Forget these relayed publications: their rows are gone, and no relay tries them again.

        May be repeated, or left out after a failure: what is not settled goes after `RELAYED_TTL`.
        """
        ...


@runtime_checkable
class Leases(Protocol):
    """Optional: who is alive, told by the broker's own clock, over its command connection.

    A broker object speaks for one replica, and a lease for one *incarnation* of it: a start that the broker
    object marks with a random id. When the broker has given the lease up or forgotten it, the next `renew`
    begins a new incarnation; nothing that the old one left behind can be taken for the new one's.
    """

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        """Keep `replica` alive for `ttl` seconds with `data`; answers every replica alive now.

        Raises `BrokerError`.
        """
        ...

    async def release(self, replica: str) -> None:
        """Take the lease back, on a clean stop. Raises `BrokerError`."""
        ...


MAX_MEMBERS = 10_000
"""Most members of one channel that `Presence.presence` lists: a longer one holds up the others."""


class TooManyMembers(Exception):
    """The channel has more than `MAX_MEMBERS`; `Presence.presence_stats` still counts them."""


class Standing(NamedTuple):
    """What became of this replica's entries; both only grow.

    `losses`: how often what was written before may have been lost, so that it has to be written again.
    `evictions`: how often this replica was taken for dead, its entries swept and its leaves published.
    """

    losses: int
    evictions: int


class Departed(NamedTuple):
    """An entry that a sweep has removed. `announced`: its leave has to be published."""

    channel: str
    info: ClientInfo
    announced: bool


@runtime_checkable
class Presence(Protocol):
    """Optional, with `Leases`: who is in a channel, on whichever replica.

    There is one entry for each channel and client id. It belongs to the incarnation that wrote it last and
    counts while that one has a lease; nobody writes it again to keep it alive. The caller promises: client
    ids are unique in the deployment, and the user of a client id never changes. The broker promises:

    - Order: `enter`, `leave` and `Broker.send` by one broker object take effect in the order of the calls:
      each queues its command before it returns.
    - The dead: an incarnation whose lease ran out some time ago is swept by whoever comes first. Each entry
      is removed and reported by one sweep only, however many race; one that its client has written again
      under another incarnation stays. So of each entry either its sweep or its client knows, never both.

    Futures fail like that of `Broker.send`. `enter` and `leave` may be repeated after any failure.

    Source: the Centrifuge client protocol, §8 "Presence, join/leave".
    """

    @property
    def standing(self) -> Standing: ...

    def enter(self, channel: str, info: ClientInfo, *, announced: bool = False) -> asyncio.Future[bool]:
        """Put `info.client` into `channel`, or replace what is known of it; done with whether it was there.

        `announced`: others were told of its join, and are to be told of its leave when this replica dies.
        """
        ...

    def leave(self, channel: str, client: str) -> asyncio.Future[bool]:
        """Take `client` out of `channel`; done with whether it was there, which it needs not be."""
        ...

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        """The members by client id. Raises `TooManyMembers`, `BrokerError`."""
        ...

    async def presence_stats(self, channel: str) -> PresenceStatsResult:
        """How many clients, and how many different users ("" is one of them). Raises `BrokerError`.

        In a channel of more than `MAX_MEMBERS`, `num_users` counts those of a dead replica until they are
        swept; `num_clients` never does.
        """
        ...

    def renounce(self) -> None:
        """Leave all entries to be swept, and go on under a new incarnation from the next `renew`."""
        ...

    def sweep(self) -> AsyncIterator[list[Departed]]:
        """Remove, page by page, what one dead incarnation left; no page when there is none to sweep.

        An iteration that is given up leaves the rest to a later sweep, here or elsewhere. Raises
        `BrokerError`.
        """
        ...


@runtime_checkable
class Restartable(Protocol):
    """Optional: a reading connection that can be replaced when it is up but does not hear what it should."""

    def restart_reading(self) -> None: ...

    async def is_subscribed(self) -> bool | None:
        """Whether the broker counts the subscriptions that this replica believes to have.

        None: that cannot be compared now, since some are under way. Raises `BrokerError`.
        """
        ...


_LETTERS = bytes(ord(ascii_letters[byte % len(ascii_letters)]) for byte in range(256))


def new_epoch() -> bytes:
    """`envelope.EPOCH_SIZE` random letters."""
    return urandom(EPOCH_SIZE).translate(_LETTERS)


class Backend(BroadcastBackend, ABC):
    """The `BroadcastBackend` face of our brokers. Subclasses bring the `Broker` methods."""

    MAILBOX_SIZE = 1024

    kind = "abstract"

    def __init__(self) -> None:
        self._on_batch: OnBatch | None = None
        self._on_restored: OnRestored | None = None
        # Only filled under `Broadcast(backend=...)`; reading is paused when it is full, so it is bounded
        # by one socket read more than its size.
        self._mailbox: deque[Event] = deque()
        self._mail = asyncio.Event()

    def listen(self, on_batch: OnBatch, on_restored: OnRestored | None = None) -> None:
        self._on_batch = on_batch
        self._on_restored = on_restored

    def _restored(self) -> None:
        if self._on_restored is not None:
            self._on_restored()

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
    def send(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[None]: ...

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
