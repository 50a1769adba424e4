"""Presence and leases over one Redis.

Entries are written once and belong to their replica's incarnation: they count while its lease lives, and are
swept after its death. So a million idle clients cost nothing, where entries with a time to live would have
to be written again 37,000 times a second.

The format of entries has no version of its own; whoever changes it changes the names of the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final

from bongsu.brokers.base import MAX_MEMBERS, Departed, Standing, TooManyMembers
from bongsu.brokers.redis.names import PARTITIONS, Names
from bongsu.brokers.redis.pipeline import Pipeline
from bongsu.brokers.redis.scripts import Script, load
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult

SWEEP_LOCK: Final = 10.0
"""Seconds after which a sweep that shows no sign of life is taken over."""

SWEPT_MEMORY: Final = 3600.0
"""Seconds for which a swept incarnation is remembered, should its replica only have been asleep.

Also until one that Redis had forgotten is swept, of which only crumbs are left.
"""

_CHANNELS_AT_ONCE: Final = 64
"""Channels that a sweep works on together, each in another partition."""

_ENTRIES_AT_ONCE: Final = 100
"""Of one channel, about: Redis goes through a small hash as a whole."""

_RENEW = load("lease_renew")
_LIVING = load("lease_living")
_ENTER = load("presence_enter")
_LEAVE = load("presence_leave")
_GET = load("presence_get")
_CLAIM = load("sweep_claim")
_SWEEP = load("presence_sweep")

SCRIPTS: Final = (_RENEW, _LIVING, _ENTER, _LEAVE, _GET, _CLAIM, _SWEEP)


class RedisPresence:
    """`Leases` and `Presence` of one broker object."""

    def __init__(self, pipeline: Pipeline, names: Names) -> None:
        self._pipeline = pipeline
        self._names = names
        self._start = token_hex(8)
        self._held: set[str] = set()
        self._given_up: list[tuple[str, float]] = []
        self._wrote = False
        self._incarnations = 0
        self._evictions = 0

    # Leases

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        answer = await self._renew(replica, data, ttl)
        if answer[0] != b"held":
            if answer[0] == b"evicted":
                self._evictions += 1
                self._begin_incarnation(sweep_after=0)
            else:
                # Its members may have been written in the old one's name since Redis forgot it, and nobody
                # was told that they left: a sweep now could come before they are written again.
                self._begin_incarnation(sweep_after=SWEPT_MEMORY)
            answer = await self._renew(replica, data, ttl)
        members = iter(answer[1:])
        # Ascending by expiry: of two incarnations of one replica the living one comes last.
        return {
            member.decode().partition(":")[2]: value for member, value in zip(members, members, strict=True)
        }

    async def _renew(self, replica: str, data: bytes, ttl: float) -> list[bytes]:
        given_up = list(self._given_up)
        answer: list[bytes] = await self._run(
            _RENEW,
            self._names.leases(),
            self._start,
            replica,
            data,
            round(ttl * 1000),
            int(replica in self._held),
            *[value for start, after in given_up for value in (start, round(after * 1000))],
        )
        del self._given_up[: len(given_up)]
        if answer[0] == b"held":
            self._held.add(replica)
        return answer

    def _begin_incarnation(self, *, sweep_after: float) -> None:
        # Commands that were under way in the old one's name may have come after its sweep: bury it again.
        self._given_up.append((self._start, sweep_after))
        self._start = token_hex(8)
        self._held.clear()
        self._incarnations += 1

    async def release(self, replica: str) -> None:
        expires, values, dead = self._names.leases()
        member = f"{self._start}:{replica}"
        self._held.discard(replica)
        commands = [
            self._pipeline.execute(b"ZREM", expires, member),
            self._pipeline.execute(b"HDEL", values, member),
        ]
        if self._wrote:
            # Whatever could not be taken back is the others' to sweep.
            commands.append(self._pipeline.execute(b"ZADD", dead, 0, self._start))
        await asyncio.gather(*commands)

    async def _living(self) -> set[str]:
        members = await self._run(_LIVING, self._names.leases()[:1])
        return {member.decode().partition(":")[0] for member in members}

    # Presence

    @property
    def standing(self) -> Standing:
        return Standing(self._pipeline.reconnects + self._incarnations, self._evictions)

    def enter(self, channel: str, info: ClientInfo, *, announced: bool) -> asyncio.Future[bool]:
        self._wrote = True
        entry = _encode(self._start, info, announced=announced)
        return self._at(channel, _ENTER, self._start, channel, info.client, info.user, entry, parse=bool)

    def leave(self, channel: str, client: str) -> asyncio.Future[bool]:
        return self._at(channel, _LEAVE, self._start, channel, client, parse=bool)

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        # In this order: whoever wrote an entry that the first command sees held its lease before.
        entries, living = await asyncio.gather(self._at(channel, _GET, MAX_MEMBERS), self._living())
        if isinstance(entries, int):
            raise TooManyMembers(f"{entries} members, more than {MAX_MEMBERS}")
        return {info.client: info for owner, info, _ in _decode_all(entries) if owner in living}

    async def presence_stats(self, channel: str) -> PresenceStatsResult:
        lane = self._names.of(channel).channel
        keys = self._names.presence(channel, self._start)
        flat, num_users, living = await asyncio.gather(
            self._pipeline.execute(b"HGETALL", keys.owners, lane=lane),
            self._pipeline.execute(b"HLEN", keys.users, lane=lane),
            self._living(),
        )
        counts = {owner.decode(): int(count) for owner, count in _pairs(flat)}
        num_clients = sum(count for owner, count in counts.items() if owner in living)
        if counts.keys() <= living:
            return PresenceStatsResult(num_clients, num_users)
        try:
            members = await self.presence(channel)
        except TooManyMembers:
            return PresenceStatsResult(num_clients, min(num_users, num_clients))
        return PresenceStatsResult(len(members), len({info.user for info in members.values()}))

    def distrust(self) -> None:
        """Redis may have older data now, with our lease in it, and entries of members that have left since.

        In another incarnation's name, those that are left are written again, and the rest is swept.
        """
        self._begin_incarnation(sweep_after=SWEPT_MEMORY)

    def renounce(self) -> None:
        self._begin_incarnation(sweep_after=0)
        self._evictions += 1

    # Sweeping

    async def sweep(self) -> AsyncIterator[list[Departed]]:
        owner = await self._claim("", SWEEP_LOCK)
        if owner is None:
            return
        found = False
        for first in range(0, PARTITIONS, _CHANNELS_AT_ONCE):
            partitions = range(first, first + _CHANNELS_AT_ONCE)
            while channels := await self._some_channels(owner, partitions):
                async for departed in self._sweep_channels(owner, channels):
                    found = True
                    yield departed
                    await self._claim(owner, SWEEP_LOCK)
        if found:
            await self._claim(owner, SWEPT_MEMORY)
        else:
            await self._pipeline.execute(b"ZREM", self._names.leases().dead, owner)

    async def _claim(self, owner: str, seconds: float) -> str | None:
        keys = (self._names.leases().dead,)
        claimed: bytes | None = await self._run(_CLAIM, keys, round(seconds * 1000), owner)
        return None if claimed is None else claimed.decode()

    async def _some_channels(self, owner: str, partitions: range) -> list[str]:
        """One of each partition in which `owner` still has any."""
        names = await asyncio.gather(
            *[
                self._pipeline.execute(b"SRANDMEMBER", self._names.owned(partition, owner))
                for partition in partitions
            ]
        )
        return [name.decode() for name in names if name is not None]

    async def _sweep_channels(self, owner: str, channels: list[str]) -> AsyncIterator[list[Departed]]:
        cursors = dict.fromkeys(channels, b"0")
        while cursors:
            pages = await asyncio.gather(
                *[
                    self._run(
                        _SWEEP, self._names.presence(channel, owner), owner, channel, cursor, _ENTRIES_AT_ONCE
                    )
                    for channel, cursor in cursors.items()
                ]
            )
            swept = list(zip(cursors, pages, strict=True))
            departed = [
                Departed(channel, info, announced)
                for channel, (_, *entries) in swept
                for _, info, announced in _decode_all(entries)
            ]
            if departed:
                yield departed
            cursors = {channel: cursor for channel, (cursor, *_) in swept if cursor != b"0"}

    # Commands

    def _at(
        self,
        channel: str,
        script: Script,
        *args: bytes | str | int,
        parse: Callable[[Any], Any] | None = None,
    ) -> asyncio.Future[Any]:
        """One in the order of what is sent to `channel`."""
        keys = self._names.presence(channel, self._start)
        return self._run(script, keys, *args, lane=self._names.of(channel).channel, parse=parse)

    def _run(
        self,
        script: Script,
        keys: Sequence[bytes],
        *args: bytes | str | int,
        lane: bytes = b"",
        parse: Callable[[Any], Any] | None = None,
    ) -> asyncio.Future[Any]:
        return self._pipeline.execute(b"EVALSHA", script.sha, len(keys), *keys, *args, lane=lane, parse=parse)


# ---- entries -------------------------------------------------------------------------------------------


def _encode(owner: str, info: ClientInfo, *, announced: bool) -> bytes:
    user = info.user.encode()
    head = b"%s:%d:%d:%d:" % (owner.encode(), announced, len(user), len(info.conn_info))
    return b"".join((head, user, info.conn_info, info.chan_info))


def _decode(client: bytes, entry: bytes) -> tuple[str, ClientInfo, bool]:
    """(owner, info, announced)"""
    owner, announced, user_size, conn_size, rest = entry.split(b":", 4)
    user_end = int(user_size)
    conn_end = user_end + int(conn_size)
    user = rest[:user_end].decode()
    info = ClientInfo(user, client.decode(), rest[user_end:conn_end], rest[conn_end:])
    return owner.decode(), info, announced == b"1"


def _decode_all(flat: list[bytes]) -> Iterator[tuple[str, ClientInfo, bool]]:
    return (_decode(client, entry) for client, entry in _pairs(flat))


def _pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    items = iter(flat)
    return zip(items, items, strict=True)
