"""The presence of a replica that runs alone. It dies with it: only `renounce` leaves work to a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from itertools import islice

from bongsu.brokers.base import MAX_MEMBERS, Departed, Standing, TooManyMembers
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult

_PAGE = 1000


class MemoryPresence:
    """`Presence`, for a broker that is connected."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, Departed]] = {}
        self._users: dict[str, Counter[str]] = {}
        self._renounced: dict[tuple[str, str], Departed] = {}
        self._times_renounced = 0

    @property
    def standing(self) -> Standing:
        return Standing(self._times_renounced, self._times_renounced)

    def enter(self, channel: str, info: ClientInfo, *, announced: bool) -> bool:
        members = self._channels.setdefault(channel, {})
        was_there = info.client in members
        if not was_there:
            self._users.setdefault(channel, Counter())[info.user] += 1
        members[info.client] = Departed(channel, info, announced)
        return self._renounced.pop((channel, info.client), None) is not None or was_there

    def leave(self, channel: str, client: str) -> bool:
        members = self._channels.get(channel, {})
        entry = members.pop(client, None)
        if entry is None:
            return self._renounced.pop((channel, client), None) is not None
        users = self._users[channel]
        users[entry.info.user] -= 1
        if not users[entry.info.user]:
            del users[entry.info.user]
        if not members:
            del self._channels[channel], self._users[channel]
        return True

    def presence(self, channel: str) -> dict[str, ClientInfo]:
        members = self._channels.get(channel, {})
        if len(members) > MAX_MEMBERS:
            raise TooManyMembers(f"{len(members)} members, more than {MAX_MEMBERS}")
        return {client: entry.info for client, entry in members.items()}

    def presence_stats(self, channel: str) -> PresenceStatsResult:
        return PresenceStatsResult(len(self._channels.get(channel, ())), len(self._users.get(channel, ())))

    def renounce(self) -> None:
        for members in self._channels.values():
            self._renounced |= {(entry.channel, entry.info.client): entry for entry in members.values()}
        self._channels.clear()
        self._users.clear()
        self._times_renounced += 1

    async def sweep(self) -> AsyncIterator[list[Departed]]:
        while self._renounced:
            yield [self._renounced.pop(key) for key in list(islice(self._renounced, _PAGE))]
