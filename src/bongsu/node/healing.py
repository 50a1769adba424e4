"""Filling gaps: a replica that missed publications reads them once, for all its subscribers.

Between pub/sub and history nothing is lost for good: a gap shows by its offset, a connection lost and made
again by itself, and what neither shows (a quiet channel whose last message was lost) by a look at the
stream's top from time to time. Each holds the channel, reads what is missing, delivers it in order, and
lets go. Only what cannot be filled reaches clients, who then recover for themselves or are told that they
cannot.

Source: the Centrifuge client protocol, §6.6 "Live delivery with positioning", §6.7 "Periodic position check".
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from operator import attrgetter
from typing import Protocol

import structlog

from bongsu.brokers.base import Broker, BrokerError, BrokerState, Streams
from bongsu.node.channel import Channel
from bongsu.node.recovery import is_run
from bongsu.protocol.messages import Join, Leave, Publication, StreamPosition

PAGE = 500
"""Publications in one read: a longer script would hold Redis's only thread for everybody else."""

MAX_MISSING = 20_000
"""Publications above which a gap is not filled: its subscribers recover, or are told, one by one."""

MAX_HELD = 20_000
"""Messages that may wait for a gap to be filled, before it is given up."""

QUIET = 2.0
"""Seconds without a publication after which a channel may be looked at: what was on its way has come."""

SAMPLE = 8
"""Channels that are looked at before their time, in each round."""

DUE = 1000
"""Channels whose time has come that are looked at in each round, the longest quiet first. With 100,000 that
were subscribed to within some seconds, all of them in their turn would hold each other up for seconds.
"""

AT_ONCE = 16
"""Channels healed at the same time."""

ATTEMPTS = 6
"""Reads that may fail while the broker is there, before a gap is given up."""

MAX_PAUSE = 1.0
"""Upper bound of the pause between two attempts, in seconds."""

log = structlog.get_logger("bongsu.node.healing")

Messages = list[Publication | Join | Leave]


class Follower(Protocol):
    """What a healer needs of the hub."""

    def followed(self) -> list[Channel]: ...

    def resume_following(self, channel: Channel, messages: Messages) -> None: ...

    def lose(self, channel: Channel) -> None: ...


class Healer:
    """Owns a task per channel that is being healed. `stop` ends them."""

    def __init__(self, broker: Broker, hub: Follower) -> None:
        self._broker = broker
        self._streams = broker if isinstance(broker, Streams) else None
        self._hub = hub
        self._tasks: dict[Channel, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.healed = 0
        self.given_up = 0

    def heal(self, channel: Channel, messages: Messages) -> None:
        """Hold `channel`, whose next messages are `messages`, until what lies before them is read."""
        channel.held = list(messages)
        self._tasks[channel] = asyncio.create_task(self._heal(channel), name="heal a channel")

    def hold(self, channel: Channel, messages: Messages) -> None:
        """More messages of a channel that is being healed."""
        assert channel.held is not None
        channel.held.extend(messages)

    def forget(self, channel: Channel) -> None:
        """Nobody is in `channel` any more."""
        task = self._tasks.pop(channel, None)
        if task is not None:
            task.cancel()

    def catch_up(self) -> None:
        """The broker's connection was lost and is back: read what came meanwhile, busiest channels first."""
        for channel in sorted(self._hub.followed(), key=Channel.count, reverse=True):
            if channel.held is not None:
                continue
            if channel.has_positioned():
                self.heal(channel, [])
            else:
                # Nobody to catch up for; who comes next asks the broker where the stream is.
                channel.forget_position()

    def check(self, *, older_than: float, now: float) -> None:
        """Compare channels that were quiet for `older_than` seconds with the stream's top, and a few others.

        Those are any that were quiet for `QUIET` seconds: where a replica does not hear a channel that it
        believes to hear, nothing else tells, and with few channels each has its turn soon.
        """
        quiet = [
            channel
            for channel in self._hub.followed()
            if channel.held is None and now - channel.checked_at >= min(QUIET, older_than)
        ]
        waiting = (channel for channel in quiet if now - channel.checked_at >= older_than)
        due = heapq.nsmallest(DUE, waiting, key=attrgetter("checked_at"))
        for channel in {*due, *random.sample(quiet, min(SAMPLE, len(quiet)))}:
            if channel.has_positioned():
                self.heal(channel, [])

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _heal(self, channel: Channel) -> None:
        async with self._slots:
            missing = await self._missing(channel)
        held, channel.held = channel.held or [], None
        channel.checked_at = time.monotonic()
        self._tasks.pop(channel, None)
        if missing is None and _follows(channel, held):
            missing = []  # only late: a burst longer than the history, which was on its way
        if missing is None or len(held) > MAX_HELD:
            self.given_up += 1
            log.warning("a gap could not be filled", channel=channel.name, epoch=channel.epoch)
            self._hub.lose(channel)
            missing = None
        elif missing:
            self.healed += 1
        self._hub.resume_following(channel, [*(missing or ()), *held])

    async def _missing(self, channel: Channel) -> list[Publication] | None:
        """The publications between the channel's position and the stream's top, or None.

        A broker that is away is waited for: clients that were told of a loss would find it away as well.
        """
        failures, pause = 0, 0.1
        while failures < ATTEMPTS and len(channel.held or ()) <= MAX_HELD:
            try:
                return await self._read(channel)
            except BrokerError as error:
                log.debug("a gap waits for the broker", channel=channel.name, error=str(error))
            if self._broker.state is BrokerState.CONNECTED:
                failures += 1
            await asyncio.sleep(random.uniform(0.05, pause))
            pause = min(MAX_PAUSE, 2 * pause)
        return None

    async def _read(self, channel: Channel) -> list[Publication] | None:
        """Raises `BrokerError`."""
        if self._streams is None:
            return None
        found: list[Publication] = []
        position = StreamPosition(channel.offset, channel.epoch)
        while True:
            page = await self._streams.read(
                channel.name, since=position, limit=PAGE, meta_ttl=channel.meta_ttl
            )
            if page.epoch != position.epoch or not is_run(position.offset, page.publications):
                return None
            found.extend(page.publications)
            position = StreamPosition(position.offset + len(page.publications), position.epoch)
            if position.offset == page.offset:
                return found
            if not page.publications or len(found) > MAX_MISSING:
                return None


def _follows(channel: Channel, messages: Messages) -> bool:
    """Whether `messages` go on where the channel stands."""
    first = next((one for one in messages if isinstance(one, Publication) and one.offset), None)
    return first is not None and first.epoch == channel.epoch and first.offset <= channel.offset + 1
