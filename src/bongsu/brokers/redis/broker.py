"""The broker over one Redis: a pipeline of commands, a pump of messages, names in partitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from bongsu.brokers import envelope
from bongsu.brokers.base import (
    IDEMPOTENCY_TTL,
    MAX_READ,
    RELAYED_TTL,
    Appended,
    Backend,
    BrokerState,
    Departed,
    Event,
    Page,
    Read,
    Relayed,
    Standing,
    StreamOptions,
    new_epoch,
)
from bongsu.brokers.redis import scripts
from bongsu.brokers.redis.greeting import Greeter, Reader
from bongsu.brokers.redis.link import opener
from bongsu.brokers.redis.names import Names
from bongsu.brokers.redis.pipeline import Pipeline
from bongsu.brokers.redis.presence import SCRIPTS as PRESENCE_SCRIPTS
from bongsu.brokers.redis.presence import RedisPresence
from bongsu.brokers.redis.pump import Pump
from bongsu.protocol.messages import ClientInfo, PresenceStatsResult, Publication, StreamPosition


class RedisBroker(Backend):
    """Plain PUBLISH and SUBSCRIBE on partitioned names `<prefix>:{<partition>}:<what>:<channel>`."""

    kind = "redis"

    def __init__(self, url: str, *, prefix: str = "bongsu") -> None:
        """`url` as redis-py reads it. Raises ValueError when it can't."""
        super().__init__()
        self._names = Names(prefix)
        self._started = False
        self._greeter = Greeter(on_other=lambda: self._presence.distrust())
        self.pipeline = Pipeline(
            opener(url, greet=self._greeter.greet),
            scripts=[script.text for script in (*scripts.STREAMS, *PRESENCE_SCRIPTS)],
            on_silent=lambda: self.pump.give_up(),
        )
        self._presence = RedisPresence(self.pipeline, self._names)
        self._reader = Reader()
        self.pump = Pump(
            opener(url, greet=self._reader.greet),
            name_of=lambda channel: self._names.of(channel).channel,
            on_batch=self._on_pump,
            on_restored=self._restored,
        )

    @property
    def state(self) -> BrokerState:
        if not self._started:
            return BrokerState.CLOSED
        if self.pipeline.connected and self.pump.connected:
            return BrokerState.CONNECTED
        return BrokerState.CONNECTING

    @property
    def is_away(self) -> bool:
        return self.pump.is_away

    @property
    def reconnects(self) -> int:
        return self.pipeline.reconnects + self.pump.reconnects

    async def connect(self) -> None:
        self._started = True
        await asyncio.gather(self.pump.start(), self.pipeline.start())

    async def disconnect(self) -> None:
        self._started = False
        await self.pipeline.stop()
        await self.pump.stop()

    def want(self, channel: str) -> asyncio.Future[None]:
        return self.pump.want(channel)

    def drop(self, channel: str) -> None:
        self.pump.drop(channel)

    def send(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[None]:
        names = self._names.of(channel)
        keys = [names.channel]
        ttl, term = IDEMPOTENCY_TTL, b""
        if relayed is not None:
            keys += [self._names.relayed(channel, relayed.key), names.meta]
            ttl, term = RELAYED_TTL, b"%020d" % relayed.term
        elif idempotency_key:
            keys.append(self._names.result(channel, idempotency_key))
        else:
            return self.pipeline.execute(
                b"PUBLISH", names.channel, payload, lane=names.channel, parse=_nothing
            )
        return self._run(
            scripts.SEND_ONCE,
            keys,
            payload,
            _milliseconds(ttl),
            term,
            lane=names.channel,
            parse=scripts.sent,
        )

    def pause(self) -> None:
        self.pump.pause()

    def resume(self) -> None:
        self.pump.resume()

    def restart_reading(self) -> None:
        self.pump.restart()

    async def is_subscribed(self) -> bool | None:
        expected = self.pump.expected
        if expected is None:
            return None
        counted = await self.pipeline.execute(*self._reader.question, parse=self._reader.subscriptions)
        # With orders since, Redis may have counted before or after them.
        return bool(counted == expected.subscriptions) if self.pump.expected == expected else None

    # Streams

    def append(
        self,
        channel: str,
        publication: Publication,
        options: StreamOptions,
        *,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[Appended]:
        names = self._names.of(channel)
        keys = [names.meta, names.window, names.channel]
        if relayed is not None:
            keys.append(self._names.relayed(channel, relayed.key))
        elif idempotency_key:
            keys.append(self._names.result(channel, idempotency_key))
        return self._run(
            scripts.APPEND,
            keys,
            *envelope.halves(publication),
            options.size,
            _milliseconds(options.ttl),
            _milliseconds(options.meta_ttl),
            _milliseconds(IDEMPOTENCY_TTL if relayed is None else RELAYED_TTL),
            new_epoch(),
            self._greeter.incarnation,
            b"%020d" % version if version else b"",
            version_epoch,
            b"" if relayed is None else b"%020d" % relayed.term,
            lane=names.channel,
            parse=self._appended,
        )

    def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int,
        reverse: bool = False,
        meta_ttl: float,
    ) -> asyncio.Future[Page]:
        names = self._names.of(channel)
        if since is not None and reverse and not since.offset:
            limit = 0  # nothing comes before the first, and Redis has no id below 0-0
        return self._run(
            scripts.READ,
            (names.meta, names.window),
            new_epoch(),
            self._greeter.incarnation,
            _milliseconds(meta_ttl),
            b"%d-0" % since.offset if since is not None else b"",
            limit,
            b"1" if reverse else b"",
            lane=names.channel,
            parse=self._page,
        )

    def read_many(self, reads: Sequence[Read]) -> Awaitable[list[Page]]:
        for read in reads:
            if not 0 <= read.limit <= MAX_READ:
                raise ValueError(f"a limit of {read.limit}, not 0 to {MAX_READ}")
        return asyncio.gather(
            *[
                self.read(read.channel, since=read.since, limit=read.limit, meta_ttl=read.meta_ttl)
                for read in reads
            ]
        )

    def remove(self, channel: str) -> asyncio.Future[None]:
        names = self._names.of(channel)
        return self.pipeline.execute(b"UNLINK", names.window, lane=names.channel, parse=_nothing)

    def settle(self, channel: str, keys: Sequence[str]) -> asyncio.Future[None]:
        results = [self._names.relayed(channel, key) for key in keys]
        return self.pipeline.execute(
            b"UNLINK", *results, lane=self._names.of(channel).channel, parse=_nothing
        )

    def _run(
        self,
        script: scripts.Script,
        keys: Sequence[bytes],
        *args: bytes | str | int,
        lane: bytes,
        parse: Callable[[Any], Any],
    ) -> asyncio.Future[Any]:
        return self.pipeline.execute(b"EVALSHA", script.sha, len(keys), *keys, *args, lane=lane, parse=parse)

    def _appended(self, answer: Any) -> Appended:
        self._learn(answer)
        return scripts.appended(answer)

    def _page(self, answer: Any) -> Page:
        self._learn(answer)
        return scripts.page(answer)

    def _learn(self, answer: Any) -> None:
        """A fourth element says that Redis has another incarnation since we asked."""
        if isinstance(answer, list) and len(answer) > 3:
            self._greeter.incarnation = answer[3]

    # Leases and presence

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        return await self._presence.renew(replica, data, ttl)

    async def release(self, replica: str) -> None:
        await self._presence.release(replica)

    @property
    def standing(self) -> Standing:
        return self._presence.standing

    def enter(self, channel: str, info: ClientInfo, *, announced: bool = False) -> asyncio.Future[bool]:
        return self._presence.enter(channel, info, announced=announced)

    def leave(self, channel: str, client: str) -> asyncio.Future[bool]:
        return self._presence.leave(channel, client)

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        return await self._presence.presence(channel)

    async def presence_stats(self, channel: str) -> PresenceStatsResult:
        return await self._presence.presence_stats(channel)

    def renounce(self) -> None:
        self._presence.renounce()

    def sweep(self) -> AsyncIterator[list[Departed]]:
        return self._presence.sweep()

    def _on_pump(self, batch: list[Event]) -> None:
        self._hand_over(batch)


def _nothing(_: object) -> None:
    """How many listeners or keys there were is nobody's business."""


def _milliseconds(seconds: float) -> int:
    """At least 1: Redis takes 0 for "delete it now"."""
    return max(1, round(seconds * 1000))
