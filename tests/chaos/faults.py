"""What a machine room does to a cluster. Each fault ends with everything running again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from deploy.cluster import Cluster
from tests.chaos.clients import Client

__all__ = ["Faults"]

Fault = Callable[[], Awaitable[None]]


class Faults:
    """The faults of one run, drawn from `seed`: the same seed is the same series."""

    def __init__(self, cluster: Cluster, clients: Sequence[Client], seed: int) -> None:
        self._cluster = cluster
        self._clients = clients
        self._chance = random.Random(seed)
        self._all: dict[str, Fault] = {
            "replica killed": self._kill_replica,
            "replica restarted": self._restart_replica,
            "connections cut": self._cut,
            "clients stalled": self._stall,
            "nginx reloaded": self._reload_nginx,
            "redis frozen": self._freeze_redis,
            "redis killed, back from its file": self._kill_redis,
            "redis killed, back empty": self._empty_redis,
        }

    def series(self, count: int) -> list[str]:
        """`count` faults; each kind comes once before any comes twice."""
        names: list[str] = []
        while len(names) < count:
            round_ = list(self._all)
            self._chance.shuffle(round_)
            names += round_
        return names[:count]

    async def strike(self, name: str) -> None:
        await self._all[name]()

    async def _kill_replica(self) -> None:
        replica = self._chance.choice(self._cluster.replicas)
        replica.kill()
        await self._pause(0, 2)
        replica.child.start()
        await asyncio.to_thread(replica.await_ready)

    async def _restart_replica(self) -> None:
        replica = self._chance.choice(self._cluster.replicas)
        await asyncio.to_thread(replica.stop)
        replica.child.start()
        await asyncio.to_thread(replica.await_ready)

    async def _cut(self) -> None:
        for client in self._some():
            client.cut()

    async def _stall(self) -> None:
        for client in self._some():
            client.stall(self._chance.uniform(1, 8))

    async def _reload_nginx(self) -> None:
        os.kill(self._cluster.nginx.child.pid, signal.SIGHUP)

    async def _freeze_redis(self) -> None:
        os.kill(self._cluster.redis.pid, signal.SIGSTOP)
        try:
            await self._pause(0.3, 5)
        finally:
            os.kill(self._cluster.redis.pid, signal.SIGCONT)

    async def _kill_redis(self) -> None:
        """Its append-only file is synced once a second: it comes back as it was up to a second before."""
        self._cluster.redis.kill()
        await self._pause(0, 2)
        self._cluster.redis.child.start()

    async def _empty_redis(self) -> None:
        self._cluster.redis.kill()
        shutil.rmtree(Path(self._cluster.state) / "redis" / "appendonlydir", ignore_errors=True)
        self._cluster.redis.child.start()

    def _some(self) -> list[Client]:
        return self._chance.sample(list(self._clients), max(1, len(self._clients) // 2))

    async def _pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(least, most))
