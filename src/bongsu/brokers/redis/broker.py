"""The broker over one Redis: a pipeline of commands, a pump of messages, names in partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from zlib import crc32

from bongsu.brokers.base import Backend, BrokerError, BrokerState, Event
from bongsu.brokers.redis.link import opener
from bongsu.brokers.redis.pipeline import Pipeline
from bongsu.brokers.redis.pump import Pump

PARTITIONS = 1024
"""Fixed for ever: the hash tag of every key and channel. A channel's own name as the tag would break on
`}`.
"""

_LEASE_SCRIPT = (files("bongsu.brokers") / "lua" / "lease.lua").read_text()


class RedisBroker(Backend):
    """Plain PUBLISH and SUBSCRIBE on partitioned names `<prefix>:{<partition>}:<what>:<channel>`."""

    kind = "redis"

    def __init__(self, url: str, *, prefix: str = "bongsu") -> None:
        """`url` as redis-py reads it. Raises ValueError when it can't."""
        super().__init__()
        self._prefix = prefix
        self._started = False
        open_link = opener(url)
        self.pipeline = Pipeline(open_link)
        self.pump = Pump(open_link, name_of=self._channel_name, on_batch=self._on_pump)
        # Formatting and hashing the name costs more than packing the whole command.
        self._channel_name_cached = lru_cache(maxsize=65536)(self._make_channel_name)

    @property
    def state(self) -> BrokerState:
        if not self._started:
            return BrokerState.CLOSED
        if self.pipeline.connected and self.pump.connected:
            return BrokerState.CONNECTED
        return BrokerState.CONNECTING

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

    def send(self, channel: str, payload: bytes) -> asyncio.Future[None]:
        return self.pipeline.execute(b"PUBLISH", self._channel_name(channel), payload)

    def pause(self) -> None:
        self.pump.pause()

    def resume(self) -> None:
        self.pump.resume()

    def restart_reading(self) -> None:
        self.pump.restart()

    # Leases

    async def renew(self, replica: str, data: bytes, ttl: float) -> Mapping[str, bytes]:
        expires, values = self._lease_keys()
        flat = await self.pipeline.execute(
            b"EVAL", _LEASE_SCRIPT, 2, expires, values, replica, data, int(ttl * 1000)
        )
        if not isinstance(flat, list):
            raise BrokerError(f"the lease script answered {type(flat).__name__}")
        names = iter(flat)
        return {name.decode(): value for name, value in zip(names, names, strict=True)}

    async def release(self, replica: str) -> None:
        expires, values = self._lease_keys()
        await asyncio.gather(
            self.pipeline.execute(b"ZREM", expires, replica), self.pipeline.execute(b"HDEL", values, replica)
        )

    # Names

    def _on_pump(self, batch: list[Event]) -> None:
        self._hand_over(batch)

    def _channel_name(self, channel: str) -> bytes:
        return self._channel_name_cached(channel)

    def _make_channel_name(self, channel: str) -> bytes:
        raw = channel.encode()
        return b"%s:{%d}:channel:%s" % (self._prefix.encode(), crc32(raw) % PARTITIONS, raw)

    def _lease_keys(self) -> tuple[str, str]:
        partition = crc32(b"leases") % PARTITIONS
        base = f"{self._prefix}:{{{partition}}}:leases"
        return f"{base}:expires", f"{base}:values"
