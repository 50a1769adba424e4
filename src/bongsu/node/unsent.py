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

__all__ = ["Unsent", "follow"]

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
        """Send after all that wait; `published` is done when it is. It fails with `BrokerBusy` if many do."""
        if self._waiting:
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
        def refused(error: BrokerUnavailable) -> None:
            if self._is_away() and not self._waiting:
                self._end(held, error)
            else:
                self._wait(held._replace(until=held.until or self._now() + PATIENCE))

        follow(sent, held.published, refused)

    def _wait(self, held: _Held) -> None:
        if len(self._waiting) >= MAX_WAITING:
            held.published.set_exception(BrokerBusy(f"{MAX_WAITING} publications wait for the broker"))
            return
        self._waiting.append(held)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._try_again)

    def _try_again(self) -> None:
        self._timer = None
        while self._waiting:
            held = self._waiting[0]
            refusal = BrokerUnavailable("the broker did not take it in time")
            if self._now() < held.until:
                sent = self._send(held.channel, held.payload)
                error = sent.exception() if sent.done() else None
                if not isinstance(error, BrokerUnavailable):
                    self._follow(self._waiting.popleft(), sent)
                    continue
                if not self._is_away():
                    self._timer = asyncio.get_running_loop().call_later(_INTERVAL, self._try_again)
                    return
                refusal = error
            self._end(self._waiting.popleft(), refusal)

    def _end(self, held: _Held, error: BrokerUnavailable) -> None:
        if not held.published.done():
            self._give_up(held.channel, held.payload, held.published, error)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def follow(
    sent: asyncio.Future[None],
    published: asyncio.Future[Appended],
    refused: Callable[[BrokerUnavailable], None] | None = None,
) -> None:
    """Let `published` end as `sent` does; `refused` has what the broker did not take, but could later."""

    def done(finished: asyncio.Future[None]) -> None:
        if published.done():
            return
        if finished.cancelled():
            published.cancel()
            return
        match finished.exception():
            case None:
                published.set_result(Appended(0, ""))
            case BrokerUnavailable() as error if refused is not None and not isinstance(error, BrokerBusy):
                refused(error)
            case error:
                published.set_exception(error)

    if sent.done() and sent.exception() is None:
        done(sent)
    else:
        # Also if it has failed already: those before it are told in later turns of the loop.
        sent.add_done_callback(done)
