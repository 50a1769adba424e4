"""nginx in front of the replicas, running the repository's own nginx.conf."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.child import Child, StartError, find_program

__all__ = ["NginxServer"]


class NginxServer:
    """nginx on 127.0.0.1:`port`. `root` holds nginx.conf; all that it writes is below `root`/var/cluster."""

    def __init__(
        self,
        root: Path,
        port: int,
        *,
        log: Path,
        on_line: Callable[[str], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.port = port
        self._state = root / "var" / "cluster"
        self.child = Child(
            "nginx",
            [
                find_program("nginx", "nginx"),
                *("-p", str(root), "-c", str(root / "nginx.conf")),
                *(
                    "-e",
                    "stderr",
                    "-g",
                    "daemon off;",
                ),  # -e: not the log that was compiled in, which is root's
            ],
            log=log,
            stop_signal=signal.SIGQUIT,  # no new connections, and out when those it has are closed
            death_signal=signal.SIGTERM,  # SIGKILL would leave its workers behind
            grace=10,
            on_line=on_line,
            keep_open=keep_open,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, replica_ports: Sequence[int]) -> None:
        """Start it in front of these ports of 127.0.0.1 and return when it listens. Raises StartError."""
        self.require_free_port()
        (self._state / "nginx").mkdir(parents=True, exist_ok=True)
        # A dead process on this machine refuses a connection at once, so trying it costs nothing and nobody
        # has to be remembered as down (max_fails=0). With the default, requests that fail for their own
        # reasons would take a healthy replica away from everybody. Where replicas are other hosts, which
        # may not answer at all: max_fails=2 fail_timeout=2s.
        servers = "".join(f"server 127.0.0.1:{port} max_fails=0;\n" for port in replica_ports)
        (self._state / "replicas.conf").write_text(servers)
        # The kernel would take in megabytes for a client that has stopped reading, long before its replica
        # could see it. A quarter of a megabyte keeps fast downloads fast and a stalled client visible.
        (self._state / "listen.conf").write_text(f"listen 127.0.0.1:{self.port} sndbuf=256k;\n")
        self.child.start()
        self.child.await_ready(lambda: _listens(self.port))

    def require_free_port(self) -> None:
        """Raise StartError when somebody listens there already."""
        if _listens(self.port):
            raise StartError(f"port {self.port} is taken; choose another: make run-cluster CLUSTER_PORT=8081")

    def stop(self) -> None:
        """End it and remove what belongs to this run alone: pid file, temporary directories, ports."""
        self.child.ask_to_stop()
        # With the replicas gone, only clients that take nothing any more are left; nginx would wait for them.
        self.child.hurry(signal.SIGTERM, after=2)
        self.child.stop()
        shutil.rmtree(self._state / "nginx", ignore_errors=True)
        for name in ("replicas.conf", "listen.conf"):
            (self._state / name).unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """Let it stop taking connections while it goes on carrying those it has."""
        self.child.ask_to_stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == os.EX_OK
