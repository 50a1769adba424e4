"""Real servers for tests: our own command as a process, and what the fixtures of `conftest.py` are made of.

They are the very classes that `make run-cluster` uses (`deploy/`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from deploy.child import StartError, free_port, wait_until
from deploy.cluster import Cluster
from deploy.postgres_server import PostgresServer
from deploy.redis_server import RedisServer
from deploy.replica import BONGSU, Replica, answers
from deploy.s3_server import S3Server

from tests.preloaded import PreloadedChild

__all__ = [
    "API_KEY",
    "BONGSU",
    "PostgresServer",
    "PreloadedCluster",
    "RedisServer",
    "RunningServer",
    "S3Server",
    "StartError",
    "answers",
    "free_port",
    "wait_until",
]

API_KEY = "key-of-the-tests"


class PreloadedReplica(Replica):
    """A replica that starts for a fraction of the CPU time; see `tests/preloaded.py`."""

    child_type = PreloadedChild


class PreloadedCluster(Cluster):
    """For a test that starts replicas again and again, or a cluster of its own."""

    replica_type = PreloadedReplica


class RunningServer(PreloadedReplica):
    """`bongsu serve` with a memory broker, SQLite and local files unless `env` says otherwise.

    All it writes is in `directory`. `kill()` then `start()` is a crash and a restart on the same port and
    data. It counts as started when `/livez` answers.
    """

    def __init__(self, directory: Path, env: Mapping[str, str], *, dev: bool) -> None:
        settings = {
            "BONGSU_BROKER_URL": "memory://",
            "BONGSU_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/bongsu.sqlite",
            "BONGSU_STORAGE_URL": f"file://{directory}/storage",
            "BONGSU_API_KEY": API_KEY,
            **env,
        }
        super().__init__(
            directory.name,
            env={**outer_environment(), **settings},
            cwd=directory,
            log=directory / "serve.log",
            dev=dev,
            ready_path="/livez",
        )
        self.directory = directory
        self.api_key = settings["BONGSU_API_KEY"]


def outer_environment() -> dict[str, str]:
    """The environment for a spawned server: as in production, without settings of the developer's shell.

    Unit tests run in asyncio's debug mode; it would make a server several times slower.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BONGSU_") and name != "PYTHONASYNCIODEBUG"
    }
