"""One replica's engine: publishes, keeps the beacon burning, knows who is connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from bongsu._version import __version__
from bongsu.brokers import envelope
from bongsu.brokers.base import (
    Appended,
    Broker,
    BrokerError,
    BrokerState,
    BrokerUnavailable,
    Event,
    Leases,
    OutcomeUnknown,
    Page,
    Relayed,
    Restartable,
    StreamOptions,
    Streams,
)
from bongsu.brokers.envelope import Control
from bongsu.metrics import Metrics
from bongsu.node.beacon import PATIENCE, PERIOD, Beacon, Beat, Health
from bongsu.node.channel import Channel
from bongsu.node.channels import ChannelRules
from bongsu.node.client import Client
from bongsu.node.control import CONTROL, ControlTarget
from bongsu.node.control_plane import ControlPlane
from bongsu.node.hub import Hub
from bongsu.node.presence import Roster
from bongsu.node.unsent import Unsent, follow
from bongsu.protocol import problems
from bongsu.protocol.errors import ERROR_BAD_REQUEST, ERROR_UNRECOVERABLE_POSITION, SHUTDOWN, Error
from bongsu.protocol.messages import (
    HistoryResult,
    Publication,
    StreamPosition,
)
from bongsu.protocol.problems import Problem

log = structlog.get_logger("bongsu.node")


class DeliveredHere(OutcomeUnknown):
    """The broker is away: subscribers of this replica have it, those of the others do not, nor will they.

    Trying again gives it to the former twice.
    """


class Node:
    """The one object that transports and the API talk to. Belongs to one event loop."""

    def __init__(
        self, *, replica: str, broker: Broker, metrics: Metrics, position_check_delay: float = 40.0
    ) -> None:
        """`position_check_delay`: seconds without a publication after which a channel's position is
        looked up.
        """
        self.replica = replica
        self._position_check_delay = position_check_delay
        self._streams = broker if isinstance(broker, Streams) else None
        self._reading: dict[tuple[str, StreamPosition | None, int, bool], asyncio.Future[Page]] = {}
        self.metrics = metrics
        self._published_well = metrics.published.labels("ok")
        self.broker = broker
        self.hub = Hub(broker, metrics)
        self.roster = Roster(broker)
        self.clients: set[Client] = set()
        metrics.clients.set_function(lambda: len(self.clients))
        self.started = time.time()
        self._beacon = Beacon(replica, now=time.monotonic())
        self._beating: asyncio.Task[None] | None = None
        self._draining = False
        self._control: ControlPlane | None = None
        self._unsent = Unsent(send=broker.send, is_away=lambda: broker.is_away, give_up=self._deliver_here)
        broker.listen(self._on_batch, self.hub.healer.catch_up)

    def serve_control(self, target: ControlTarget) -> ControlPlane:
        """Do what other replicas ask with the connections of `target`. Before `start`."""
        self._control = ControlPlane(
            replica=self.replica,
            broker=self.broker,
            target=target,
            living=lambda: [beat.replica for beat in self.replicas()],
            on_beat=lambda beat: self._beacon.heard(beat, now=time.monotonic()),
            metrics=self.metrics,
        )
        return self._control

    # Life

    async def start(self) -> None:
        """Connect to the broker and light the beacon. A broker that is away is waited for in the
        background.
        """
        if self._control is None:
            self.hub.listen(CONTROL, self._on_control)
        else:
            for channel in self._control.channels_to_hear:
                self.hub.listen(channel, self._control.receive)
        await self.broker.connect()
        await self.roster.start()
        self._beating = asyncio.create_task(self._beat_forever(), name="beacon")
        self._beating.add_done_callback(self._beacon_went_out)

    async def stop(self) -> None:
        """In this order: no more beacons, lease back, broker away."""
        self._draining = True
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        if self._control is not None:
            await self._control.stop()
        self._unsent.stop()
        await self.hub.healer.stop()
        await self.roster.stop(within=2)
        if isinstance(self.broker, Leases) and self.broker.state is BrokerState.CONNECTED:
            try:
                async with asyncio.timeout(1):
                    await self.broker.release(self.replica)
            except (BrokerError, TimeoutError) as error:
                log.warning("the lease could not be returned; it runs out by itself", error=str(error))
        await self.broker.disconnect()

    def drain(self) -> None:
        """From now on not ready, and no new client."""
        self._draining = True

    async def disconnect_all(self, *, within: float, waves: int = 10) -> None:
        """Tell every client to reconnect elsewhere (3001), in `waves` spread over `within` seconds."""
        clients = list(self.clients)
        size = max(1, -(-len(clients) // waves))
        for start in range(0, len(clients), size):
            for client in clients[start : start + size]:
                client.close(SHUTDOWN)
            if start + size < len(clients):
                await asyncio.sleep(within / waves)

    # Health

    def health(self) -> Health:
        """What `/readyz` says."""
        if self._draining:
            return Health.DRAINING
        if self._beating is None:
            return Health.STARTING
        if self._beating.done() or self.roster.failed:
            return Health.FAILED
        return self._beacon.judge(now=time.monotonic())

    def replicas(self) -> list[Beat]:
        """Every replica alive as known here; this one's count is of this moment."""
        own = self._own_beat()
        others = [
            beat for beat in self._beacon.replicas(now=time.monotonic()) if beat.replica != self.replica
        ]
        return sorted([own, *others], key=lambda beat: beat.replica)

    def count_cluster(self) -> int:
        """Clients connected to all replicas."""
        return sum(beat.clients for beat in self.replicas())

    def check_open(self, *, connection_limit: int) -> None:
        """Whether one more client may come in. Raises `Problem` (503: another replica may take it)."""
        health = self.health()
        if health is Health.DRAINING:
            raise Problem(problems.DRAINING, "This replica is shutting down; connect again.", retry_after=1)
        if health in (Health.DEAF, Health.FAILED):
            detail = "This replica does not hear the others; connect again."
            raise Problem(problems.DEAF, detail, retry_after=1)
        if connection_limit and len(self.clients) >= connection_limit:
            detail = f"This replica takes {connection_limit} connections; connect again."
            raise Problem(problems.TOO_MANY_CONNECTIONS, detail, retry_after=1)

    # Clients

    def add(self, client: Client) -> None:
        self.clients.add(client)

    def remove(self, client: Client) -> None:
        self.clients.discard(client)
        if client.closed_with is not None:
            self.metrics.disconnects.labels(client.closed_with.code).inc()

    # Publishing

    def publish(
        self,
        rules: ChannelRules,
        publication: Publication,
        *,
        skip_history: bool = False,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[Appended]:
        """Send to every replica, through the channel's history if it has one.

        The order is that of the calls, not of the awaits. The position has offset 0 without history. Fails
        with `BrokerUnavailable` (nothing happened, try again), `OutcomeUnknown`, or `DeliveredHere` where the
        channel may do without the others while the broker is away.
        """
        options = rules.options
        if options.has_history and not skip_history:
            assert self._streams is not None, "a broker without streams is refused at the start"
            appended = self._streams.append(
                rules.name,
                publication,
                StreamOptions(options.history_size, options.history_ttl, options.history_meta_ttl),
                idempotency_key=idempotency_key,
                version=version,
                version_epoch=version_epoch,
                relayed=relayed,
            )
            appended.add_done_callback(self._published)
            return appended
        payload = envelope.encode(publication)
        repeated = bool(idempotency_key) or relayed is not None
        published: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        published.add_done_callback(self._published)
        if options.local_when_broker_is_away and not options.has_history and not repeated:
            self._unsent.publish(rules.name, payload, published)
            return published
        # What its publisher is going to repeat, until the broker has it, would come here twice.
        if self._streams is not None and repeated:
            sent = self._streams.send(rules.name, payload, idempotency_key=idempotency_key, relayed=relayed)
        else:
            sent = self.broker.send(rules.name, payload)
        follow(sent, published)
        return published

    def _deliver_here(
        self, channel: str, payload: bytes, published: asyncio.Future[Appended], error: BrokerUnavailable
    ) -> None:
        """The broker does not take it: subscribers of this replica have it at least."""
        self.hub.deliver([(channel, payload)])
        published.set_exception(DeliveredHere(f"only subscribers of this replica have it: {error}"))

    async def settle(self, channel: str, keys: Sequence[str]) -> None:
        """Forget what relays have published and their rows no longer ask for. Raises `BrokerError`."""
        if self._streams is not None:
            await self._streams.settle(channel, keys)

    def _published(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._published_well.inc()
        elif isinstance(error, DeliveredHere):
            self.metrics.published.labels("here_only").inc()
        elif isinstance(error, OutcomeUnknown):
            self.metrics.published.labels("unknown").inc()
        else:
            self.metrics.published.labels("unavailable").inc()

    # History

    def read(
        self,
        channel: Channel,
        *,
        since: StreamPosition | None,
        limit: int,
        reverse: bool = False,
    ) -> asyncio.Future[Page]:
        """A look into a channel's stream, one for all who look the same way now. Fails with `BrokerError`.

        For subscribers that have joined the hub: what a shared answer is too old to hold, the ring has.
        """
        assert self._streams is not None, "a broker without streams is refused at the start"
        key = (channel.name, since, limit, reverse)
        reading = self._reading.get(key)
        if reading is None:
            reading = self._streams.read(
                channel.name, since=since, limit=limit, reverse=reverse, meta_ttl=channel.meta_ttl
            )
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return asyncio.shield(reading)

    async def history(
        self, rules: ChannelRules, *, since: StreamPosition | None, limit: int, reverse: bool
    ) -> HistoryResult | Error:
        """A page of history (§6.3); error 107 or 112. `limit` < 0: all that is kept. Raises `BrokerError`."""
        assert self._streams is not None, "a broker without streams is refused at the start"
        if reverse and since is not None and not since.offset:
            return ERROR_BAD_REQUEST
        meta_ttl = rules.options.history_meta_ttl
        page = await self._streams.read(
            rules.name, since=since, limit=limit, reverse=reverse, meta_ttl=meta_ttl
        )
        if since is not None and since.epoch not in ("", page.epoch):
            return ERROR_UNRECOVERABLE_POSITION
        return HistoryResult(page.publications, page.epoch, page.offset)

    async def remove_history(self, rules: ChannelRules) -> None:
        """Forget what was published in a channel; its position goes on. Raises `BrokerError`."""
        assert self._streams is not None, "a broker without streams is refused at the start"
        await self._streams.remove(rules.name)

    # The beacon

    def _on_batch(self, batch: list[Event]) -> None:
        self.hub.deliver(batch)

    def _on_control(self, payload: bytes) -> None:
        try:
            message = envelope.decode(payload)
            if not isinstance(message, Control):
                raise envelope.UnknownEnvelope("not a control message")
            beat = msgspec.json.decode(message.body, type=Beat)
        except (envelope.UnknownEnvelope, msgspec.DecodeError) as error:
            self.metrics.unknown_envelopes.inc()
            log.warning("skipped a control message that this version does not know", error=str(error))
            return
        self._beacon.heard(beat, now=time.monotonic())

    async def _beat_forever(self) -> None:
        last, since = self.health(), time.monotonic()
        while True:
            await self._beat()
            await self._compare_subscriptions()
            if self.broker.state is BrokerState.CONNECTED:
                self.hub.healer.check(older_than=self._position_check_delay, now=time.monotonic())
            health = self._beacon.judge(now=time.monotonic())
            self._show(health)
            if health is not last:
                if Health.STARTING not in (health, last):
                    log.warning("health changed", was=last.value, now=health.value)
                last, since = health, time.monotonic()
            if health is Health.DEAF and self.clients and time.monotonic() - since > PATIENCE:
                # A new reading connection did not help either, and the others hear each other: these clients
                # are better off there. Who connects meanwhile is refused, so this ends.
                log.error("moving clients to replicas that hear", clients=len(self.clients))
                await self.disconnect_all(within=PERIOD)
            await asyncio.sleep(PERIOD)

    async def _beat(self) -> None:
        beat = self._own_beat()
        body = msgspec.json.encode(beat)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.broker.send(CONTROL, envelope.encode(Control(body)))
                if isinstance(self.broker, Leases):
                    found = await self.broker.renew(self.replica, body, PATIENCE)
                    leases = {name: self._lease(name, data) for name, data in found.items()}
                else:
                    leases = {self.replica: beat}
        except (BrokerError, TimeoutError) as error:
            log.debug("no beacon this time", error=str(error))
            self._beacon.not_renewed()
            return
        now = time.monotonic()
        self._beacon.renewed(leases, now=now)
        if isinstance(self.broker, Restartable) and self._beacon.wants_new_reading(now=now):
            # The connection is up and silent: half open, or left on a server that nobody publishes to.
            log.error("own beacon not heard, replacing the reading connection")
            self.broker.restart_reading()

    async def _compare_subscriptions(self) -> None:
        if not isinstance(self.broker, Restartable):
            return
        try:
            async with asyncio.timeout(PATIENCE):
                subscribed = await self.broker.is_subscribed()
        except (BrokerError, TimeoutError) as error:
            log.debug("subscriptions could not be compared", error=str(error))
            return
        if self._beacon.wants_to_subscribe_again(subscribed):
            log.error("the broker counts other subscriptions, replacing the reading connection")
            self.broker.restart_reading()

    def _lease(self, name: str, data: bytes) -> Beat:
        """What a replica says in its lease. One of another version is alive all the same."""
        try:
            return msgspec.json.decode(data, type=Beat)
        except msgspec.DecodeError as error:
            self.metrics.unknown_envelopes.inc()
            log.warning("a lease that this version does not know", of=name, error=str(error))
            return Beat(name, 0, time.time(), "unknown")

    def _own_beat(self) -> Beat:
        return Beat(
            self.replica,
            len(self.clients),
            self.started,
            __version__,
            self._beacon.hears(now=time.monotonic()),
        )

    def _show(self, health: Health) -> None:
        metrics = self.metrics
        metrics.ready.set(health is Health.READY and not self._draining)
        metrics.broker_connected.set(self.broker.state is BrokerState.CONNECTED)
        metrics.beacon_age.set(self._beacon.age(now=time.monotonic()))
        metrics.replicas.set(len(self.replicas()))
        reconnects = getattr(self.broker, "reconnects", 0)
        metrics.broker_reconnects.set(reconnects)

    def _beacon_went_out(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("the beacon died; this replica is not ready any more", exc_info=task.exception())
