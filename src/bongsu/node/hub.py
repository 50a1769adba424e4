"""Who is here, and how a batch from the broker reaches them.

`deliver` is synchronous: per channel, in order, each variant's bytes are made once and appended to each
subscriber's outbox; at the end there is one write per dirty client, however many channels it hears. That
batching is natural: with one message in flight nothing waits, with many a client still costs one `send()`,
which is the whole price.

A fan-out of writes that would hold the event loop for more than `SLICE` seconds is cut between two clients
and goes on in the next loop turn. While clients are left, the broker is paused: the backlog stays in TCP,
and the next read is a bigger batch. Appending is never cut (0.1 µs a subscriber), so every subscriber of a
channel is always at the same position, and joining needs no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from bongsu.brokers import envelope
from bongsu.brokers.base import Broker, Event
from bongsu.metrics import Metrics
from bongsu.node.client import Client
from bongsu.protocol.errors import SLOW
from bongsu.protocol.messages import Publication

SLICE = 0.010
"""Seconds of writing after which the loop gets a turn."""

LINGER = 1.0
"""Seconds an empty channel stays subscribed: absorbs clients that come and go."""

JOINING_MAX_SIZE = 1024 * 1024
"""Bytes a subscriber may miss while it joins, before it counts as slow."""

_WRITES_PER_CLOCK_READ = 32

log = structlog.get_logger("bongsu.node")


class Variant(Protocol):
    """One way to put publications on the wire. Subscribers with equal variants share its bytes."""

    def render(self, publications: list[Publication]) -> list[bytes]:
        """Chunks for `Client.emit`, in order. Called once per batch and variant. Must not raise."""
        ...


class _Joining:
    """A subscriber whose subscription is not answered yet: what it would have missed."""

    __slots__ = ("chunks", "size", "variant")

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.chunks: list[bytes] = []
        self.size = 0


class Channel:
    """One channel with somebody here. `groups` are the live subscribers by variant."""

    __slots__ = ("groups", "joining", "linger", "listeners", "name", "ready", "reserved")

    def __init__(self, name: str, ready: asyncio.Future[None]) -> None:
        self.name = name
        self.ready = ready
        self.groups: dict[Variant, dict[Client, None]] = {}
        self.joining: dict[Client, _Joining] = {}
        self.listeners: list[Callable[[bytes], None]] = []
        self.reserved = 0
        self.linger: asyncio.TimerHandle | None = None

    def is_empty(self) -> bool:
        return not (self.reserved or self.groups or self.joining or self.listeners)


class Hub:
    """The subscribers of one replica. Belongs to one event loop; nothing in it awaits but `ready`."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._channels: dict[str, Channel] = {}
        self._dirty: deque[Client] = deque()
        self._scheduled = False
        self._delivering = False
        self._broker_paused = False
        self._overflowed: list[Client] = []
        self._watched: set[Client] = set()
        self._watch_timer: asyncio.TimerHandle | None = None

    # Subscriptions

    def reserve(self, name: str) -> Channel:
        """Hold channel `name` and have the broker hear it. Pair with `release`; `await ready` before
        promising.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name, self._broker.want(name))
        channel.reserved += 1
        if channel.linger is not None:
            channel.linger.cancel()
            channel.linger = None
        return channel

    def release(self, channel: Channel) -> None:
        channel.reserved -= 1
        self._maybe_linger(channel)

    async def ready(self, channel: Channel) -> None:
        """Return when every publication from now on will be heard. Raises `BrokerError`."""
        # Asked again each time: the broker makes a new future after a reconnect.
        await asyncio.shield(self._broker.want(channel.name))

    def join(self, channel: Channel, client: Client, variant: Variant) -> None:
        """From now on nothing in `channel` is missed, but kept aside until `admit`."""
        channel.joining[client] = _Joining(variant)

    def admit(self, channel: Channel, client: Client) -> None:
        """Make a joining subscriber live: first what it was kept, then what comes. No-op if it left
        meanwhile.
        """
        joining = channel.joining.pop(client, None)
        if joining is None:
            return
        for chunk in joining.chunks:
            client.emit(chunk)
        channel.groups.setdefault(joining.variant, {})[client] = None

    def leave(self, channel: Channel, client: Client) -> None:
        """Take `client` out of `channel`, joining or live."""
        if channel.joining.pop(client, None) is None:
            for variant, group in channel.groups.items():
                if client in group:
                    del group[client]
                    if not group:
                        del channel.groups[variant]
                    break
        self._maybe_linger(channel)

    def listen(self, name: str, listener: Callable[[bytes], None]) -> None:
        """Give the payloads of a channel between replicas to `listener`, which must not raise."""
        channel = self.reserve(name)
        channel.listeners.append(listener)
        self.release(channel)

    def _maybe_linger(self, channel: Channel) -> None:
        if channel.is_empty() and channel.linger is None:
            channel.linger = asyncio.get_running_loop().call_later(LINGER, self._forget, channel)

    def _forget(self, channel: Channel) -> None:
        channel.linger = None
        if channel.is_empty():
            del self._channels[channel.name]
            self._broker.drop(channel.name)

    # Fan-out

    def deliver(self, batch: list[Event]) -> None:
        """One batch from the broker, to everybody here, and one write per dirty client."""
        by_channel: dict[str, list[bytes]] = {}
        for name, payload in batch:
            payloads = by_channel.get(name)
            if payloads is None:
                by_channel[name] = [payload]
            else:
                payloads.append(payload)
        self._delivering = True
        for name, payloads in by_channel.items():
            channel = self._channels.get(name)
            if channel is not None:
                self._dispatch(channel, payloads)
        self._delivering = False
        self._flush()

    def deliver_here(self, name: str, publication: Publication) -> None:
        """Only to the subscribers of this replica (the broker is away)."""
        self.deliver([(name, envelope.encode(publication))])

    def _dispatch(self, channel: Channel, payloads: list[bytes]) -> None:
        if channel.listeners:
            for payload in payloads:
                for listener in channel.listeners:
                    listener(payload)
            return
        publications = self._decode(payloads)
        if not publications:
            return
        count = 0
        for variant, group in channel.groups.items():
            count += len(group)
            self._append(group, variant.render(publications))
        for client, joining in channel.joining.items():
            for chunk in joining.variant.render(publications):
                joining.chunks.append(chunk)
                joining.size += len(chunk)
            if joining.size > JOINING_MAX_SIZE:
                self._overflowed.append(client)
        self._metrics.deliveries.inc(count * len(publications))

    def _append(self, group: Iterable[Client], chunks: list[bytes]) -> None:
        dirty = self._dirty
        for chunk in chunks:
            # `Client.emit`, unrolled: this line runs once per delivery.
            for client in group:
                pending = client.pending
                if pending is None:
                    client.pending = [chunk]
                    dirty.append(client)
                else:
                    pending.append(chunk)

    def _decode(self, payloads: list[bytes]) -> list[Publication]:
        publications = []
        for payload in payloads:
            try:
                message = envelope.decode(payload)
            except envelope.UnknownEnvelope as error:
                self._metrics.unknown_envelopes.inc()
                log.warning("skipped a message that this version does not know", error=str(error))
                continue
            if isinstance(message, Publication):
                publications.append(message)
        return publications

    # Writing

    def dirty(self, client: Client) -> None:
        self._dirty.append(client)
        if not (self._scheduled or self._delivering):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        dirty = self._dirty
        until = time.perf_counter() + SLICE
        while dirty:
            for _ in range(min(len(dirty), _WRITES_PER_CLOCK_READ)):
                dirty.popleft().flush()
            if dirty and time.perf_counter() > until:
                break
        self._close_overflowed()
        if dirty and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_later)
        if bool(dirty) != self._broker_paused:
            self._broker_paused = bool(dirty)
            if self._broker_paused:
                self._broker.pause()
            else:
                self._broker.resume()

    # Slow clients

    def overflowed(self, client: Client) -> None:
        self._overflowed.append(client)
        if not self._delivering and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_later)

    def watch(self, client: Client) -> None:
        self._watched.add(client)
        if self._watch_timer is None:
            self._watch_timer = asyncio.get_running_loop().call_later(0.5, self._watch)

    def _watch(self) -> None:
        self._watch_timer = None
        now = time.monotonic()
        for client in list(self._watched):
            if not client.is_paused():
                self._watched.discard(client)
            elif client.is_stuck(now):
                self._close_slow(client)
        if self._watched:
            self._watch_timer = asyncio.get_running_loop().call_later(0.5, self._watch)

    def _close_overflowed(self) -> None:
        overflowed, self._overflowed = self._overflowed, []
        for client in overflowed:
            self._close_slow(client)

    def _close_slow(self, client: Client) -> None:
        self._watched.discard(client)
        if client.closed_with is None:
            client.close(SLOW)
