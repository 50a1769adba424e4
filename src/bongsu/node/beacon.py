"""Does this replica hear the others, and do they hear it? The rules are pure; `Node` does the talking.

Each second a replica sends a beacon over the control channel, by the same script, pump and hub as every
message, and renews its lease over the command connection, saying whom it hears. Hearing one's own beacon is
proof of delivery; the leases tell a deaf replica (the others hear each other) from a broker that is down
(nobody hears anybody).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

PERIOD = 1.0
"""Seconds between two beacons, and between two renewals of the lease."""

PATIENCE = 3.0
"""Seconds after which a beacon counts as not heard; also the life of a lease."""

LATE = 2 * PERIOD
"""Seconds after which the answer to a renewal is overdue: the broker hangs, and what leases said is old."""


class Health(enum.Enum):
    """What a replica says of itself on `/readyz`."""

    STARTING = "starting"
    READY = "ready"
    BROKER_DOWN = "broker down"
    """Commands fail, or everybody is stale: stay up, serve those who are here, evict nobody."""
    DEAF = "deaf"
    """Commands work and others hear each other, I don't: refuse handshakes, so that nginx passes on."""
    DRAINING = "draining"
    FAILED = "failed"
    """A task that must run has died: a bug. Restart this replica."""


class Beat(msgspec.Struct, frozen=True):
    """What a replica says of itself, each second, on the control channel and in its lease."""

    replica: str
    clients: int
    started: float
    """Unix time, seconds."""
    version: str
    hears: list[str] = []


class Peer(msgspec.Struct):
    """Another replica, or this one, as last heard of."""

    beat: Beat
    heard_at: float | None
    """Monotonic time of its last beacon here; None: only its lease is known."""


class Beacon:
    """Everything heard, and what it means. All times are monotonic seconds and arguments."""

    def __init__(self, replica: str, *, now: float) -> None:
        self.replica = replica
        self._peers: dict[str, Peer] = {}
        self._leases: dict[str, Beat] = {}
        self._commands_ok = False
        self._ever_renewed = False
        self._renewed_at = now
        self._since = now
        """When hearing nothing began to count: the start, or the last time the broker came back."""
        self._restarted = now
        self._disagreed = False

    def heard(self, beat: Beat, *, now: float) -> None:
        """A beacon came in."""
        self._peers[beat.replica] = Peer(beat, now)

    def renewed(self, leases: Mapping[str, Beat], *, now: float) -> None:
        """The lease was renewed, and these are alive. A dead peer is forgotten with its lease."""
        if not self._commands_ok or now - self._renewed_at > LATE:
            # Redis is back: give the subscriptions a moment before silence means deafness.
            self._since = now
        self._renewed_at = now
        self._commands_ok = self._ever_renewed = True
        self._leases = dict(leases)
        for name, peer in list(self._peers.items()):
            if name not in leases and (peer.heard_at is None or now - peer.heard_at > PATIENCE):
                del self._peers[name]
        for name, beat in leases.items():
            if name not in self._peers:
                self._peers[name] = Peer(beat, None)

    def not_renewed(self) -> None:
        """The command connection failed. What was heard before proves nothing of what comes after."""
        self._commands_ok = False
        if (own := self._peers.get(self.replica)) is not None:
            own.heard_at = None

    def age(self, *, now: float) -> float:
        """Seconds since the own beacon came back, or since it should have begun to."""
        own = self._peers.get(self.replica)
        heard_at = own.heard_at if own is not None and own.heard_at is not None else self._since
        return now - max(heard_at, self._since)

    def hears(self, *, now: float) -> list[str]:
        """Whom this replica heard within `PATIENCE`."""
        return sorted(
            name
            for name, peer in self._peers.items()
            if peer.heard_at is not None and now - peer.heard_at <= PATIENCE
        )

    def judge(self, *, now: float) -> Health:
        """READY, STARTING, BROKER_DOWN or DEAF."""
        own = self._peers.get(self.replica)
        proven = own is not None and own.heard_at is not None and now - own.heard_at <= PATIENCE
        if not self._commands_ok:
            begins = not self._ever_renewed and now - self._since <= PATIENCE
            return Health.STARTING if begins else Health.BROKER_DOWN
        if proven:
            return Health.READY
        if self.age(now=now) <= PATIENCE:
            return Health.STARTING
        if now - self._renewed_at > LATE:
            return Health.BROKER_DOWN
        others_hear = any(
            any(heard != self.replica for heard in beat.hears)
            for name, beat in self._leases.items()
            if name != self.replica
        )
        return Health.DEAF if others_hear else Health.BROKER_DOWN

    def wants_new_reading(self, *, now: float) -> bool:
        """Whether to replace the reading connection: it is silent, and its last replacement had its
        chance.
        """
        if not self._commands_ok or self.age(now=now) <= PATIENCE or now - self._restarted <= PATIENCE:
            return False
        self._restarted = now
        return True

    def wants_to_subscribe_again(self, subscribed: bool | None) -> bool:
        """Whether to replace the reading connection, since the broker counts other subscriptions than we do:
        one that was lost leaves the beacon green. `subscribed` None: it cannot be said now.

        Once, until they have agreed again: a broker that counts otherwise must not cost us every connection.
        """
        if subscribed is None:
            return False
        first = not subscribed and not self._disagreed
        self._disagreed = not subscribed
        return first

    def replicas(self, *, now: float) -> list[Beat]:
        """Everybody alive as far as known here, by name."""
        alive = [
            peer.beat
            for name, peer in self._peers.items()
            if name in self._leases or (peer.heard_at is not None and now - peer.heard_at <= PATIENCE)
        ]
        return sorted(alive, key=lambda beat: beat.replica)
