"""A private PostgreSQL server on 127.0.0.1, also when we are root, whom PostgreSQL refuses to serve."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.child import Child, MissingProgram, StartError, find_program, free_port, wait_until
from deploy.secret_file import read_or_make_secret

__all__ = ["PostgresServer", "home_for"]

_ROLE = "bongsu"
# A test's server may lose everything at a power loss. Not `synchronous_commit=off`: that would lose committed
# rows when the server is killed, which tests do on purpose.
_VOLATILE = ("fsync=off", "full_page_writes=off")


def _server_user() -> str | None:
    """The system user the server must run as: None when we are not root, else `postgres`."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise MissingProgram(
            "PostgreSQL refuses to run as root and there is no user `postgres`. "
            "On Debian or Ubuntu: apt-get install postgresql"
        ) from None


def home_for(wanted: Path) -> Path:
    """`wanted`, or a directory under /var/tmp where the server's user can't reach it (a clone below /root).

    The fallback's name depends on `wanted` alone, so the same clone finds its data again.
    """
    user = _server_user()
    if user is None:
        return wanted
    reachable = subprocess.run(
        ["test", "-x", str(wanted.parent)], user=user, group=user, extra_groups=[], cwd="/", check=False
    )
    if reachable.returncode == 0:
        return wanted
    return Path("/var/tmp") / f"bongsu-{hashlib.sha256(str(wanted).encode()).hexdigest()[:12]}"


class PostgresServer:
    """A server with its data in `home`/data, made on the first start; `password_file` keeps its password."""

    def __init__(
        self,
        home: Path,
        *,
        password_file: Path,
        volatile: bool = False,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self._user = _server_user()
        self.home = home
        self._data = home / "data"
        self._volatile = volatile
        self._password = read_or_make_secret(password_file)
        self.port = free_port()
        settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",  # no socket: nothing left behind, no path of 108 bytes to overrun
            "logging_collector=off",
            "log_min_messages=warning",
            "max_connections=300",
            *(_VOLATILE if volatile else ()),
        ]
        self.child = Child(
            "postgres",
            [self._program("postgres"), "-D", str(self._data), *(f"--{setting}" for setting in settings)],
            log=log or home / "postgres.log",
            cwd=Path("/"),
            user=self._user,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions; SIGTERM would wait for clients that stay
            death_signal=signal.SIGINT,
            grace=20,
            on_line=on_line,
            keep_open=keep_open,
        )

    def url(self, database: str = _ROLE) -> str:
        """SQLAlchemy URL of a database of this server."""
        return f"postgresql+asyncpg://{_ROLE}:{self._password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Make the data if there is none, start, and return when it takes queries. Raises StartError."""
        if not (self._data / "PG_VERSION").exists():
            self._initdb()
        self.child.start()
        self.child.await_ready(lambda: self._client("pg_isready", "-d", "postgres").returncode == 0)

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """kill -9 the server and its sessions at once, as a power loss would.

        A session that outlived the server would still be attached to its shared memory, and a new server
        would refuse to start on this data.
        """
        if not self.child.running:
            return
        os.kill(self.child.pid, signal.SIGSTOP)  # so that it starts no session while we read the list
        sessions = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        self.child.kill()
        for session in map(int, sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)
        wait_until(lambda: not any(map(_lives, sessions)), within=10, what="PostgreSQL's sessions gone")

    def create_database(self, name: str) -> None:
        self._must("createdb", "--template=template0", name)

    def drop_database(self, name: str) -> None:
        self._must("dropdb", "--force", "--if-exists", name)

    def ensure_database(self) -> None:
        """Create the database `bongsu` unless an earlier run did."""
        query = f"select 1 from pg_database where datname = '{_ROLE}'"
        if self._client("psql", "-qAt", "-d", "postgres", "-c", query).stdout.strip() != "1":
            self.create_database(_ROLE)

    def _initdb(self) -> None:
        self._take_home()
        shutil.rmtree(self._data, ignore_errors=True)  # what an interrupted initdb left: it has no PG_VERSION
        first_password = self.home / "initdb.password"
        first_password.unlink(missing_ok=True)
        first_password.touch(mode=0o600, exist_ok=False)
        try:
            first_password.write_text(self._password)
            if self._user is not None:
                shutil.chown(first_password, self._user, self._user)
            made = self._run(
                self._program("initdb"),
                *("-D", str(self._data), "-U", _ROLE, "-E", "UTF8", "--locale=C", "-A", "scram-sha-256"),
                *("--pwfile", str(first_password), *(("--no-sync",) if self._volatile else ())),
            )
        finally:
            first_password.unlink(missing_ok=True)
        if made.returncode != 0:
            raise StartError(f"initdb failed\n{made.stdout}")

    def _take_home(self) -> None:
        # Its name below /var/tmp can be guessed, and anybody may put something there before us: a link that
        # would have root give away another directory, or a directory of their own to read our data in.
        self.home.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.home.mkdir(mode=0o700)
        found = self.home.lstat()
        owners = {os.geteuid()} if self._user is None else {0, pwd.getpwnam(self._user).pw_uid}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            raise StartError(f"{self.home} is not ours: remove it")
        self.home.chmod(0o700)
        if self._user is not None:
            shutil.chown(self.home, self._user, self._user)

    def _must(self, program: str, *arguments: str) -> None:
        done = self._client(program, *arguments)
        if done.returncode != 0:
            raise StartError(f"{program} failed: {done.stdout}")

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(self._program(program), *self._address(), *arguments, env=self._client_env())

    def _address(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", _ROLE)

    def _client_env(self) -> Mapping[str, str]:
        return {**os.environ, "PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "5"}

    def _run(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd="/",
            env=env,
            check=False,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )

    @staticmethod
    def _program(name: str) -> str:
        # Debian keeps each version whole in a directory of its own, off the PATH. Those come first, newest
        # first: what PATH offers may be a lone binary of another version without the files that belong to it.
        versions = Path("/usr/lib/postgresql").glob("*/bin")
        newest_first = sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
        return find_program(name, "postgresql", newest_first)


def _lives(pid: str) -> bool:
    """Whether a process runs. One that ended and that nobody has waited for yet holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
