"""One replica: the shipped `bongsu serve` as a process."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from deploy.child import Child, free_port

__all__ = ["BONGSU", "Replica", "answers"]

BONGSU = Path(sys.executable).parent / "bongsu"
"""The command as users have it: the console script beside this interpreter."""


class Replica:
    """`bongsu serve` on 127.0.0.1. `kill()` then `start()` is a crash and a restart on the same port.

    `env` is its whole environment. It is ready when `ready_path` answers 200.
    """

    child_type: ClassVar[type[Child]] = Child

    def __init__(
        self,
        name: str,
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        dev: bool = True,
        ready_path: str = "/readyz",
        on_line: Callable[[str], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.port = free_port()
        self._ready_path = ready_path
        command = [str(BONGSU), "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.child = self.child_type(
            name,
            [*command, "--dev"] if dev else command,
            log=log,
            env=env,
            cwd=cwd,
            grace=35,  # it gives itself 30 to tell its clients to reconnect and finish what it has taken on
            on_line=on_line,
            keep_open=keep_open,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.running

    @property
    def exit_code(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self.child.exit_code

    def start(self) -> None:
        """Start it and return when it is ready. Raises StartError with the log's tail."""
        self.child.start()
        self.await_ready()

    def await_ready(self) -> None:
        """Return when it is ready. Raises StartError with the log's tail."""
        self.child.await_ready(lambda: answers(f"{self.url}{self._ready_path}"))

    def log(self) -> str:
        """All it has printed since its last start."""
        return self.child.log()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it is still there after the time it has for draining."""
        self.child.stop()

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()


def answers(url: str, status: int = 200) -> bool:
    """Whether a GET of `url` is answered with `status` within 2 s; refused, reset or late is False."""
    parts = urlsplit(url)
    # Not urlopen: where sending fails it leaves its socket open.
    with closing(http.client.HTTPConnection(parts.netloc, timeout=2)) as connection:
        try:
            connection.request("GET", parts.path or "/")
            return connection.getresponse().status == status
        except (OSError, http.client.HTTPException):
            return False
