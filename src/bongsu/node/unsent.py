"""Publications that the broker could not take, at the edge of an outage.

A broker has two connections, which break and come back one after the other. While only the one for commands
is down, what subscribers here were sent before is on its way still, so that nothing may overtake it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from bongsu.brokers.base import Appended, BrokerBusy, BrokerUnavailable

__all__ = ["Unsent"]

PATIENCE: Final = 3.0
"""Seconds that a publication waits; nothing sent before is on its way then."""

MAX_WAITING: Final = 10_000

_INTERVAL: Final = 0.02  # seconds between two tries


class _Held(NamedTuple):
    channel: str
    payload: bytes
    published: asyncio.Future[Appended]
    until: float
    """Loop time; 0: it has not had to wait yet."""


class Unsent:
    """In order, until the broker takes them, or is away as a whole, or they have waited for long enough.

    `send` tries again. `is_away`: whether the broker is away as a whole. `give_up` has what it will not take.
    """

    def __init__(
        self,
        *,
        send: Callable[[str, bytes], asyncio.Future[None]],
        is_away: Callable[[], bool],
        give_up: Callable[[str, bytes, asyncio.Future[Appended], BrokerUnavailable], None],
    ) -> None:
        self._send = send
        self._is_away = is_away
        self._give_up = give_up
        self._waiting: deque[_Held] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(self, channel: str, payload: bytes, published: asyncio.Future[Appended]) -> None:
        """Send after all that wait; `published` is done when it is."""
        if 0 < len(self._waiting) < MAX_WAITING:
            self._wait(_Held(channel, payload, published, self._now() + PATIENCE))
        else:
            self._follow(_Held(channel, payload, published, 0.0), self._send(channel, payload))

    def stop(self) -> None:
        """Give up all that wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._end(self._waiting.popleft(), BrokerUnavailable("the broker is not connected"))

    def _follow(self, held: _Held, sent: asyncio.Future[None]) -> None:
        def done(finished: asyncio.Future[None]) -> None:
            if held.published.done():
                return
            if finished.cancelled():
                held.published.cancel()
                return
            error = finished.exception()
            if error is None:
                held.published.set_result(Appended(0, ""))
            elif isinstance(error, BrokerBusy) or not isinstance(error, BrokerUnavailable):
                held.published.set_exception(error)
            elif self._is_away() or len(self._waiting) >= MAX_WAITING or 0 < held.until <= self._now():
                self._end(held, error)
            else:
                self._wait(held._replace(until=held.until or self._now() + PATIENCE))

        if sent.done() and sent.exception() is None:
            done(sent)
        else:
            # Also if it has failed already: those before it are told in later turns of the loop.
            sent.add_done_callback(done)

    def _wait(self, held: _Held) -> None:
        self._waiting.append(held)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._try_again)

    def _try_again(self) -> None:
        self._timer = None
        while self._waiting:
            held = self._waiting[0]
            sent = self._send(held.channel, held.payload)
            error = sent.exception() if sent.done() else None
            if isinstance(error, BrokerUnavailable):
                if not self._is_away() and self._now() < held.until:
                    self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._try_again)
                    return
                self._end(self._waiting.popleft(), error)
            else:
                self._follow(self._waiting.popleft(), sent)

    def _end(self, held: _Held, error: BrokerUnavailable) -> None:
        if not held.published.done():
            self._give_up(held.channel, held.payload, held.published, error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
