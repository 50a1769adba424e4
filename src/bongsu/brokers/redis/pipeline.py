"""Commands to Redis, in order, on one connection.

redis-py's client takes a connection from a pool for each command: 127 of 200 pairs of publishes arrived in
the wrong order. Here everything goes down one connection, one write per loop turn, and replies are matched
in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import hiredis

from bongsu.brokers.base import BrokerBusy, BrokerUnavailable, OutcomeUnknown
from bongsu.brokers.redis.link import Link, Open, Supervisor

IO_TIMEOUT = 4.0
"""Seconds without an answer to the oldest command after which the connection counts as dead."""

MAX_IN_FLIGHT = 50_000
MAX_UNSENT = 64 * 1024 * 1024

# Answers that mean "not now": the command did nothing, and may be sent again.
_TEMPORARY = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "OOM", "NOREPLICAS")


class CommandRefused(BrokerUnavailable):
    """Redis answered with an error that will not go away by itself; the message is Redis's."""


class Pipeline:
    """The one ordered way for commands."""

    def __init__(self, open_link: Open) -> None:
        self._link: Link | None = None
        self._out: list[bytes] = []
        self._in_flight: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._supervisor = Supervisor(
            "commands", open_link, on_replies=self._replies, up=self._up, down=self._down
        )

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def reconnects(self) -> int:
        return self._supervisor.reconnects

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    async def start(self) -> None:
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()

    def execute(self, *command: bytes | str | int | float) -> asyncio.Future[Any]:
        """Queue one command. The future fails with `BrokerUnavailable`, `BrokerBusy` or `OutcomeUnknown`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._link is None:
            future.set_exception(BrokerUnavailable("redis is not connected"))
            return future
        if len(self._in_flight) >= MAX_IN_FLIGHT or self._link.unsent() > MAX_UNSENT:
            future.set_exception(BrokerBusy(f"{len(self._in_flight)} commands are in flight"))
            return future
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast("Any", command)))
        self._in_flight.append((loop.time(), future))
        if self._watchdog is None:
            self._watchdog = loop.call_later(IO_TIMEOUT / 4, self._watch)
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._link is not None and out:
            self._link.write(b"".join(out))

    def _replies(self, replies: list[Any]) -> None:
        in_flight = self._in_flight
        for reply in replies:
            if not in_flight:
                # An answer to nothing: the stream is out of step and no later match could be trusted.
                if self._link is not None:
                    self._link.abort()
                return
            _, future = in_flight.popleft()
            if future.done():  # its caller was cancelled
                continue
            if isinstance(reply, hiredis.ReplyError):
                text = str(reply)
                known = text.startswith(_TEMPORARY)
                future.set_exception((BrokerUnavailable if known else CommandRefused)(f"redis: {text}"))
            else:
                future.set_result(reply)

    def _watch(self) -> None:
        self._watchdog = None
        if not self._in_flight:
            return
        loop = asyncio.get_running_loop()
        if self._link is not None and loop.time() - self._in_flight[0][0] > IO_TIMEOUT:
            self._link.abort()
            return
        self._watchdog = loop.call_later(IO_TIMEOUT / 4, self._watch)

    def _up(self, link: Link) -> None:
        self._link = link

    def _down(self) -> None:
        self._link = None
        unsent = len(self._out)
        self._out = []
        # The tail that was never written did not happen; what was written may have.
        sent = len(self._in_flight) - unsent
        for index, (_, future) in enumerate(self._in_flight):
            if future.done():
                continue
            if index < sent:
                future.set_exception(OutcomeUnknown("the connection to redis was lost before the answer"))
            else:
                future.set_exception(BrokerUnavailable("the connection to redis was lost"))
            # A caller that has gone away must not turn this into a "never retrieved" report.
            future.exception()
        self._in_flight.clear()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
