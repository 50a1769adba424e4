"""Who is in which channel, told to the broker: a wish for each subscription, made true in order.

Nothing is an operation that could be lost, or be repeated at the wrong time: `want` and `drop` say how it
should be, and one task compares that with what the broker was told. So a broker that was away, or forgot
everything, or took this replica for dead, is told again; and a join never comes after its leave.

Source: the Centrifuge client protocol, §8 "Presence, join/leave".
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final

import structlog

from bongsu.brokers import envelope
from bongsu.brokers.base import Broker, BrokerError, Departed, OutcomeUnknown, Presence
from bongsu.node.tasks import Tasks
from bongsu.protocol.messages import ClientInfo, Join, Leave

WINDOW: Final = 256
"""Members whose commands are under way together."""

MAX_LEAVING: Final = 100_000
"""Members to be taken back while the broker is away; with more all entries are left to be swept."""

PERIOD: Final = 1.0
"""Seconds between two looks at what became of this replica's entries, and between two sweeps."""

MAX_RETRY_PAUSE: Final = 1.0

log = structlog.get_logger("bongsu.node.presence")


class _Wish:
    """One subscription: from a `want` to its `drop`. A later one of the same client is another."""

    __slots__ = ("announced", "info", "stored")

    def __init__(self, info: ClientInfo, *, stored: bool, announced: bool) -> None:
        self.info = info
        self.stored = stored
        self.announced = announced


_UNKNOWN: Final = ClientInfo()
"""The broker may hold something, or nothing."""


class _Member:
    """One client in one channel: what is wanted, and what others were told."""

    __slots__ = ("channel", "client", "doubted", "entered", "joined", "wish")

    def __init__(self, channel: str, client: str) -> None:
        self.channel = channel
        self.client = client
        self.wish: _Wish | None = None
        self.entered: ClientInfo | None = None
        """What the broker's entry holds."""
        self.joined: _Wish | None = None
        """The subscription whose join was published, and whose leave was not."""
        self.doubted = False
        """This replica was taken for dead: unless the entry is still there, a sweep has told of its leave."""

    def wanted_entry(self) -> ClientInfo | None:
        return self.wish.info if self.wish is not None and self.wish.stored else None

    def wanted_join(self) -> _Wish | None:
        return self.wish if self.wish is not None and self.wish.announced else None

    def is_done(self) -> bool:
        return self.entered is self.wanted_entry() and self.joined is self.wanted_join()

    def was_entered(
        self, entry: ClientInfo | None, answer: asyncio.Future[bool], error: BrokerError | None
    ) -> None:
        self.entered = entry if error is None else _UNKNOWN
        if self.doubted and error is None:
            self.doubted = False
            if not answer.result():
                self.joined = None

    def was_told(self, joined: _Wish | None, error: BrokerError | None) -> None:
        # An unknown outcome counts as told: joins and leaves are at most once.
        if error is None or isinstance(error, OutcomeUnknown):
            self.joined = joined


_Order = tuple[asyncio.Future[Any], Callable[[BrokerError | None], None]]
"""A command under way, and who gets its outcome."""


