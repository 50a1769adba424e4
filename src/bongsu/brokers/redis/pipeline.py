"""Commands to Redis, in order, on one connection.

redis-py's client takes a connection from a pool for each command: 127 of 200 pairs of publishes arrived in
the wrong order. Here everything goes down one connection, one write per loop turn, and replies are matched
in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

import hiredis
import structlog

from bongsu.brokers.base import BrokerBusy, BrokerError, BrokerUnavailable, OutcomeUnknown
from bongsu.brokers.redis.link import Link, Open, Supervisor

IO_TIMEOUT = 2.0
"""Seconds without an answer to the oldest command after which the connection counts as dead; found out within
half as long again. SDKs wait 5 seconds for an answer of ours.
"""

MAX_IN_FLIGHT = 50_000
"""Commands that may wait for their answers, and `MAX_IN_FLIGHT_SIZE` their bytes."""

MAX_IN_FLIGHT_SIZE = 64 * 1024 * 1024

MAX_SENDS = 3
"""Times a script is sent to a Redis that has forgotten it."""

# Answers that mean "not now": the command did nothing, and may be sent again.
_TEMPORARY = (
    *("LOADING", "READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "BUSY", "NOSCRIPT"),
    *("CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"),
)

# Answers that mean "not here, and not here later".
_ELSEWHERE = ("READONLY", "MOVED")

log = structlog.get_logger("bongsu.brokers.redis")


class CommandRefused(BrokerUnavailable):
    """Redis answered with an error that will not go away by itself; the message is Redis's."""


class _Call:
    """One command until it is answered. `lane` names what its order matters in: a channel, or b"" if none."""

    __slots__ = ("future", "lane", "packed", "parse", "sends", "since")

    def __init__(
        self, packed: bytes, future: asyncio.Future[Any], lane: bytes, parse: Callable[[Any], Any] | None
    ) -> None:
        self.packed = packed
        self.future = future
        self.lane = lane
        self.parse = parse
        self.since = 0.0
        self.sends = 0

    def answer(self, reply: Any) -> None:
        if self.future.done():  # its caller was cancelled
            return
        if self.parse is None:
            self.future.set_result(reply)
            return
        try:
            result = self.parse(reply)
        except BrokerError as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: BrokerError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            # A caller that has gone away must not turn this into a "never retrieved" report.
            self.future.exception()


