"""Uploads while the replicas that store them are killed, their hooks fail, and one of their clocks is wrong.

Short in `make check`: 60 uploads and 3 kills on each database; in full under `make soak`: 1,000 uploads and
30 kills. A hook of the application fails at first for one upload in 20, one replica of three lives 40 s in
the future, and PostgreSQL is killed and started again in the middle.

On SQLite the database's clock is that of the process: there the replica in the future takes the others'
leases, and what it holds when it is killed is taken over only 40 s later. The fences hold all the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from deploy.child import Child
from sqlalchemy import select
from sqlmodel import col
from tests.contracts.test_brokers import Listener
from tests.integration.hooked import MOUNTED, fails_at_first
from tests.scale import scaled
from tests.servers import API_KEY, PostgresServer, RedisServer, answers, free_port, outer_environment

from bongsu.brokers import envelope
from bongsu.brokers.redis import RedisBroker
from bongsu.db.models import Job, Outbox, Upload, UploadLog
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.protocol.messages import Publication
from bongsu.uploads.orphans import remove_orphans
from bongsu.uploads.stores import LocalStore

pytestmark = pytest.mark.soak

UPLOADS = scaled(60, 1_000)
KILLS = scaled(3, 30)
DEADLINE = scaled(420, 3_600)
FEED = "uploads:feed"
AHEAD = 40  # seconds, more than any lease

ROOT = Path(__file__).parents[2]


class HookedReplica:
    """`tests.integration.hooked` on plain uvicorn, its clock `ahead` seconds in the future."""

    def __init__(self, name: str, directory: Path, env: dict[str, str], *, ahead: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{MOUNTED}"
        server = ["-m", "uvicorn", "tests.integration.hooked:make_app", "--factory", "--port", str(self.port)]
        command = [sys.executable, *server, "--ws", "none", "--timeout-graceful-shutdown", "5"]
        # The library by itself: the program `faketime` would stand between us and the server, and leave it
        # running when it is stopped.
        faked = (
            {"LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME": f"+{ahead}s"} if ahead else {}
        )
        self._ahead = ahead
        self._child = Child(
            name,
            command,
            log=directory / f"{name}.log",
            # The monotonic clock is left alone, as a clock that was set wrong leaves it.
            env={
                **outer_environment(),
                **env,
                **faked,
                "PYTHONPATH": str(ROOT),
                "BONGSU_REPLICA": name,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
            cwd=directory,
        )

    def start(self) -> None:
        self._child.start()
        self._child.await_ready(lambda: answers(f"{self.url}/livez"))
        told = parsedate_to_datetime(httpx.get(f"{self.url}/livez").headers["date"])
        assert (told.timestamp() > time.time() + AHEAD / 2) == bool(self._ahead), (
            "its clock is not as it should be"
        )

    def kill(self) -> None:
        self._child.kill()

    def stop(self) -> None:
        self._child.stop()


class Uploaders:
    """Clients that do not give up: each file is sent with its key until some replica has accepted it."""

    def __init__(self, replicas: list[HookedReplica], seed: int) -> None:
        self._replicas = replicas
        self._random = random.Random(seed)
        self.accepted: dict[str, str] = {}
        """SHA-256 by id."""
        self.progress = asyncio.Condition()

    async def run(self, count: int) -> None:
        async with httpx.AsyncClient(timeout=20, headers={"x-api-key": API_KEY}) as client:
            waiting = iter(range(count))

            async def send_some() -> None:
                for number in waiting:
                    await self._send(client, number)

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(send_some())

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        of_file = random.Random(number)  # the same in every run: so are the hooks that fail
        content = of_file.randbytes(of_file.randrange(1, 100_000))
        while True:
            try:
                response = await client.put(
                    f"{self._random.choice(self._replicas).url}/uploads",
                    params={"filename": f"{number}.bin"},
                    content=content,
                    headers={"idempotency-key": f"file-{number}"},
                )
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == 202:
                break
            assert response is None or response.status_code == 503, response.text
            await asyncio.sleep(0.1)
        self.accepted[response.json()["id"]] = hashlib.sha256(content).hexdigest()
        async with self.progress:
            self.progress.notify_all()

    async def until(self, count: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: len(self.accepted) >= count)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that this test may kill; it survives that, as one in production does."""
    home = Path(tempfile.mkdtemp(prefix="bongsu-postgres-"))
    server = PostgresServer(home, password_file=home / "password")
    try:
        server.start()
        server.create_database("uploads")
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


