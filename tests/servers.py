"""Real servers for tests: our own command as a process, and what the fixtures of `conftest.py` are made of.

Redis and PostgreSQL are started by the classes that `make run-cluster` uses too (`deploy/`).
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from deploy.child import Child, StartError, free_port, wait_until
from deploy.postgres_server import PostgresServer
from deploy.redis_server import RedisServer

__all__ = [
    "BONGSU",
    "PostgresServer",
    "RedisServer",
    "RunningServer",
    "StartError",
    "free_port",
    "wait_until",
]

BONGSU = Path(sys.executable).parent / "bongsu"
"""The command as users have it: the console script beside this interpreter."""

API_KEY = "key-of-the-tests"


class RunningServer:
    """`bongsu serve` as a process of its own; all it writes is in `directory`.

    `kill()` then `start()` is a crash and a restart on the same port and the same data.
    """

    def __init__(
        self, directory: Path, env: Mapping[str, str], *, dev: bool, port: int | None = None
    ) -> None:
        self.port = free_port() if port is None else port
        self.directory = directory
        self.env = {
            "BONGSU_BROKER_URL": "memory://",
            "BONGSU_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/bongsu.sqlite",
            "BONGSU_STORAGE_URL": f"file://{directory}/storage",
            "BONGSU_API_KEY": API_KEY,
            **env,
        }
        # What the developer's shell sets for our program must not leak into a test, and a spawned server runs
        # as in production: without asyncio's debug mode.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BONGSU_") and name != "PYTHONASYNCIODEBUG"
        }
        self._child = Child(
            f"bongsu serve on port {self.port}",
            [
                str(BONGSU),
                *("serve", "--host", "127.0.0.1", "--port", str(self.port)),
                *(("--dev",) if dev else ()),
            ],
            log=directory / f"serve-{self.port}.log",
            env={**inherited, **self.env},
            cwd=directory,
            grace=30,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def api_key(self) -> str:
        return self.env["BONGSU_API_KEY"]

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def exit_code(self) -> int | None:
        return self._child.exit_code

    def start(self) -> None:
        """Start it and return when `/livez` answers 200. Raises StartError with the log's tail."""
        self._child.start()
        self._child.await_ready(lambda: answers(f"{self.url}/livez"))

    def log(self) -> str:
        """All it has printed since its last start."""
        return self._child.log()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it is still there 30 s later (`exit_code` is then -9)."""
        self._child.stop()

    def kill(self) -> None:
        """kill -9."""
        self._child.kill()


def answers(url: str, status: int = 200) -> bool:
    """Whether a GET of `url` is answered with `status` within 2 s; refused, reset or late is False."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == status
    except urllib.error.HTTPError as error:
        with error:
            return error.code == status
    except OSError:
        return False
