"""What waits for a client that takes no more, and what of it gives way (docs/decisions/slow-consumers.md).

Replies, pushes and publications of channels that promise something wait until they fit, or the client is
closed as slow. Publications of a channel with a `Policy` may be given up instead, and only here: what was
written to the socket before it said "no more" is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from bongsu.node.variants import Variant
from bongsu.protocol.messages import Publication

DROPPED_TAG: Final = "bongsu_dropped"
"""Tag of the first publication after a hole: how many before it were given up for this subscriber."""


class Policy(NamedTuple):
    """What a channel does instead of closing slow subscribers: gives up the oldest, or all but the latest.

    With `conflates`, the latest of each value of the tag `key` is kept; "": the latest of the channel.
    """

    conflates: bool
    key: str = ""

    @property
    def name(self) -> str:
        return "conflate" if self.conflates else "drop_oldest"


class Waiting(NamedTuple):
    """A publication that may be given up. One object for all subscribers of one variant who wait for it."""

    policy: Policy
    channel: str
    variant: Variant
    publication: Publication
    chunk: bytes

    def telling(self, dropped: int) -> bytes:
        """Its bytes with the tag; as they are where the variant has no place for tags."""
        tags = {**(self.publication.tags or {}), DROPPED_TAG: str(dropped)}
        told = msgspec.structs.replace(self.publication, tags=tags)
        return b"".join(self.variant.render(self.channel, [told], None)) or self.chunk


class Backlog:
    """The outbox of a paused client, in order, bounded in bytes."""

    __slots__ = (
        "_bound",
        "_by_key",
        "_dropped",
        "_entries",
        "_is_over",
        "_next",
        "_oldest",
        "_on_drop",
        "_over",
        "size",
    )

    def __init__(self, bound: int, *, over: Callable[[], None], on_drop: Callable[[Policy], None]) -> None:
        """`over` is called once: more than `bound` bytes wait, and none of them can be given up.

        `on_drop` is called for each publication that is given up.
        """
        self.size = 0
        self._bound = bound
        self._over = over
        self._on_drop = on_drop
        self._is_over = False
        # By number: giving one up leaves no hole behind, however many come in a long pause.
        self._entries: dict[int, bytes | Waiting] = {}
        self._next = 0
        self._oldest: deque[int] = deque()
        self._by_key: dict[tuple[str, str], int] = {}
        self._dropped: dict[str, int] = {}

    def append(self, chunk: bytes) -> None:
        """What must not be given up."""
        if not self._is_over:
            self._add(chunk, len(chunk))

    def hold(self, waiting: Waiting) -> None:
        """A publication that may be."""
        if self._is_over:
            return
        policy = waiting.policy
        if policy.conflates:
            key = (waiting.channel, (waiting.publication.tags or {}).get(policy.key, ""))
            earlier = self._by_key.get(key)
            if earlier is not None:
                self._give_up(earlier)
            self._by_key[key] = self._next
        else:
            self._oldest.append(self._next)
        self._add(waiting, len(waiting.chunk))

    def chunks(self) -> list[bytes]:
        """All that waits. The first publication of a channel after a hole tells its size."""
        dropped = dict(self._dropped)
        return [
            entry
            if isinstance(entry, bytes)
            else entry.telling(dropped.pop(entry.channel))
            if entry.channel in dropped
            else entry.chunk
            for entry in self._entries.values()
        ]

    def _add(self, entry: bytes | Waiting, size: int) -> None:
        self._entries[self._next] = entry
        self._next += 1
        self.size += size
        while self.size > self._bound and self._oldest:
            self._give_up(self._oldest.popleft())
        if self.size > self._bound:
            self._is_over = True
            self._over()

    def _give_up(self, number: int) -> None:
        entry = self._entries.pop(number)
        assert isinstance(entry, Waiting)
        self.size -= len(entry.chunk)
        self._dropped[entry.channel] = self._dropped.get(entry.channel, 0) + 1
        self._on_drop(entry.policy)