@asynccontextmanager
async def feed(url: str) -> AsyncIterator[Listener]:
    """Hears `uploads:feed` over a connection that nobody disturbs."""
    broker, heard = RedisBroker(url), Listener()
    broker.listen(heard)
    await broker.connect()
    await broker.want(FEED)
    yield heard
    await broker.disconnect()


def told(heard: Listener) -> Counter[tuple[str, str]]:
    """How often it was said of an upload that it is in a state."""
    counts: Counter[tuple[str, str]] = Counter()
    for payload in heard.payloads(FEED):
        message = envelope.decode(payload)
        assert isinstance(message, Publication)
        upload = msgspec.json.decode(message.data)["upload"]
        counts[upload["id"], upload.get("state", "deleted")] += 1
    return counts


async def until_quiet(database: Database) -> None:
    """No job is left to be done, and nothing to be told."""
    while True:
        try:
            async with database.session() as session:
                jobs = (
                    (await session.execute(select(col(Job.state)).where(col(Job.state) != "done")))
                    .scalars()
                    .all()
                )
                rows = (await session.execute(select(col(Outbox.id)).limit(1))).scalars().all()
        except DatabaseUnavailable:
            jobs, rows = ["?"], []
        assert "dead" not in jobs
        if not jobs and not rows:
            return
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_every_upload_is_stored_logged_and_told_once_whatever_dies(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer
) -> None:
    postgres: PostgresServer | None = None
    database_url = f"sqlite+aiosqlite:///{tmp_path}/uploads.sqlite"
    if kind == "postgresql":
        postgres = request.getfixturevalue("own_postgres")
        database_url = postgres.url("uploads")
    env = {
        "BONGSU_DEV": "true",
        "BONGSU_API_KEY": API_KEY,
        "BONGSU_BROKER_URL": redis_server.url,
        "BONGSU_DATABASE_URL": database_url,
        "BONGSU_STORAGE_URL": f"file://{tmp_path}/storage",
        "BONGSU_UPLOAD__JOB_LEASE": "2",
        "BONGSU_UPLOAD__JOB_POLL": "0.3",
        "BONGSU_OUTBOX__TURN": "2",
    }
    replicas = [
        HookedReplica(f"r{number}", tmp_path, env, ahead=AHEAD if number == 2 else 0) for number in range(3)
    ]
    uploaders = Uploaders(replicas, seed=11)
    try:
        async with feed(redis_server.url) as heard, asyncio.timeout(DEADLINE):
            for replica in replicas:
                replica.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(uploaders.run(UPLOADS))
                group.create_task(disturb(replicas, uploaders, postgres))
            database = Database(database_url)
            await until_quiet(database)
            counts = told(heard)
            async with database.session() as session:
                uploads = (await session.execute(select(Upload))).scalars().all()
                entries = (await session.execute(select(UploadLog))).scalars().all()
            # What was left between a commit and its cleaning is removed by age, a day later.
            store = LocalStore(tmp_path / "storage")
            await store.start()
            for replica in replicas:
                replica.stop()
            leftovers = await remove_orphans(database, store, older_than=-1)
            await store.stop()
            await database.stop()
    finally:
        for replica in replicas:
            replica.stop()
    stored = {upload.id: upload.sha256 for upload in uploads if upload.state == "stored"}
    assert stored == uploaders.accepted
    assert len(uploads) == len(stored) == UPLOADS
    assert Counter(entry.upload_id for entry in entries) == dict.fromkeys(stored, 1)
    assert {upload_id: counts[upload_id, "stored"] for upload_id in stored} == dict.fromkeys(stored, 1)
    fated = {entry.upload_id for entry in entries if fails_at_first(entry.sha256)}
    assert fated
    assert all(entry.attempts > 1 for entry in entries if entry.upload_id in fated)
    assert files(tmp_path / "storage") == {
        upload.storage_key.rpartition("/")[2]: upload.sha256 for upload in uploads if upload.storage_key
    }
    # A replica works on two jobs at once, and each has a segment and an object at the most.
    assert leftovers <= KILLS * 2 * 2


async def disturb(
    replicas: list[HookedReplica], uploaders: Uploaders, postgres: PostgresServer | None
) -> None:
    """Faults spread over the uploads by their number, not by the clock."""
    chance = random.Random(13)
    for number in range(KILLS):
        await uploaders.until((number + 1) * UPLOADS // (KILLS + 2))
        replica = chance.choice(replicas)
        await asyncio.to_thread(replica.kill)
        if postgres is not None and number == KILLS // 2:
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(replica.start)


def files(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file in the storage, by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }
