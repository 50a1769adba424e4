"""One timer for all connections of a replica: a turn each tick, instead of a timer each."""

from __future__ import annotations

import asyncio
from typing import Protocol

TICK = 0.1
"""Seconds between two turns; nobody is called later than that after their deadline."""


class Timed(Protocol):
    """Somebody with a deadline."""

    def on_time(self, now: float) -> float | None:
        """The time has come, or came a moment ago. The next deadline, or None. Must not raise."""
        ...


class Wheel:
    """Calls each `Timed` at its deadline, in monotonic seconds of the loop's clock."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Timed, None]] = {}
        self._place: dict[Timed, int] = {}
        self._turned = 0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timed: Timed, deadline: float | None) -> None:
        """Call `timed` at `deadline`, and no more at the one before; None: not at all."""
        slot = None if deadline is None else int(deadline / TICK) + 1
        before = self._place.get(timed)
        if before == slot:
            return
        if before is not None:
            del self._slots[before][timed]
            del self._place[timed]
        if slot is not None:
            slot = max(slot, self._turned + 1)
            self._slots.setdefault(slot, {})[timed] = None
            self._place[timed] = slot
            if self._timer is None:
                self._turned = max(self._turned, int(asyncio.get_running_loop().time() / TICK) - 1)
                self._timer = asyncio.get_running_loop().call_later(TICK, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._place.clear()

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        until = int(now / TICK)
        for slot in range(self._turned + 1, until + 1):
            for timed in self._slots.pop(slot, {}):
                del self._place[timed]
                self._turned = slot
                self.set(timed, timed.on_time(now))
        self._turned = until
        if self._place and self._timer is None:
            self._timer = loop.call_later(TICK, self._turn)
