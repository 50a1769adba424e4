"""Who is here, and how a batch from the broker reaches them.

`deliver` is synchronous: per channel, in order, each variant's bytes are made once and appended to each
subscriber's outbox; at the end there is one write per dirty client, however many channels it hears. That
batching is natural: with one message in flight nothing waits, with many a client still costs one `send()`,
which is the whole price.

A fan-out of writes that would hold the event loop for more than `SLICE` seconds is cut between two clients
and goes on in the next loop turn. While clients are left, the broker is paused: the backlog stays in TCP, and
the next read is a bigger batch. Appending is never cut (0.1 µs a subscriber), so every live subscriber of a
channel is always at the same position, and joining needs no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from bongsu.brokers import envelope
from bongsu.brokers.base import Broker, BrokerUnavailable, Event
from bongsu.metrics import Metrics
from bongsu.node.backlog import Backlog, Policy, Waiting
from bongsu.node.channel import Channel, Joining
from bongsu.node.client import Client
from bongsu.node.healing import Healer
from bongsu.node.recovery import Hole, follow
from bongsu.node.variants import Variant
from bongsu.protocol.errors import SLOW, Disconnect, ProtocolError
from bongsu.protocol.messages import Join, Leave, Publication, StreamPosition

SLICE = 0.010
"""Seconds of writing after which the loop gets a turn."""

LINGER = 1.0
"""Seconds an empty channel stays subscribed: absorbs clients that come and go."""

JOINING_MAX_SIZE = 1024 * 1024
"""Bytes a subscriber may miss while it joins, before it counts as slow."""

JOINING_MAX_MESSAGES = 10_000
"""Joins and leaves that may wait for it meanwhile."""

_WRITES_PER_CLOCK_READ = 32

log = structlog.get_logger("bongsu.node")


class Hub:
    """The subscribers of one replica. Belongs to one event loop; nothing in it awaits."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._channels: dict[str, Channel] = {}
        self._dirty: deque[Client] = deque()
        self._scheduled = False
        self._delivering = False
        self._broker_paused = False
        self._to_close: list[tuple[Client, Disconnect]] = []
        self._delivered = 0  # and not counted yet: a counter's lock costs as much as ten deliveries
        self._watched: set[Client] = set()
        self._watch_timer: asyncio.TimerHandle | None = None
        self.healer = Healer(broker, self)

    # Subscriptions

    def reserve(self, name: str) -> Channel:
        """Hold channel `name` and have the broker hear it. Pair with `release`; await `ready` to promise."""
        channel = self._channels.get(name)
        if channel is None:
            self._broker.want(name)
            channel = self._channels[name] = Channel(name)
        channel.reserved += 1
        if channel.linger is not None:
            channel.linger.cancel()
            channel.linger = None
        return channel

    def release(self, channel: Channel) -> None:
        channel.reserved -= 1
        self._maybe_linger(channel)

    def ready(self, channel: Channel) -> asyncio.Future[None]:
        """Done when every publication from now on will be heard.

        Fails with `BrokerError`, at once while the broker is away.
        """
        if self._broker.is_away:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(BrokerUnavailable("the broker is away"))
            return failed
        # Asked again each time: the broker makes a new future after a reconnect.
        wanted = self._broker.want(channel.name)
        return wanted if wanted.done() else asyncio.shield(wanted)

    def join(self, channel: Channel, client: Client, variant: Variant) -> None:
        """From now on nothing in `channel` is missed, but kept aside until `admit`."""
        channel.joining[client] = Joining(variant)

    def follows(self, channel: Channel, client: Client, position: StreamPosition) -> bool:
        """Whether a joining subscriber that is answered with `position` can be admitted without a hole."""
        joining = channel.joining.get(client)
        if joining is None:
            return True
        try:
            self._kept(channel, joining, position)
        except Hole:
            return False
        return True

    def admit(
        self,
        channel: Channel,
        client: Client,
        position: StreamPosition | None = None,
        variant: Variant | None = None,
    ) -> None:
        """Make a joining subscriber live: first what was kept for it, then what comes.

        `position` is what its answer said (None: it follows no stream); raises `Hole` where `follows` is
        false. `variant` replaces the one it joined with. No-op when it left meanwhile.
        """
        joining = channel.joining.get(client)
        if joining is None:
            return
        kept = joining.publications
        if position is not None:
            kept = self._kept(channel, joining, position)
            joining.offset = max([position.offset, *[one.offset for one in kept]])
            self._settle_epoch(channel, position.epoch)
            if not channel.followed:
                channel.epoch, channel.offset = position.epoch, joining.offset
        joining.variant = variant or joining.variant
        joining.publications = []
        if kept:
            self._send(channel, [client], joining.variant, kept, None)
            joining.variant = joining.variant.after(kept)
        presence, joining.presence = joining.presence, []
        for message in presence:
            self._send_presence(channel, [client], joining.variant, message)
        joining.admitted = True
        self._settle(channel, client, joining)

    def _kept(self, channel: Channel, joining: Joining, position: StreamPosition) -> list[Publication]:
        """What follows `position`. Raises `Hole`."""
        kept = follow(position, joining.publications)
        at = max([position.offset, *[one.offset for one in kept]])
        if channel.epoch == position.epoch and channel.offset > at:
            # It joined after its history was read for somebody else; the ring knows what came in between.
            between = channel.since(at)
            if between is None:
                raise Hole(f"the channel is at {channel.offset}, the subscriber at {at}")
            kept += between
        return kept

    def leave(self, channel: Channel, client: Client) -> None:
        """Take `client` out of `channel`, joining or live."""
        channel.remove(client)
        self._maybe_linger(channel)

    def listen(self, name: str, listener: Callable[[bytes], None]) -> None:
        """Give the payloads of a channel between replicas to `listener`, which must not raise."""
        channel = self.reserve(name)
        channel.listeners.append(listener)
        self.release(channel)

    def counts(self) -> dict[str, int]:
        """Live subscribers by channel, for channels that have any."""
        counts = {name: channel.count() for name, channel in self._channels.items()}
        return {name: count for name, count in counts.items() if count}

    def followed(self) -> list[Channel]:
        """Channels whose stream's position is known here."""
        return [channel for channel in self._channels.values() if channel.followed]

    def channel(self, name: str) -> Channel | None:
        """The channel, if somebody is in it or was a moment ago."""
        return self._channels.get(name)

    def _maybe_linger(self, channel: Channel) -> None:
        if channel.is_empty() and channel.linger is None:
            channel.linger = asyncio.get_running_loop().call_later(LINGER, self._forget, channel)

    def _forget(self, channel: Channel) -> None:
        channel.linger = None
        if channel.is_empty():
            self.healer.forget(channel)
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
        try:
            for name, payloads in by_channel.items():
                channel = self._channels.get(name)
                if channel is None:
                    continue
                if channel.listeners:
                    for payload in payloads:
                        for listener in channel.listeners:
                            listener(payload)
                    continue
                self._follow(channel, self._decode(payloads))
        finally:
            self._delivering = False
            self._flush()

    def resume_following(self, channel: Channel, messages: list[Publication | Join | Leave]) -> None:
        """What a healed channel held back, now that it is at its position again."""
        self._delivering = True
        try:
            self._follow(channel, messages)
        finally:
            self._delivering = False
            self._flush()

    def lose(self, channel: Channel) -> None:
        """Tell everybody who must not miss anything that they have; the channel's position is unknown now."""
        self._lose_place(channel)
        self._flush()

    def _follow(self, channel: Channel, messages: list[Publication | Join | Leave]) -> None:
        """Deliver `messages` in the order of the stream; at a gap, hold the channel and have it healed."""
        if channel.held is not None:
            self.healer.hold(channel, messages)
            return
        run: list[Publication] = []
        for place, message in enumerate(messages):
            if not isinstance(message, Publication):
                self._dispatch(channel, run)
                run = []
                self._dispatch_presence(channel, message)
            elif not message.offset:
                run.append(message)
            elif message.epoch != channel.epoch:
                self._dispatch(channel, run)
                run = [message]
                self._settle_epoch(channel, message.epoch)
                channel.epoch, channel.offset = message.epoch, message.offset
            elif message.offset == channel.offset + 1:
                channel.offset = message.offset
                run.append(message)
            elif message.offset > channel.offset:
                if channel.has_positioned():
                    self._dispatch(channel, run)
                    self.healer.heal(channel, messages[place:])
                    return
                channel.ring.clear()
                channel.offset = message.offset
                run.append(message)
            # At or below: read from the history a moment ago, when a gap was healed.
        self._dispatch(channel, run)

    def _dispatch(self, channel: Channel, run: list[Publication]) -> None:
        if not run:
            return
        previous = channel.ring[-1] if channel.ring else None
        moved: list[tuple[Variant, Variant]] = []
        for variant, group in channel.groups.items():
            self._delivered += len(group) * len(run)
            self._send(channel, group, variant, run, previous)
            if (then := variant.after(run)) is not variant:
                moved.append((variant, then))
        for variant, then in moved:  # not before all are served: the next group may be the one they move to
            channel.regroup(variant, then)
        if channel.joining:
            for client, joining in list(channel.joining.items()):
                self._keep(channel, client, joining, run)
        if channel.followed:
            channel.remember(run)
            channel.checked_at = channel.remembered_at

    def _keep(self, channel: Channel, client: Client, joining: Joining, run: list[Publication]) -> None:
        if joining.admitted:
            # Answered, with a position that the channel reaches only now.
            ahead = joining.offset
            new = [one for one in run if not one.offset or one.offset > ahead]
            if new:
                self._send(channel, [client], joining.variant, new, None)
                joining.variant = joining.variant.after(new)
            self._settle(channel, client, joining)
            return
        joining.publications.extend(run)
        joining.size += sum(len(one.data) for one in run)
        if joining.size > JOINING_MAX_SIZE:
            self._slow(client, "joining")

    def _settle(self, channel: Channel, client: Client, joining: Joining) -> None:
        """Live, as soon as the channel is where the subscriber is."""
        if channel.offset >= joining.offset:
            del channel.joining[client]
            channel.groups.setdefault(joining.variant, {})[client] = None

    def _settle_epoch(self, channel: Channel, epoch: str) -> None:
        """The stream is of `epoch` now: whoever followed another one has lost its place."""
        if channel.followed and channel.epoch != epoch:
            self._lose_place(channel)

    def _lose_place(self, channel: Channel) -> None:
        """Tell them at once: what comes next is of a stream that they do not follow, and not for them."""
        lost = [client for variant, group in channel.groups.items() if variant.positioned for client in group]
        lost += [client for client, one in channel.joining.items() if one.admitted and one.offset]
        channel.forget_position()
        for client in lost:
            if client.lost_position is not None:
                client.lost_position(channel.name)

    def _dispatch_presence(self, channel: Channel, message: Join | Leave) -> None:
        for variant, group in channel.groups.items():
            if variant.joins:
                self._send_presence(channel, group, variant, message)
        for client, joining in channel.joining.items():
            if not joining.variant.joins:
                continue
            if joining.admitted:
                self._send_presence(channel, [client], joining.variant, message)
            elif len(joining.presence) < JOINING_MAX_MESSAGES:
                joining.presence.append(message)
            else:
                self._slow(client, "joining")

    def _send_presence(
        self, channel: Channel, group: Iterable[Client], variant: Variant, message: Join | Leave
    ) -> None:
        try:
            chunk = variant.presence(channel.name, message)
        except ProtocolError as error:
            self._to_close.extend((client, error.disconnect) for client in group)
            return
        self._append(group, [chunk])

    def _send(
        self,
        channel: Channel,
        group: Iterable[Client],
        variant: Variant,
        publications: list[Publication],
        previous: Publication | None,
    ) -> None:
        try:
            chunks = variant.render(channel.name, publications, previous)
        except ProtocolError as error:
            # Closed when all is written: what came before is theirs.
            self._to_close.extend((client, error.disconnect) for client in group)
            publications = _sendable(channel, variant, publications, previous)
            chunks = variant.render(channel.name, publications, previous)
        if channel.policy is not None and self._watched:
            group = self._held_back(channel, channel.policy, group, variant, publications)
        self._append(group, chunks)

    def _held_back(
        self,
        channel: Channel,
        policy: Policy,
        group: Iterable[Client],
        variant: Variant,
        publications: list[Publication],
    ) -> list[Client]:
        """Give the paused ones of `group` one publication after another, to give up; return the others."""
        others: list[Client] = []
        backlogs: list[Backlog] = []
        for client in group:
            backlog = client.backlog
            if backlog is None:
                others.append(client)
            else:
                backlogs.append(backlog)
        if backlogs:
            for publication in publications:
                for chunk in variant.render(channel.name, [publication], None):
                    waiting = Waiting(policy, channel.name, variant, publication, chunk)
                    for backlog in backlogs:
                        backlog.hold(waiting)
        return others

    def _append(self, group: Iterable[Client], chunks: list[bytes]) -> None:
        if not chunks:
            return
        dirty = self._dirty
        outbox = tuple(chunks)
        # `Client.emit`, unrolled: these lines run once per delivery.
        for client in group:
            pending = client.pending
            if pending is None:
                client.pending = outbox
                dirty.append(client)
            elif isinstance(pending, tuple):
                client.pending = [*pending, *outbox]
            else:
                for chunk in outbox:
                    pending.append(chunk)
        if dirty and not self._delivering:
            self._schedule()

    def _decode(self, payloads: list[bytes]) -> list[Publication | Join | Leave]:
        messages: list[Publication | Join | Leave] = []
        for payload in payloads:
            try:
                message = envelope.decode(payload)
                if isinstance(message, envelope.Control):
                    raise envelope.UnknownEnvelope("a control message in a channel")
            except envelope.UnknownEnvelope as error:
                self._metrics.unknown_envelopes.inc()
                log.warning("skipped a message that this version does not know", error=str(error))
                continue
            messages.append(message)
        return messages

    # Writing

    def dirty(self, client: Client) -> None:
        self._dirty.append(client)
        if not self._delivering:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
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
        self._settle_accounts()
        if dirty:
            self._schedule()
        if bool(dirty) != self._broker_paused:
            self._broker_paused = bool(dirty)
            if self._broker_paused:
                self._broker.pause()
            else:
                self._broker.resume()

    def _settle_accounts(self) -> None:
        """Count, and close whom the fan-out could not: it must not change the groups it walks through."""
        if self._delivered:
            self._metrics.deliveries.inc(self._delivered)
            self._delivered = 0
        to_close, self._to_close = self._to_close, []
        for client, disconnect in to_close:
            self._watched.discard(client)
            client.close(disconnect)

    # Slow clients

    def overflowed(self, client: Client) -> None:
        self._slow(client, "overflow")
        if not self._delivering:
            self._schedule()

    def dropped(self, policy: Policy) -> None:
        self._metrics.dropped.labels(policy.name).inc()

    def _slow(self, client: Client, reason: str) -> None:
        self._metrics.slow.labels(reason).inc()
        self._to_close.append((client, SLOW))

    def watch(self, client: Client) -> None:
        self._watched.add(client)
        if self._watch_timer is None:
            self._watch_timer = asyncio.get_running_loop().call_later(0.5, self._watch)

    def _watch(self) -> None:
        self._watch_timer = None
        now = time.monotonic()
        for client in list(self._watched):
            if client.backlog is None:
                self._watched.discard(client)
            elif client.is_stuck(now):
                self._watched.discard(client)
                self._metrics.slow.labels("stalled").inc()
                client.close(SLOW)
        if self._watched:
            self._watch_timer = asyncio.get_running_loop().call_later(0.5, self._watch)


def _sendable(
    channel: Channel, variant: Variant, publications: list[Publication], previous: Publication | None
) -> list[Publication]:
    """Those before the first that subscribers of this variant cannot be sent."""
    for place, publication in enumerate(publications):
        try:
            variant.render(channel.name, [publication], previous)
        except ProtocolError:
            return publications[:place]
        variant, previous = variant.after([publication]), publication
    return publications
