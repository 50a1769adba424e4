"""The presence of a replica that runs alone. It dies with it: only `renounce` leaves work to a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from bongsu.brokers.base import MAX_MEMBERS, Departed, Standing, TooManyMembers
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult

_PAGE = 1000


class MemoryPresence:
    """`Presence`, for a broker that is connected."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, Departed]] = {}
        self._users: dict[str, Counter[str]] = {}
        self._renounced: list[Departed] = []
        self._times_renounced = 0

    @property
    def standing(self) -> Standing:
        return Standing(self._times_renounced, self._times_renounced)

    def enter(self, channel: str, info: ClientInfo, *, announced: bool) -> None:
        members = self._channels.setdefault(channel, {})
        if info.client not in members:
            self._users.setdefault(channel, Counter())[info.user] += 1
        members[info.client] = Departed(channel, info, announced)

    def leave(self, channel: str, client: str) -> None:
        members = self._channels.get(channel, {})
        entry = members.pop(client, None)
        if entry is None:
            return
        users = self._users[channel]
        users[entry.info.user] -= 1
        if not users[entry.info.user]:
            del users[entry.info.user]
        if not members:
            del self._channels[channel], self._users[channel]

    def presence(self, channel: str) -> dict[str, ClientInfo]:
        members = self._channels.get(channel, {})
        if len(members) > MAX_MEMBERS:
            raise TooManyMembers(f"{len(members)} members, more than {MAX_MEMBERS}")
        return {client: entry.info for client, entry in members.items()}

    def presence_stats(self, channel: str) -> PresenceStatsResult:
        return PresenceStatsResult(len(self._channels.get(channel, ())), len(self._users.get(channel, ())))

    def renounce(self) -> None:
        for members in self._channels.values():
            self._renounced += members.values()
        self._channels.clear()
        self._users.clear()
        self._times_renounced += 1

    async def sweep(self) -> AsyncIterator[list[Departed]]:
        while self._renounced:
            page, self._renounced = self._renounced[:_PAGE], self._renounced[_PAGE:]
            yield [entry for entry in page if entry.info.client not in self._channels.get(entry.channel, {})]
