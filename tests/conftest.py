"""Fixtures for everybody: real Redis, real PostgreSQL, and the shipped `bongsu serve`."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from tests.servers import PostgresServer, RedisServer, RunningServer, S3Server

# No deadline: a busy machine is no failure. The same examples each time: a run that fails can be repeated.
hypothesis.settings.register_profile("check", deadline=None, derandomize=True)
hypothesis.settings.load_profile("check")


# Each client of httpx reads a file of certificates when it is made, 50 ms of CPU time, and tests make
# thousands that ask nobody by TLS. Of a directory it reads what it needs.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = ssl.get_default_verify_paths().openssl_capath

# In the background of a shell SIGINT is ignored, and the servers that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: begun last, one of them would run on alone."""
    long = {item.path for item in items if item.get_closest_marker("soak")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of this test's own: `.url`, `.kill()` (kill -9), `.start()` again, same port, empty."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run, outside pytest's directories: run by root, only root enters those."""
    home = Path(tempfile.mkdtemp(prefix="bongsu-postgres-"))
    server: PostgresServer | None = None
    try:
        server = PostgresServer(home, password_file=home / "password", volatile=True)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(home)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """SQLAlchemy URL (`postgresql+asyncpg://…`) of an empty database, dropped after the test."""
    name = f"test_{uuid4().hex[:12]}"
    postgres_server.create_database(name)
    try:
        yield postgres_server.url(name)
    finally:
        postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole run, with a bucket `bongsu`; a test keeps to a prefix of its own in it."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    try:
        server.create_bucket("bongsu")
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bongsu/…`, with nothing in it; the environment says where that is and who we are."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bongsu/{uuid4().hex[:12]}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy URL of an empty database; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.sqlite"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def bongsu_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts `bongsu serve` as often as called, each in its own directory; stops them all after the test.

    `bongsu_server(BONGSU_BROKER_URL=redis_server.url)`: keywords are environment variables, over a memory
    broker, SQLite and local files. `dev=False` leaves `--dev` out.
    """
    servers: list[RunningServer] = []

    def start(*, dev: bool = True, **env: str) -> RunningServer:
        directory = tmp_path / f"serve-{len(servers) + 1}"
        directory.mkdir()
        server = RunningServer(directory, env, dev=dev)
        servers.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.stop()
