"""The reading side: one pub/sub connection, a set of wishes, batches out.

Subscriptions are desired state: a set that is made true on every connection, in the order of the wishes,
with every acknowledgement counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import hiredis
import structlog

from bongsu.brokers.base import BrokerUnavailable, Event
from bongsu.brokers.redis.link import Link, Open, Supervisor

RESUBSCRIBE_BATCH = 512
"""Channels in one SUBSCRIBE: a longer one would hold Redis's only thread for everybody else."""

log = structlog.get_logger("bongsu.brokers.redis")


class _Wish:
    """One channel that somebody here wants to hear."""

    __slots__ = ("channel", "name", "ready")

    def __init__(self, channel: str, name: bytes) -> None:
        self.channel = channel
        self.name = name
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Expected(NamedTuple):
    """What Redis should say of the connection, once `orders`, all there were since the start, are done."""

    orders: int
    subscriptions: int


class Pump:
    """`name_of` gives the channel's name in Redis; `on_batch` gets (channel, payload) pairs of one read."""

    def __init__(
        self,
        open_link: Open,
        *,
        name_of: Callable[[str], bytes],
        on_batch: Callable[[list[Event]], None],
        on_restored: Callable[[], None],
    ) -> None:
        self._name_of = name_of
        self._on_batch = on_batch
        self._on_restored = on_restored
        self._was_lost = False
        self._link: Link | None = None
        self._wishes: dict[bytes, _Wish] = {}
        self._unready = 0
        self._out: list[tuple[bytes, _Wish]] = []
        self._expected: deque[tuple[bytes, _Wish]] = deque()
        self._paused = False
        self._orders = 0
        self._supervisor = Supervisor(
            "subscriptions", open_link, on_replies=self._replies, up=self._up, down=self._down
        )

    @property
    def is_away(self) -> bool:
        """Whether there is no connection, and none can be made."""
        return self._link is None and self._supervisor.is_failing

    @property
    def connected(self) -> bool:
        """Connected, and every wish acknowledged."""
        return self._link is not None and self._unready == 0

    @property
    def expected(self) -> Expected | None:
        """None while anything is under way."""
        if not self.connected or self._out or self._expected:
            return None
        return Expected(self._orders, len(self._wishes))

    @property
    def reconnects(self) -> int:
        return self._supervisor.reconnects

    async def start(self) -> None:
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        for wish in self._wishes.values():
            if not wish.ready.done():
                wish.ready.set_exception(BrokerUnavailable("the broker is shutting down"))
                wish.ready.exception()  # nobody may be waiting
        self._wishes.clear()
        self._unready = 0

    def restart(self) -> None:
        """Replace the connection: it is up, but nothing comes through."""
        if self._link is not None:
            self._link.abort()

    def give_up(self) -> None:
        """Redis does not answer: away, until a connection is made. What was published before is not heard."""
        self._supervisor.is_failing = True
        self.restart()

    def want(self, channel: str) -> asyncio.Future[None]:
        name = self._name_of(channel)
        wish = self._wishes.get(name)
        if wish is None:
            wish = self._wishes[name] = _Wish(channel, name)
            self._unready += 1
            self._order(b"SUBSCRIBE", wish)
        return wish.ready

    def drop(self, channel: str) -> None:
        wish = self._wishes.pop(self._name_of(channel), None)
        if wish is not None:
            if not wish.ready.done():
                self._unready -= 1
            self._order(b"UNSUBSCRIBE", wish)

    def pause(self) -> None:
        self._paused = True
        if self._link is not None:
            self._link.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._link is not None:
            self._link.resume_reading()

    # Orders, in the order of the wishes

    def _order(self, verb: bytes, wish: _Wish) -> None:
        if self._link is None:
            return  # `_up` orders every wish that is left
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._orders += 1
        self._out.append((verb, wish))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._link is None:
            return
        self._expected.extend(out)
        for verb, orders in groupby(out, key=lambda order: order[0]):
            names = [wish.name for _, wish in orders]
            for start in range(0, len(names), RESUBSCRIBE_BATCH):
                self._link.write(hiredis.pack_command((verb, *names[start : start + RESUBSCRIBE_BATCH])))

    # What Redis says

    def _replies(self, replies: list[Any]) -> None:
        batch: list[Event] = []
        wishes = self._wishes
        for reply in replies:
            if type(reply) is list and reply[0] == b"message":
                wish = wishes.get(reply[1])
                if wish is not None:  # else dropped a moment ago
                    batch.append((wish.channel, reply[2]))
            else:
                # Acknowledgements keep their place among the messages, but readiness is only a promise about
                # messages that come later, so the batch need not be cut here.
                self._acknowledged(reply)
        if batch:
            self._on_batch(batch)

    def _acknowledged(self, reply: Any) -> None:
        if self._expected and type(reply) is list and len(reply) == 3:
            verb, wish = self._expected.popleft()
            if reply[0].upper() == verb and reply[1] == wish.name:
                if verb == b"SUBSCRIBE" and self._wishes.get(wish.name) is wish and not wish.ready.done():
                    wish.ready.set_result(None)
                    self._unready -= 1
                    if self._was_lost and not self._unready:
                        self._was_lost = False
                        self._on_restored()
                return
        log.error("redis answered a subscription out of turn", reply=repr(reply)[:200])
        if self._link is not None:
            self._link.abort()

    def _up(self, link: Link) -> None:
        self._link = link
        if self._paused:
            link.pause_reading()
        self._out = [(b"SUBSCRIBE", wish) for wish in self._wishes.values()]
        self._flush()

    def _down(self) -> None:
        self._link = None
        self._orders += 1
        self._was_lost = True
        self._out = []
        self._expected.clear()
        loop = asyncio.get_running_loop()
        for wish in self._wishes.values():
            if wish.ready.done():
                wish.ready = loop.create_future()
        self._unready = len(self._wishes)
