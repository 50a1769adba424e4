"""What channels and keys are called in Redis: `<prefix>:{<partition>}:<what>:<channel>`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

PARTITIONS = 1024
"""Fixed for ever: the hash tag of every key and channel. A channel's own name as the tag would break on
`}`.
"""


class ChannelNames(NamedTuple):
    """The names that belong to one channel, all in its partition, so that one script may use them."""

    channel: bytes
    meta: bytes
    window: bytes


class PresenceKeys(NamedTuple):
    """Keys of one channel's presence, all in its partition; `owned` is one incarnation's."""

    entries: bytes
    owners: bytes
    users: bytes
    owned: bytes


class LeaseKeys(NamedTuple):
    expires: bytes
    values: bytes
    dead: bytes


class Names:
    """The names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        # Formatting and hashing the names costs more than packing the whole command.
        self.of = lru_cache(maxsize=65536)(self._of)

    def _of(self, channel: str) -> ChannelNames:
        raw = channel.encode()
        base = self._base(raw)
        return ChannelNames(
            b"%schannel:%s" % (base, raw), b"%smeta:%s" % (base, raw), b"%swindow:%s" % (base, raw)
        )

    def result(self, channel: str, idempotency_key: str) -> bytes:
        """The key for what the first call with `idempotency_key` got."""
        raw = channel.encode()
        # With the length, since both may contain colons.
        return b"%sresult:%d:%s:%s" % (self._base(raw), len(raw), raw, idempotency_key.encode())

    def relayed(self, channel: str, key: str) -> bytes:
        """As `result`, for what a relay published. Apart from them, since anybody may choose those keys."""
        raw = channel.encode()
        return b"%srelayed:%d:%s:%s" % (self._base(raw), len(raw), raw, key.encode())

    def presence(self, channel: str, owner: str) -> PresenceKeys:
        raw = channel.encode()
        base = self._base(raw) + b"presence:"
        return PresenceKeys(
            b"%sentries:%s" % (base, raw),
            b"%sowners:%s" % (base, raw),
            b"%susers:%s" % (base, raw),
            b"%sowned:%s" % (base, owner.encode()),
        )

    def owned(self, partition: int, owner: str) -> bytes:
        """`PresenceKeys.owned` of the channels in `partition`."""
        return b"%s:{%d}:presence:owned:%s" % (self._prefix, partition, owner.encode())

    def leases(self) -> LeaseKeys:
        base = self._base(b"leases") + b"leases:"
        return LeaseKeys(base + b"expires", base + b"values", base + b"dead")

    def _base(self, raw: bytes) -> bytes:
        return b"%s:{%d}:" % (self._prefix, crc32(raw) % PARTITIONS)