class Roster:
    """The members that this replica brings into channels. Belongs to one event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.presence = broker if isinstance(broker, Presence) else None
        """None: this broker keeps no presence; joins and leaves are published all the same."""
        self._standing = self.presence.standing if self.presence is not None else None
        self._members: dict[tuple[str, str], _Member] = {}
        self._leaving = 0
        self._queue: dict[_Member | asyncio.Future[None], None] = {}
        self._queued = asyncio.Event()
        self._failures = 0
        self._tasks = Tasks()

    async def start(self) -> None:
        self._tasks.run(self._reconcile_forever(), "presence")
        if self.presence is not None:
            self._tasks.run(_sweep_forever(self._broker, self.presence), "presence sweep")

    async def stop(self, *, within: float) -> None:
        """Take everything back, for at most `within` seconds; what is left is for the others to sweep."""
        for member in list(self._members.values()):
            self.drop(member.channel, member.client)
        try:
            async with asyncio.timeout(within):
                while self._members and not self.failed:
                    await self._barrier()
        except TimeoutError:
            log.warning("entries are left to be swept", members=len(self._members))
        await self._tasks.stop()

    @property
    def failed(self) -> bool:
        """Whether a task has died: a bug."""
        return self._tasks.failed

    # What is wanted

    def want(
        self, channel: str, client: str, info: ClientInfo, *, stored: bool = True, announced: bool = False
    ) -> None:
        """`client` is in `channel`. Called again before `drop`: its infos have changed.

        `stored`: the channel has presence. `announced`: its join and leave are published.
        """
        member = self._members.get((channel, client))
        if member is None:
            member = self._members[channel, client] = _Member(channel, client)
        elif member.wish is not None:
            if member.wish.info != info:
                member.wish.info = info
                self._look_at(member)
            return
        else:
            self._leaving -= 1
        member.wish = _Wish(info, stored=stored and self.presence is not None, announced=announced)
        self._look_at(member)

    def drop(self, channel: str, client: str) -> None:
        """`client` has left `channel`; no error when it wasn't there."""
        member = self._members.get((channel, client))
        if member is not None and member.wish is not None:
            member.wish = None
            self._leaving += 1
            self._look_at(member)

    async def settle(self) -> None:
        """Return when what was wanted before has been told to the broker; at once while that is away.

        For whoever is about to ask who is present and must find himself.
        """
        if not self._failures and not self.failed:
            await self._barrier()

    async def _barrier(self) -> None:
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[passed] = None
        self._queued.set()
        await passed

    # What is done about it

    def _look_at(self, member: _Member) -> None:
        # One that is queued keeps its place: its order is decided when its turn comes.
        self._queue[member] = None
        self._queued.set()

    async def _reconcile_forever(self) -> None:
        while True:
            if not self._queue:  # here alone, for members are taken from it elsewhere too
                self._queued.clear()
            try:
                async with asyncio.timeout(PERIOD):
                    await self._queued.wait()
            except TimeoutError:
                pass
            self._notice_losses()
            if self._queue:
                await self._reconcile()
            if self._failures:
                self._bound()
                await asyncio.sleep(
                    random.uniform(0.05, min(MAX_RETRY_PAUSE, 0.1 * 2 ** min(self._failures, 5)))
                )

    async def _reconcile(self) -> None:
        """The next `WINDOW` of the queue."""
        batch = list(islice(self._queue, WINDOW))
        for item in batch:
            del self._queue[item]
        members = [item for item in batch if isinstance(item, _Member)]
        try:
            await self._carry_out([order for member in members for order in self._orders(member)])
            for member in members:
                if not member.is_done():
                    self._look_at(member)
                elif member.wish is None:
                    self._forget(member)
        finally:
            for item in batch:
                if isinstance(item, asyncio.Future) and not item.done():
                    item.set_result(None)

    def _orders(self, member: _Member) -> list[_Order]:
        """What makes `member` as it is wanted. Whoever hears of a join finds it present."""
        orders: list[_Order] = []
        entry, join, joined = member.wanted_entry(), member.wanted_join(), member.joined
        presence = self.presence if member.entered is not entry else None
        if presence is not None and entry is None:
            left = presence.leave(member.channel, member.client)
            orders.append((left, partial(member.was_entered, None, left)))
        if member.doubted:
            joined = join  # nobody is told anything before the entry's answer
        if joined is not None and joined is not join:
            future = self._broker.send(member.channel, envelope.encode(Leave(joined.info)))
            orders.append((future, partial(member.was_told, None)))
        if presence is not None and entry is not None:
            entered = presence.enter(member.channel, entry, announced=join is not None)
            orders.append((entered, partial(member.was_entered, entry, entered)))
        if join is not None and joined is not join:
            future = self._broker.send(member.channel, envelope.encode(Join(join.info)))
            orders.append((future, partial(member.was_told, join)))
        return orders

    async def _carry_out(self, orders: list[_Order]) -> None:
        if not orders:
            return
        await asyncio.wait([future for future, _ in orders])
        failure: BrokerError | None = None
        for future, report in orders:
            error = future.exception()
            if error is not None and not isinstance(error, BrokerError):
                raise error
            report(error)
            failure = error or failure
        if failure is None:
            if self._failures:
                log.info("the broker is told who is present again")
            self._failures = 0
            return
        self._failures += 1
        if self._failures == 1:
            log.warning("the broker could not be told who is present", error=str(failure))

    def _notice_losses(self) -> None:
        if self.presence is None or self.presence.standing == self._standing:
            return
        was, self._standing = self._standing, self.presence.standing
        evicted = was is not None and was.evictions != self._standing.evictions
        log.warning("the broker is told anew who is present", members=len(self._members), evicted=evicted)
        for member in self._members.values():
            if member.entered is not None:
                member.entered = _UNKNOWN
                if evicted:
                    member.doubted = member.joined is not None
                self._look_at(member)

    def _bound(self) -> None:
        """While the broker is away, connections still come and go."""
        if self._leaving <= MAX_LEAVING:
            return
        log.error("too many members left while the broker was away; all are left to be swept")
        for member in [member for member in self._members.values() if member.wish is None]:
            self._forget(member)
        if self.presence is not None:
            self.presence.renounce()

    def _forget(self, member: _Member) -> None:
        # It may have come and gone while its leave was under way, and be queued again: left there it would
        # be forgotten a second time, or in place of the next one with its name.
        self._queue.pop(member, None)
        del self._members[member.channel, member.client]
        self._leaving -= 1


async def _sweep_forever(broker: Broker, presence: Presence) -> None:
    while True:
        try:
            async for page in presence.sweep():
                await _publish_leaves(broker, page)
        except BrokerError as error:
            log.debug("no sweep this time", error=str(error))
        # Not all replicas at the same moment.
        await asyncio.sleep(PERIOD * random.uniform(0.5, 1.5))


async def _publish_leaves(broker: Broker, page: list[Departed]) -> None:
    """The entries are gone, so a leave that cannot be published now never will be."""
    log.info("swept members of a dead replica", members=len(page))
    leaves = [
        broker.send(departed.channel, envelope.encode(Leave(departed.info)))
        for departed in page
        if departed.announced
    ]
    failed = [error for error in await asyncio.gather(*leaves, return_exceptions=True) if error is not None]
    for error in failed:
        if not isinstance(error, BrokerError):
            raise error
    if failed:
        log.warning("leaves were not published", count=len(failed), error=str(failed[0]))
