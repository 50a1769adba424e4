"""The model: what is true of one channel's stream, as its publishers know it; what is heard must fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from bongsu.brokers.base import Appended
from bongsu.protocol.messages import StreamPosition


class Violation(AssertionError):
    """The server said or did what cannot be true."""


class Tops(NamedTuple):
    """Where the stream's top was within some time: somewhere from `first` to `last`."""

    first: int
    last: int


class Ledger:
    """Publications are numbers. `given` says which of them each position holds, once anybody has told it.

    `size` is that of the window, `limit` the most that one recovery may bring.
    """

    def __init__(self, *, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        self.given: dict[tuple[str, int], int] = {}
        self.under_way: set[int] = set()
        """Published, and nobody knows yet whether and where."""
        self.epoch: str | None = None
        """None: the stream begins anew, and nobody has seen its epoch."""
        self.top = 0
        self.removed = 0
        """Up to this offset the window has forgotten what was in it."""
        self.fallible = False
        """Whether the broker is another program, whose connections are lost and which may take too long."""
        self._past: set[str] = set()
        self._places: dict[int, tuple[str, int]] = {}
        self._next = 0

    # What is done to the stream

    def number(self) -> int:
        """The next publication, about to be sent."""
        self._next += 1
        self.under_way.add(self._next)
        return self._next

    def appended(self, number: int, appended: Appended) -> None:
        """A publisher was told the position."""
        if appended.epoch in self._past:
            raise Violation(f"{number} was appended to epoch {appended.epoch}, which is over")
        self.heard(appended.epoch, appended.offset, number)

    def refused(self, number: int) -> None:
        """A publisher was told that nothing has happened."""
        self.under_way.discard(number)
        if number in self._places:
            raise Violation(f"{number} was refused, and is at {self._places[number]}")

    def remove(self) -> None:
        """The window was emptied, with nothing under way."""
        self.removed = self.top

    def begin_anew(self) -> None:
        """The stream was forgotten, with nothing under way."""
        if self.epoch is not None:
            self._past.add(self.epoch)
        self.epoch, self.top, self.removed = None, 0, 0

    # What is said about it

    def heard(self, epoch: str, offset: int, number: int) -> None:
        """Somebody was told that this position holds `number`."""
        self.seen(epoch)
        place = (epoch, offset)
        if self._places.setdefault(number, place) != place:
            raise Violation(f"{number} is at {place} and at {self._places[number]}")
        if self.given.setdefault(place, number) != number:
            raise Violation(f"{place} holds {self.given[place]} and {number}")
        if not 1 <= number <= self._next:
            raise Violation(f"{number} at {place} was never published")
        self.under_way.discard(number)
        if epoch == self.epoch:
            self.top = max(self.top, offset)

    def seen(self, epoch: str) -> None:
        """Somebody was told that the stream is, or was, of this epoch."""
        if self.epoch is None and epoch not in self._past:
            self.epoch = epoch
        if epoch != self.epoch and epoch not in self._past:
            raise Violation(f"epoch {epoch} instead of {self.epoch}, and nothing was forgotten")

    def is_present(self, epoch: str) -> bool:
        return epoch == self.epoch

    # What follows from it

    @property
    def tops(self) -> Tops:
        """Where the top may be now."""
        return Tops(self.top, self.top + len(self.under_way))

    def window(self, top: int) -> range:
        """The offsets that are kept while the stream is at `top`."""
        return range(max(self.removed, top - self.size) + 1, top + 1)

    def recoverable(self, since: StreamPosition, tops: Tops) -> set[bool]:
        """Whether the history had all after `since`, at any time within `tops`."""
        if since.epoch not in ("", self.epoch):
            return {False}
        found = set()
        for top in range(tops.first, tops.last + 1):
            missed = range(since.offset + 1, top + 1)
            kept = self.window(top)
            whole = not missed or (missed[0] >= kept.start and len(missed) <= self.limit)
            found.add(since.offset <= top and whole)
        return found

    def check_page(self, publications: Sequence[dict[str, Any]], epoch: str, top: int) -> None:
        """A page of history: publications of this stream, one after another, none beyond its top."""
        self.seen(epoch)
        offsets = [one["offset"] for one in publications]
        step = -1 if len(offsets) > 1 and offsets[0] > offsets[1] else 1
        if any(after - before != step for before, after in pairwise(offsets)):
            raise Violation(f"a page of history with the offsets {offsets}")
        if offsets and max(offsets) > top:
            raise Violation(f"a page of history has {max(offsets)} in a stream whose top is {top}")
        for one in publications:
            self.heard(epoch, one["offset"], one["data"]["n"])
