"""A private redis-server on 127.0.0.1."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.child import Child, find_program, free_port

__all__ = ["RedisServer"]


class RedisServer:
    """redis-server with its files in `directory`. `kill()` and `start()` keep the port, so clients find it.

    With `durable`, each write goes to an append-only file, synced once a second; without it, a restart is
    empty.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durable: bool = False,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.child = Child(
            "redis",
            [
                find_program("redis-server", "redis-server"),
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(directory)),
                *("--save", "", "--appendonly", "yes" if durable else "no", "--appendfsync", "everysec"),
                # A replica's pump reads for thousands of clients over one connection: the default of 32 MB,
                # or 8 MB for 60 s, would cut it off in the very burst it is there to deliver.
                *("--client-output-buffer-limit", "pubsub 256mb 64mb 60"),
                *("--loglevel", "warning"),
            ],
            log=log or directory / "redis.log",
            death_signal=signal.SIGTERM,  # it syncs its append-only file first
            on_line=on_line,
            keep_open=keep_open,
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.child.pid

    def start(self) -> None:
        """Start it and return when it answers PING with PONG (not while LOADING). Raises StartError."""
        self.child.start()
        self.child.await_ready(self._answers)

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
