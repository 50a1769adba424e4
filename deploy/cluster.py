"""A whole cluster on this machine: nginx, replicas, and a Redis and a PostgreSQL of its own.

`make run-cluster` runs it, and so do the end-to-end tests. All that it keeps is in `var/cluster`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import ClassVar

from deploy.child import Child, StartError, describe_exit, free_port
from deploy.console import Console
from deploy.nginx_server import NginxServer
from deploy.postgres_server import PostgresServer, home_for
from deploy.redis_server import RedisServer
from deploy.replica import BONGSU, Replica
from deploy.secret_file import read_or_make_secret

__all__ = ["Cluster"]

REPOSITORY = Path(__file__).resolve().parent.parent
# These are what this runner is there to set. Overwriting them silently would surprise whoever exported them.
# With one of these given, connection tokens are somebody's already.
_TOKEN_KEYS = ("hmac_secret", "rsa_public_key", "ecdsa_public_key", "jwks_public_endpoint")
_OURS = ("BONGSU_BROKER_URL", "BONGSU_DATABASE_URL", "BONGSU_REPLICA")


class Cluster:
    """`replicas` replicas behind nginx on 127.0.0.1:`port` (0: a free one), with Redis and PostgreSQL.

    State is in `root`/var/cluster, and `root` holds an nginx.conf; it is the clone unless a test wants a
    cluster of its own. `env`, by default our own environment, is the replicas' too, less what makes them a
    cluster. Start it from the main thread: its processes end with the thread that started them.
    """

    replica_type: ClassVar[type[Replica]] = Replica

    def __init__(
        self,
        root: Path = REPOSITORY,
        *,
        replicas: int = 3,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        console: Console | None = None,
    ) -> None:
        if replicas < 1:
            raise StartError("a cluster has at least one replica")
        self.state = root / "var" / "cluster"
        logs = self.state / "log"
        logs.mkdir(parents=True, exist_ok=True)
        self._console = console
        # Held by our children too, so that nobody else starts here before the last of them has ended.
        self._lock = os.open(self.state, os.O_RDONLY | os.O_DIRECTORY)
        self._started = False

        self.redis = RedisServer(
            self.state / "redis",
            durable=True,
            log=logs / "redis.log",
            on_line=self._voice("redis"),
            keep_open=(self._lock,),
        )
        self.postgres = PostgresServer(
            home_for(self.state / "postgres"),
            password_file=self.state / "postgres.password",
            log=logs / "postgres.log",
            on_line=self._voice("postgres"),
            keep_open=(self._lock,),
        )
        self._file = _settings_file(root, os.environ if env is None else env)
        self._env = self._replica_env(os.environ if env is None else env)
        self.replicas = [
            self.replica_type(
                name,
                env={**self._env, "BONGSU_REPLICA": name},
                cwd=root,
                log=logs / f"{name}.log",
                on_line=self._voice(name),
                keep_open=(self._lock,),
            )
            for name in (f"replica-{number}" for number in range(1, replicas + 1))
        ]
        self.nginx = NginxServer(
            root,
            port or free_port(),
            log=logs / "nginx.log",
            on_line=self._voice("nginx"),
            keep_open=(self._lock,),
        )

    @property
    def url(self) -> str:
        """Where people come in: nginx."""
        return self.nginx.url

    @property
    def ws_url(self) -> str:
        return self.url.replace("http://", "ws://")

    @property
    def api_key(self) -> str:
        return self._env.get("BONGSU_API_KEY") or str(self._file["api_key"])

    def replica(self, number: int) -> Replica:
        """Replica 1, 2, …, the number in its name."""
        return self.replicas[number - 1]

    @property
    def children(self) -> list[Child]:
        """Every process started by us, in the order of starting."""
        replicas = [replica.child for replica in self.replicas]
        return [self.redis.child, self.postgres.child, *replicas, self.nginx.child]

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start every part and return when all are ready; once per object.

        Raises StartError, with nothing left running, when a part fails or another cluster runs here.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"a cluster runs in {self.state} already, or its last programs are still ending"
            ) from None
        self._started = True
        try:
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def _start_parts(self) -> None:
        _raise_file_limit()
        self.nginx.require_free_port()
        with self._timed("redis", f"ready on 127.0.0.1:{self.redis.port}"):
            self.redis.start()
        with self._timed(
            "postgres", f"ready on 127.0.0.1:{self.postgres.port}, data in {self.postgres.home}"
        ):
            self.postgres.start()
            self.postgres.ensure_database()
        with self._timed("database", "migrated"):
            self._migrate()
        for replica in self.replicas:
            replica.child.start()
        for replica in self.replicas:
            with self._timed(replica.name, f"ready on {replica.url}"):
                replica.await_ready()
        with self._timed("nginx", f"ready on {self.url}"):
            self.nginx.start([replica.port for replica in self.replicas])

    def stop(self) -> None:
        """End every part, front to back, each within its bound; data and logs stay. Safe to call twice."""
        if not self._started:
            return
        # nginx stops taking connections but still carries those it has, so that the replicas' farewells reach
        # their clients. The stores go last: the replicas write to them until their end.
        self.nginx.ask_to_stop()
        for replica in self.replicas:
            replica.child.ask_to_stop()
        for replica in self.replicas:
            replica.stop()
        self.nginx.stop()
        self.postgres.stop()
        self.redis.stop()
        os.close(self._lock)
        self._started = False

    def kill(self) -> None:
        """End every process at once, for somebody who has no patience left."""
        for child in self.children:
            child.kill()

    def report_deaths(self) -> None:
        """Say loudly which parts ended since the last call that nobody asked to. The others go on."""
        for child in self.children:
            if child.died_unexpectedly() and self._console is not None:
                how = describe_exit(child.exit_code)
                self._console.alarm(child.name, f"DIED ({how}). The others go on; its log: {child.log_path}")

    def _replica_env(self, outer: Mapping[str, str]) -> dict[str, str]:
        made = {
            "BONGSU_LOG__FORMAT": "console"
            if self._console is not None and self._console.is_terminal
            else "json",
            "BONGSU_STORAGE_URL": (self.state / "storage").as_uri(),
            "BONGSU_FORWARDED_ALLOW_IPS": "127.0.0.1",
        }
        # The environment wins over the file: a secret of ours would take the place of one that is in there.
        if "api_key" not in self._file:
            made["BONGSU_API_KEY"] = read_or_make_secret(self.state / "api.key")
        given = {name.lower() for name in outer}
        token = self._file.get("token")
        if not any(
            f"bongsu_token__{key}" in given or (isinstance(token, dict) and key in token)
            for key in _TOKEN_KEYS
        ):
            made["BONGSU_TOKEN__HMAC_SECRET"] = read_or_make_secret(self.state / "token.secret")
        ours = {"BONGSU_BROKER_URL": self.redis.url, "BONGSU_DATABASE_URL": self.postgres.url()}
        return {**made, **outer, **ours}

    def _migrate(self) -> None:
        done = subprocess.run(
            [BONGSU, "migrate"],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"bongsu migrate failed\n{done.stdout}")

    def _voice(self, name: str) -> Callable[[str], None] | None:
        return None if self._console is None else self._console.voice(name)

    @contextlib.contextmanager
    def _timed(self, name: str, done: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(name, f"{done} ({time.monotonic() - began:.1f} s)")

    def _say(self, name: str, line: str) -> None:
        if self._console is not None:
            self._console.announce(name, line)


def _raise_file_limit() -> None:
    """Let each of our processes open as many sockets as this user may; the usual 1,024 is 1,000 clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(root: Path, replicas: int, port: int) -> int:
    """Run a cluster in `root` until SIGINT or SIGTERM. Returns the exit status: 0 after a clean end."""
    console = Console()
    refused = [name for name in _OURS if name in os.environ]
    if refused:
        console.alarm("cluster", f"brings its own Redis, PostgreSQL and names: unset {', '.join(refused)}")
        return 2
    try:
        cluster = Cluster(root, replicas=replicas, port=port, console=console)
    except StartError as error:
        console.alarm("cluster", str(error))
        return 1

    signals_seen = 0

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen == 1:
            raise KeyboardInterrupt  # out of wherever starting or waiting is
        console.alarm("cluster", "killing everything")
        cluster.kill()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        with cluster:
            console.announce("cluster", f"Bongsu is at {cluster.url}, {replicas} replicas; Ctrl-C stops it")
            console.announce("cluster", f"data, logs and secrets are in {cluster.state}")
            try:
                while True:
                    cluster.report_deaths()
                    time.sleep(0.2)
            finally:
                console.announce("cluster", "stopping; once more kills")
    except StartError as error:
        console.alarm("cluster", str(error))
        return 1
    except KeyboardInterrupt:
        console.announce("cluster", "stopped; the data stays")
    return 0


def _settings_file(root: Path, env: Mapping[str, str]) -> dict[str, object]:
    """What the replicas' `bongsu.toml` gives, if there is one; what is wrong with it is for them to say."""
    try:
        return tomllib.loads((root / env.get("BONGSU_CONFIG", "bongsu.toml")).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{port} is no port: they go up to 65535")
    return port


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.cluster", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument(
        "--port", type=_port, default=8080, help="nginx's port on 127.0.0.1; 0 picks a free one"
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="where nginx.conf is and var/ goes")
    options = parser.parse_args()
    return run(options.root.resolve(), options.replicas, options.port)


if __name__ == "__main__":
    sys.exit(main())
