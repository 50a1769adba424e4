"""What was promised to publishers and what clients saw, compared. Pure: no network, no clock.

The promise (docs/architecture.md): a recoverable channel's client sees every publication once, in order, or
is told `recovered: false`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Position = tuple[str, int]
"""Epoch and offset."""


@dataclass(slots=True)
class Ledger:
    """Which publication each position of each channel was given to, whoever told of it."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _given: dict[tuple[str, Position], str] = field(default_factory=dict)

    def note(self, channel: str, position: Position, data: str, *, by: str) -> None:
        """`by` was told that `position` holds `data`."""
        known = self._given.setdefault((channel, position), data)
        if known != data:
            self.accuse(f"{by}: {channel} {position} is {data!r}, and {known!r} to somebody else")

    def accuse(self, violation: str) -> None:
        self.violations.append(violation)


class View:
    """One client's view of one channel: runs of consecutive offsets, each ended by a word that it was."""

    def __init__(self, client: str, channel: str, ledger: Ledger) -> None:
        self.position: Position | None = None
        self._name = f"{client} on {channel}"
        self._channel = channel
        self._ledger = ledger

    def subscribed(
        self, epoch: str, offset: int, recovered: bool | None, missed: list[tuple[int, str]]
    ) -> None:
        """A subscribe reply: its position, what was missed, and the verdict (None: nothing was asked)."""
        before, counts = self.position, self._ledger.counts
        if before is None or not recovered:
            if missed:
                self._ledger.accuse(f"{self._name}: {len(missed)} publications without a recovery")
            if before is not None:
                counts["told recovered: false"] += 1
                if before[0] == epoch:  # its history is longer than any pause here
                    self._ledger.accuse(f"{self._name}: not recovered from {before} though {epoch} goes on")
            self.position = (epoch, offset)
            return
        counts["recovered"] += 1
        counts["publications recovered"] += len(missed)
        if before[0] != epoch:
            self._ledger.accuse(f"{self._name}: recovered from {before} into another epoch, {epoch}")
        if offset != before[1]:  # the offset that was asked for; publications lead on from it (protocol §5.4)
            self._ledger.accuse(f"{self._name}: recovered from {offset} instead of {before}")
        for at, data in missed:
            self.published(at, data)

    def published(self, offset: int, data: str) -> None:
        if self.position is None:
            self._ledger.accuse(f"{self._name}: a publication before the subscription")
            return
        epoch, last = self.position
        self._ledger.counts["publications seen"] += 1
        if offset != last + 1:
            what = "lost" if offset > last else "doubled or out of order"
            self._ledger.accuse(f"{self._name}: offset {offset} of {epoch} after {last}: {what}")
        self.position = (epoch, offset)
        self._ledger.note(self._channel, (epoch, offset), data, by=self._name)
