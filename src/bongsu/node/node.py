"""One replica's engine: publishes, keeps the beacon burning, knows who is connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import msgspec
import structlog

from bongsu._version import __version__
from bongsu.brokers import envelope
from bongsu.brokers.base import (
    Broker,
    BrokerError,
    BrokerState,
    BrokerUnavailable,
    Event,
    Leases,
    OutcomeUnknown,
    Restartable,
)
from bongsu.brokers.envelope import Control
from bongsu.metrics import Metrics
from bongsu.node.beacon import PATIENCE, PERIOD, Beacon, Beat, Health
from bongsu.node.client import Client
from bongsu.node.hub import Hub
from bongsu.protocol.errors import SHUTDOWN
from bongsu.protocol.messages import Publication

CONTROL = "\x00control"
"""The channel between replicas. No client can name it: channel names are printable."""

log = structlog.get_logger("bongsu.node")


class Node:
    """The one object that transports and the API talk to. Belongs to one event loop."""

    def __init__(self, *, replica: str, broker: Broker, metrics: Metrics) -> None:
        self.replica = replica
        self.metrics = metrics
        self.broker = broker
        self.hub = Hub(broker, metrics)
        self.clients: set[Client] = set()
        self.started = time.time()
        self._beacon = Beacon(replica, now=time.monotonic())
        self._beating: asyncio.Task[None] | None = None
        self._draining = False
        broker.listen(self._on_batch)

    # Life

    async def start(self) -> None:
        """Connect to the broker and light the beacon. A broker that is away is waited for in the
        background.
        """
        self.hub.listen(CONTROL, self._on_control)
        await self.broker.connect()
        self._beating = asyncio.create_task(self._beat_forever(), name="beacon")
        self._beating.add_done_callback(self._beacon_went_out)

    async def stop(self) -> None:
        """In this order: no more beacons, lease back, broker away."""
        self._draining = True
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
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
        if self._beating.done():
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

    # Clients

    def add(self, client: Client) -> None:
        self.clients.add(client)
        self.metrics.clients.set(len(self.clients))

    def remove(self, client: Client) -> None:
        self.clients.discard(client)
        self.metrics.clients.set(len(self.clients))
        if client.closed_with is not None:
            self.metrics.disconnects.labels(client.closed_with.code).inc()

    # Publishing

    def publish(self, channel: str, publication: Publication) -> Awaitable[None]:
        """Send to every replica. The order is that of the calls, not of the awaits.

        Raises when awaited: `BrokerUnavailable` (nothing happened, try again) or `OutcomeUnknown`.
        """
        future = self.broker.send(channel, envelope.encode(publication))
        future.add_done_callback(self._published)
        return future

    def publish_or_deliver_here(self, channel: str, publication: Publication) -> asyncio.Future[None]:
        """As `publish`, for a sender who can't be answered: with the broker away the clients here still
        hear it.

        Only for channels without history. The future never fails.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finished(future: asyncio.Future[None]) -> None:
            self._published(future)
            if not future.cancelled() and isinstance(future.exception(), BrokerUnavailable):
                self.hub.deliver_here(channel, publication)
                self.metrics.published.labels("here_only").inc()
            if not done.done():
                done.set_result(None)

        self.broker.send(channel, envelope.encode(publication)).add_done_callback(finished)
        return done

    def _published(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.metrics.published.labels("ok").inc()
        elif isinstance(error, OutcomeUnknown):
            self.metrics.published.labels("unknown").inc()
        else:
            self.metrics.published.labels("unavailable").inc()

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
                    leases = {name: msgspec.json.decode(data, type=Beat) for name, data in found.items()}
                else:
                    leases = {self.replica: beat}
        except (BrokerError, TimeoutError, msgspec.DecodeError) as error:
            log.debug("no beacon this time", error=str(error))
            self._beacon.not_renewed()
            return
        now = time.monotonic()
        self._beacon.renewed(leases, now=now)
        if isinstance(self.broker, Restartable) and self._beacon.wants_new_reading(now=now):
            # The connection is up and silent: half open, or left on a server that nobody publishes to.
            log.error("own beacon not heard, replacing the reading connection")
            self.broker.restart_reading()

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
