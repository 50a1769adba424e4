"""One channel with somebody here: its subscribers, and where its stream stands."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from bongsu.node.backlog import Policy
from bongsu.node.client import Client
from bongsu.node.variants import Variant
from bongsu.protocol.messages import Join, Leave, Publication

RING_SIZE = 64
"""Publications kept per live stream: who comes back within them needs no history read."""

RING_BYTES = 64 * 1024


class Joining:
    """A subscriber that is not live yet: what it would have missed.

    Until it is `admitted`, `publications` and `presence` are kept for it. Then it was answered with `offset`
    (0: it follows no stream), is sent what lies beyond, and goes live when the channel gets there.
    """

    __slots__ = ("admitted", "offset", "presence", "publications", "size", "variant")

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.publications: list[Publication] = []
        self.presence: list[Join | Leave] = []
        self.size = 0
        self.offset = 0
        self.admitted = False


class Channel:
    """`groups` are the live subscribers by variant.

    `epoch` and `offset` are where the stream stands for every live subscriber here, checked once per batch;
    meaningful only when `followed`. `held` is what came in while a gap is healed (None: no gap).
    """

    __slots__ = (
        "checked_at",
        "epoch",
        "groups",
        "held",
        "joining",
        "linger",
        "listeners",
        "meta_ttl",
        "name",
        "offset",
        "policy",
        "remembered_at",
        "reserved",
        "ring",
        "ring_bytes",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups: dict[Variant, dict[Client, None]] = {}
        self.joining: dict[Client, Joining] = {}
        self.listeners: list[Callable[[bytes], None]] = []
        self.reserved = 0
        self.linger: asyncio.TimerHandle | None = None
        self.epoch = ""
        self.offset = 0
        self.ring: deque[Publication] = deque()
        self.ring_bytes = 0
        self.remembered_at = 0.0
        """When the ring got its last publication, on the monotonic clock."""
        self.held: list[Publication | Join | Leave] | None = None
        self.checked_at = 0.0
        self.meta_ttl = 0.0
        """Seconds the stream's position outlives its last use; set by whoever subscribes to the stream."""
        self.policy: Policy | None = None
        """What slow subscribers may miss, set by whoever subscribes; None: nothing, they are closed."""

    @property
    def followed(self) -> bool:
        """Whether the stream's position is known."""
        return bool(self.epoch)

    def is_empty(self) -> bool:
        return not (self.reserved or self.groups or self.joining or self.listeners)

    def count(self) -> int:
        """Subscribers, those that are joining included."""
        return sum(map(len, self.groups.values())) + len(self.joining)

    def has_positioned(self) -> bool:
        """Whether somebody here must not miss anything."""
        return any(variant.positioned for variant in self.groups) or any(
            joining.variant.positioned for joining in self.joining.values()
        )

    def remove(self, client: Client) -> None:
        if self.joining.pop(client, None) is None:
            for variant, group in self.groups.items():
                if client in group:
                    del group[client]
                    if not group:
                        del self.groups[variant]
                    break

    def regroup(self, before: Variant, after: Variant) -> None:
        """All subscribers of one variant are now of another."""
        self.groups.setdefault(after, {}).update(self.groups.pop(before))

    def remember(self, run: list[Publication]) -> None:
        """Keep the newest publications of the stream."""
        for publication in run:
            if publication.offset:
                self.ring.append(publication)
                self.ring_bytes += len(publication.data)
        self.remembered_at = time.monotonic()
        while len(self.ring) > RING_SIZE or (self.ring_bytes > RING_BYTES and len(self.ring) > 1):
            self.ring_bytes -= len(self.ring.popleft().data)

    def since(self, offset: int) -> list[Publication] | None:
        """The publications after `offset` up to the channel's position, or None where the ring lacks some."""
        if not self.followed or self.held is not None or offset > self.offset:
            return None
        if offset == self.offset:
            return []
        if not self.ring or self.ring[0].offset > offset + 1:
            return None
        return [publication for publication in self.ring if publication.offset > offset]

    def forget_position(self) -> None:
        self.epoch, self.offset = "", 0
        self.forget_publications()

    def forget_publications(self) -> None:
        """What the history no longer has must not come from here; the position goes on."""
        self.ring.clear()
        self.ring_bytes = 0
