"""Replicas in this process, subscribers of one channel, and what may happen to them, by name."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from tests.model.ledger import Ledger, Violation
from tests.model.subscriber import CHANNEL, Subscriber

from bongsu.auth import TokenOptions, TokenVerifier
from bongsu.brokers.base import Appended, BrokerError, BrokerState, Event, OutcomeUnknown
from bongsu.brokers.memory import MemoryBroker
from bongsu.brokers.redis import RedisBroker
from bongsu.brokers.redis.names import Names
from bongsu.metrics import Metrics
from bongsu.node.channels import ChannelOptions, Channels
from bongsu.node.client import ClientOptions
from bongsu.node.handlers import Handlers
from bongsu.node.node import Node
from bongsu.node.services import Services
from bongsu.protocol.messages import Publication, StreamPosition

SIZE: Final = 8
"""Publications kept."""

TTL: Final = 300.0
META_TTL: Final = 3600.0
DEADLINE: Final = 30.0
_BARRIER: Final = "barrier"

Step: TypeAlias = tuple[Any, ...]
"""The name of a method of `World`, and its arguments."""

_CHANNELS: Final = Channels(
    ChannelOptions(
        join_leave=True,
        force_push_join_leave=True,
        history_size=SIZE,
        history_ttl=TTL,
        history_meta_ttl=META_TTL,
        force_recovery=True,
        allowed_delta_types=("fossil",),
        delta_publish=True,
        allow_subscribe_for_client=True,
        allow_subscribe_for_anonymous=True,
        allow_history_for_subscriber=True,
        allow_history_for_anonymous=True,
    ),
    {},
)

RULES: Final = _CHANNELS.rules(CHANNEL)


class Replica:
    """A node, and what its connections share."""

    def __init__(self, name: str, broker: MemoryBroker | RedisBroker, *, limit: int) -> None:
        self.broker = broker
        metrics = Metrics()
        self.node = Node(replica=name, broker=broker, metrics=metrics, position_check_delay=3600)
        tokens = TokenVerifier(TokenOptions())
        options = ClientOptions(recovery_max_publication_limit=limit, slow_timeout=3600)
        self.services = Services(
            self.node, _CHANNELS, tokens, tokens, options, Handlers(), metrics, anonymous=True
        )
        self.passed: set[bytes] = set()
        """Barriers that came by."""
        self.node.hub.listen(_BARRIER, self.passed.add)

    @property
    def heals(self) -> bool:
        channel = self.node.hub.channel(CHANNEL)
        return channel is not None and channel.held is not None

    async def stop(self) -> None:
        await self.services.stop()
        await self.node.stop()


class World(ABC):
    """`limit`: most publications of one recovery. `joins`: joins and leaves are compared too; makes sense
    where no message is lost.
    """

    def __init__(self, replicas: Sequence[Replica], *, limit: int, joins: bool) -> None:
        self.replicas = replicas
        self.ledger = Ledger(size=SIZE, limit=limit)
        self._complaints: list[str] = []
        self.subscribers = [
            Subscriber(f"subscriber {place}", self.ledger, self._complaints.append, delta=delta, joins=joins)
            for place, delta in enumerate((False, True, True, False))
        ]
        self._publishing: set[asyncio.Future[Appended]] = set()
        self._barriers = itertools.count()

    async def run(self, steps: Sequence[Step]) -> None:
        """Raises `Violation`."""
        try:
            for replica in self.replicas:
                await replica.node.start()
            for place, _ in enumerate(self.subscribers):
                await self.connect(place, place)
            for name, *arguments in steps:
                await getattr(self, name)(*arguments)
                self._check()
            await self._finish()
            await self._leave()
        finally:
            for subscriber in self.subscribers:
                subscriber.drop()
            await self._stop()

    async def _stop(self) -> None:
        for replica in self.replicas:
            await replica.stop()

    # Steps

    async def turns(self, count: int) -> None:
        """Let what is under way go on for a little while."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def publish(self, replica: int, count: int) -> None:
        for _ in range(count):
            number = self.ledger.number()
            data = b'{"n":%d,"text":"a beacon fire on the next hill, seen within minutes"}' % number
            publication = Publication(data, patchable=True)
            future = self._at(replica).node.publish(RULES, publication)
            self._publishing.add(future)
            future.add_done_callback(partial(self._published, number))

    async def connect(self, subscriber: int, replica: int) -> None:
        """Also when it is connected: that connection is lost then."""
        self.subscribers[subscriber].connect(self._at(replica).services)

    async def drop(self, subscriber: int) -> None:
        self.subscribers[subscriber].drop()

    async def subscribe(self, subscriber: int, strict: bool, afresh: bool) -> None:
        self.subscribers[subscriber].subscribe(strict=strict, afresh=afresh)

    async def miss(self, subscriber: int, replica: int, count: int) -> None:
        """It is away while `count` are published, and comes back at once."""
        await self.drop(subscriber)
        await self.publish(replica, count)
        await self.connect(subscriber, replica)
        await self.turns(2)
        await self.subscribe(subscriber, strict=False, afresh=False)

    async def unsubscribe(self, subscriber: int) -> None:
        self.subscribers[subscriber].unsubscribe()

    async def history(self, subscriber: int, limit: int, reverse: bool, since: bool) -> None:
        self.subscribers[subscriber].history(limit=limit, reverse=reverse, since=since)

    async def stall(self, subscriber: int) -> None:
        self.subscribers[subscriber].stall()

    async def flow(self, subscriber: int) -> None:
        self.subscribers[subscriber].flow()

    async def check_positions(self) -> None:
        """The periodic look at the stream's top."""
        for replica in self.replicas:
            replica.node.hub.healer.check(older_than=0, now=time.monotonic())

    async def remove_history(self) -> None:
        await self.settle()
        await self._at(0).node.remove_history(RULES)
        self.ledger.remove()

    async def begin_anew(self) -> None:
        """The broker forgets the stream: whatever comes is of another epoch."""
        await self.settle()
        page = await self._at(0).broker.read(CHANNEL, limit=0, meta_ttl=META_TTL)
        self.ledger.seen(page.epoch)  # a subscriber may be about to hear of it
        await self._forget()
        self.ledger.begin_anew()

    @abstractmethod
    async def _forget(self) -> None: ...

    @abstractmethod
    async def lose(self, replica: int, noticed: bool) -> None:
        """Messages on their way to a replica are lost. `noticed`: with the connection that brought them."""

    # Waiting

    async def settle(self) -> None:
        """Return when nothing is under way any more."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    await self._until(self._is_answered)
                    await asyncio.gather(*[self._barrier(replica) for replica in self.replicas])
                    await self._until(lambda: not any(replica.heals for replica in self.replicas))
                    if self._is_answered():
                        break
        except TimeoutError:
            raise Violation("something is still under way after half a minute") from None
        if self.ledger.under_way:
            await self._look_up()
        self._check()

    def _is_answered(self) -> bool:
        return not (self._publishing or any(subscriber.waits for subscriber in self.subscribers))

    async def _barrier(self, replica: Replica) -> None:
        """Return when all that was published before has come to `replica`."""
        while True:
            mark = b"%d" % next(self._barriers)
            try:
                await self._until(lambda: replica.broker.state is BrokerState.CONNECTED)
                await asyncio.shield(replica.broker.want(_BARRIER))
                await replica.broker.send(_BARRIER, mark)
                async with asyncio.timeout(1):
                    await self._until(partial(replica.passed.__contains__, mark))
            except (BrokerError, TimeoutError):
                continue
            return

    @abstractmethod
    async def _until(self, condition: Callable[[], bool]) -> None: ...

    async def _look_up(self) -> None:
        """Ask the history what became of publications whose publishers do not know."""
        page = await self._at(0).broker.read(CHANNEL, limit=-1, meta_ttl=META_TTL)
        for publication in page.publications:
            number = int(publication.data[5:].split(b",")[0])
            self.ledger.heard(publication.epoch, publication.offset, number)
        self.ledger.seen(page.epoch)
        self.ledger.top = page.offset
        self.ledger.under_way.clear()

    # Judging

    async def _finish(self) -> None:
        """Everybody comes back: each has the whole stream, or was told that it has not."""
        for subscriber in self.subscribers:
            subscriber.flow()
        await self.settle()
        await self.check_positions()
        for _ in range(3):
            await self._until_all_are_live()
            await self.publish(0, 1)
            await self.publish(1, 1)
            await self.settle()
        await self._until_all_are_live()
        page = await self._at(0).broker.read(CHANNEL, limit=-1, meta_ttl=META_TTL)
        top = StreamPosition(page.offset, page.epoch)
        for subscriber in self.subscribers:
            if subscriber.position != top:
                raise Violation(f"{subscriber.name} is at {subscriber.position}, the stream at {top}")
        if [one.offset for one in page.publications] != list(self.ledger.window(page.offset)):
            raise Violation("the window is not what it should be")
        if self.ledger.top != page.offset:
            raise Violation(f"publishers were told {self.ledger.top}, the stream is at {page.offset}")
        self._check()

    async def _leave(self) -> None:
        """Nothing is left of those who go, in the middle of whatever they were doing."""
        for place, subscriber in enumerate(self.subscribers):
            await self.connect(place, place)
            subscriber.subscribe()
            await self.turns(place)
            subscriber.drop()
        await self.settle()
        for replica in self.replicas:
            if replica.node.clients or replica.node.hub.counts().get(CHANNEL):
                raise Violation(f"{replica.node.hub.counts()} after everybody has left")

    async def _until_all_are_live(self) -> None:
        for _ in range(10):
            await self.settle()
            away = [
                (place, one) for place, one in enumerate(self.subscribers) if not (one.connected and one.live)
            ]
            if not away:
                return
            for place, subscriber in away:
                if not subscriber.connected:
                    await self.connect(place, place)
                subscriber.subscribe()
        raise Violation("subscribers do not come back")

    def _published(self, number: int, future: asyncio.Future[Appended]) -> None:
        self._publishing.discard(future)
        error = future.exception()
        try:
            if error is None:
                self.ledger.appended(number, future.result())
            elif isinstance(error, OutcomeUnknown):
                pass  # it stays under way until somebody hears it
            elif isinstance(error, BrokerError):
                self.ledger.refused(number)
            else:
                raise Violation(f"publishing raised {error!r}")
        except Violation as violation:
            self._complaints.append(str(violation))

    def _check(self) -> None:
        if self._complaints:
            raise Violation("; ".join(self._complaints))

    def _at(self, replica: int) -> Replica:
        return self.replicas[replica % len(self.replicas)]


class _ForgetfulBroker(MemoryBroker):
    """Its clock jumps, and its messages get lost."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.losing = False
        super().__init__(clock=lambda: time.monotonic() + self.ahead)

    def restored(self) -> None:
        self._restored()

    def _hand_over(self, batch: list[Event]) -> None:
        if self.losing and any(name == CHANNEL for name, _ in batch):
            batch = [event for event in batch if event[0] != CHANNEL]
            self.losing = False
        super()._hand_over(batch)