class Pipeline:
    """The one ordered way for commands. `scripts` are the texts of those that EVALSHA may name.

    `on_silent` is called when a connection is given up since Redis does not answer.

    Commands of one lane take effect in the order of the calls, or fail. When Redis has forgotten its
    scripts (SCRIPT FLUSH), some of what is in flight is refused while the rest goes through. New commands
    wait then until everything in flight is answered; the scripts are loaded, and what was refused is sent
    again before what waited, except where a later command of the same lane has gone through already.
    """

    def __init__(
        self, open_link: Open, *, scripts: Sequence[bytes] = (), on_silent: Callable[[], None] | None = None
    ) -> None:
        self._scripts = scripts
        self._on_silent = on_silent
        self._link: Link | None = None
        self._suspected = False
        self._out: list[_Call] = []
        self._in_flight: deque[_Call] = deque()
        self._forgotten: dict[bytes, list[_Call]] = {}
        self._count = 0
        self._size = 0
        self._flushing = False
        self._retiring = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._supervisor = Supervisor(
            "commands", open_link, on_replies=self._replies, up=self._up, down=self._down
        )

    @property
    def connected(self) -> bool:
        return self._link is not None and not self._retiring

    @property
    def reconnects(self) -> int:
        return self._supervisor.reconnects

    @property
    def in_flight(self) -> int:
        return self._count

    async def start(self) -> None:
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()

    def execute(
        self,
        *command: bytes | str | int | float,
        lane: bytes = b"",
        parse: Callable[[Any], Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Queue one command. The future fails with `BrokerUnavailable`, `BrokerBusy` or `OutcomeUnknown`.

        `parse` makes the result out of Redis's answer; it may raise `BrokerError`, and nothing else.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.connected:
            future.set_exception(BrokerUnavailable("redis is not connected"))
            return future
        if self._count >= MAX_IN_FLIGHT or self._size > MAX_IN_FLIGHT_SIZE:
            future.set_exception(BrokerBusy(f"{self._count} commands, {self._size} bytes are in flight"))
            return future
        self._queue(_Call(hiredis.pack_command(cast("Any", command)), future, lane, parse))
        return future

    # Writing

    def _queue(self, call: _Call) -> None:
        self._count += 1
        self._size += len(call.packed)
        self._out.append(call)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._link is None or self._retiring or self._forgotten or not self._out:
            return
        out, self._out = self._out, []
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in out:
            call.since = now
            call.sends += 1
        self._in_flight.extend(out)
        self._link.write(b"".join([call.packed for call in out]))
        if self._watchdog is None:
            self._watchdog = loop.call_later(IO_TIMEOUT / 4, self._watch)

    def _load_scripts(self) -> None:
        loop = asyncio.get_running_loop()
        for text in self._scripts:
            packed = hiredis.pack_command(cast("Any", (b"SCRIPT", b"LOAD", text)))
            loaded = loop.create_future()
            loaded.add_done_callback(_tell_refusal)
            self._queue(_Call(packed, loaded, b"", None))

    # Answers

    def _replies(self, replies: list[Any]) -> None:
        self._suspected = False
        in_flight = self._in_flight
        for reply in replies:
            if not in_flight:
                # An answer to nothing: the stream is out of step and no later match could be trusted.
                self._abort()
                return
            call = in_flight.popleft()
            if isinstance(reply, hiredis.ReplyError):
                self._refused(call, str(reply))
                continue
            self._forget(call)
            if self._forgotten:
                self._overtaken(call.lane)
            call.answer(reply)
        if in_flight:
            return
        if self._retiring:
            self._abort()
        elif self._forgotten:
            self._send_again()

    def _refused(self, call: _Call, text: str) -> None:
        if text.startswith("NOSCRIPT") and call.sends < MAX_SENDS:
            self._forgotten.setdefault(call.lane, []).append(call)
            return
        self._forget(call)
        call.fail((BrokerUnavailable if text.startswith(_TEMPORARY) else CommandRefused)(f"redis: {text}"))
        if text.startswith(_ELSEWHERE) and not self._retiring:
            log.warning("this redis takes no writes any more, connecting anew", answer=text)
            self._retiring = True

    def _overtaken(self, lane: bytes) -> None:
        if lane:
            for call in self._forgotten.pop(lane, ()):
                self._forget(call)
                call.fail(BrokerUnavailable("redis had forgotten its scripts"))

    def _send_again(self) -> None:
        forgotten, self._forgotten = self._forgotten, {}
        waiting, self._out = self._out, []
        log.warning("redis had forgotten its scripts", sent_again=sum(map(len, forgotten.values())))
        self._load_scripts()
        self._out += chain.from_iterable(forgotten.values())
        self._out += waiting
        self._flush()

    def _forget(self, call: _Call) -> None:
        self._count -= 1
        self._size -= len(call.packed)

    def _watch(self) -> None:
        self._watchdog = None
        if not self._in_flight:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._in_flight[0].since > IO_TIMEOUT:
            if self._suspected:
                log.warning("redis does not answer, connecting anew", in_flight=len(self._in_flight))
                self._abort()
                if self._on_silent is not None:
                    self._on_silent()
                return
            # It may be this loop that was busy, and the answer is waiting to be read: one more chance.
            self._suspected = True
        self._watchdog = loop.call_later(IO_TIMEOUT / 4, self._watch)

    # The connection

    def _abort(self) -> None:
        if self._link is not None:
            self._link.abort()

    def _up(self, link: Link) -> None:
        self._link = link
        self._suspected = False
        self._retiring = False
        self._load_scripts()

    def _down(self) -> None:
        self._link = None
        # What was written may have happened; what was refused or never written did not.
        for call in self._in_flight:
            call.fail(OutcomeUnknown("the connection to redis was lost before the answer"))
        for call in chain(chain.from_iterable(self._forgotten.values()), self._out):
            call.fail(BrokerUnavailable("the connection to redis was lost"))
        self._in_flight.clear()
        self._forgotten.clear()
        self._out.clear()
        self._count = self._size = 0
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None


def _tell_refusal(loaded: asyncio.Future[Any]) -> None:
    """Commands that name the script fail too, but with NOSCRIPT, which says nothing of the reason."""
    error = loaded.exception()
    if isinstance(error, CommandRefused):
        log.error("redis refuses a script", error=str(error))
