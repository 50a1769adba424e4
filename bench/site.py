"""Where a measurement takes place: the cores, the programs, a Redis, and what has to be ended afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.child import Child
from deploy.redis_server import RedisServer
from deploy.replica import answers

from bench.clock import family

__all__ = ["LOAD_CORE", "SERVER_CORE", "Server", "Site"]

SERVER_CORE = 0
LOAD_CORE = 1
"""The generator's, and Redis's: the server under test has its core to itself, and pays for nobody else."""


class Server:
    """A server under test: one process, with its children, listening on one port of 127.0.0.1."""

    def __init__(self, child: Child, port: int) -> None:
        self.child = child
        self.port = port

    @property
    def pids(self) -> list[int]:
        return family(self.child.pid)


class Site:
    """Starts servers pinned to a core, and ends all of them when left. `programs` holds what setup made."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self.programs = programs
        self._ends = ExitStack()
        self._redis: RedisServer | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def redis(self) -> RedisServer:
        """A Redis without persistence on the generator's core, started when first asked for."""
        if self._redis is None:
            self._redis = RedisServer(self.directory / "redis")
            self._ends.callback(self._redis.stop)
            self._redis.start()
            os.sched_setaffinity(self._redis.pid, {LOAD_CORE})
        return self._redis

    def serve(
        self,
        name: str,
        argv: Sequence[str],
        port: int,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: str | None = None,
        core: int = SERVER_CORE,
    ) -> Server:
        """Start a server on a core. It is ready when `ready` answers 200, or else when it listens.

        Raises StartError with its log's tail.
        """
        self._count += 1
        log = self.directory / f"{name}-{self._count}.log"
        child = Child(
            name,
            ["taskset", "-c", str(core), *argv],
            log=log,
            env={**_outer_environment(), **(env or {})},
            cwd=cwd or self.directory,
            grace=5,
        )
        self._ends.callback(child.kill)
        child.start()
        if ready is None:
            child.await_ready(lambda: _listens(port))
        else:
            url = f"http://127.0.0.1:{port}{ready}"
            child.await_ready(lambda: answers(url))
        return Server(child, port)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _outer_environment() -> dict[str, str]:
    """The environment for a server: as in production, without settings of the developer's shell."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BONGSU_") and name != "PYTHONASYNCIODEBUG"
    }