class MemoryWorld(World):
    """One replica over the memory broker."""

    def __init__(self, *, limit: int, joins: bool = False) -> None:
        self._broker = _ForgetfulBroker()
        super().__init__([Replica("alone", self._broker, limit=limit)], limit=limit, joins=joins)

    async def expire(self) -> None:
        """The window runs out, and its position does not."""
        await self.settle()
        self._broker.ahead += TTL + 1
        self.ledger.remove()

    async def lose(self, replica: int, noticed: bool) -> None:
        """The next messages of the channel, or those of this moment."""
        self._broker.losing = True
        if noticed:
            await asyncio.sleep(0)
            self._broker.losing = False
            self._broker.restored()

    async def _forget(self) -> None:
        self._broker.ahead += META_TTL + 1

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0)


class RedisWorld(World):
    """Two replicas on one Redis."""

    _worlds = itertools.count()

    def __init__(self, url: str, *, limit: int) -> None:
        # A prefix of its own, so that it begins with nothing without taking the others' away.
        prefix = f"world-{next(self._worlds)}"
        self._names = Names(prefix).of(CHANNEL)
        self._brokers = [RedisBroker(url, prefix=prefix) for _ in range(2)]
        replicas = [
            Replica(name, broker, limit=limit) for name, broker in zip("ab", self._brokers, strict=True)
        ]
        super().__init__(replicas, limit=limit, joins=False)
        self.ledger.fallible = True
        self._admin = Redis.from_url(url)

    async def cut(self) -> None:
        """All command connections are lost, with what is on its way through them."""
        await self._admin.client_kill_filter(_type="normal", skipme=True)

    async def expire(self) -> None:
        """The window is gone, as when it ran out, and the position is not."""
        await self.settle()
        await self._admin.delete(self._names.window)
        self.ledger.remove()

    async def lose(self, replica: int, noticed: bool) -> None:
        """The reading connection of one replica, or of all."""
        if noticed:
            self._brokers[replica].restart_reading()
        else:
            await self._admin.client_kill_filter(_type="pubsub", skipme=True)

    async def _forget(self) -> None:
        await self._admin.delete(self._names.window, self._names.meta)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.0005)

    async def _stop(self) -> None:
        await super()._stop()
        await self._admin.aclose()
