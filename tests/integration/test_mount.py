"""Bongsu inside somebody's own FastAPI app, and with somebody's own backend."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from broadcaster._backends.memory import MemoryBackend
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from websockets.asyncio.client import connect

import bongsu
from bongsu.node.channels import UnknownNamespace
from bongsu.settings import load

DEADLINE = 15.0


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """`app` on plain uvicorn, in this process."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=5)
    )
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


@pytest.mark.parametrize("backend", ["ours", "third-party"])
async def test_an_app_that_mounts_us_keeps_its_own_life_and_routes(tmp_path: Path, backend: str) -> None:
    """Setup: an app with a lifespan and a route. Do: mount, connect, publish. Expect: all of it works."""
    life: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        life.append("up")
        yield
        life.append("down")

    app = FastAPI(lifespan=lifespan)

    @app.get("/own")
    async def own() -> str:
        return "own"

    settings = load(
        dev=True,
        replica="mounted",
        database_url=f"sqlite+aiosqlite:///{tmp_path}/bongsu.db",
        storage_url=f"file://{tmp_path}/storage",
    )
    broker = MemoryBackend("memory://") if backend == "third-party" else None
    replica = bongsu.mount(app, "/realtime", settings=settings, broker=broker)
    async with serving(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as http:
        assert (await http.get("/own")).json() == "own"
        assert (await http.get("/nowhere")).headers["content-type"] == "application/json"
        page = await http.get("/realtime/")
        assert page.headers["x-bongsu-replica"] == "mounted"
        async with connect(f"ws://{address}/realtime/ws/news") as client, asyncio.timeout(DEADLINE):
            await replica.publish("news", {"text": "안녕"})
            assert json.loads(await client.recv()) == {"text": "안녕"}
            await client.send("hello")
            assert await client.recv() == "📢 새로운 알림: hello"
        uploaded = await http.post("/realtime/upload-file/", files={"file": ("a.txt", b"content")})
        assert uploaded.json()["status_url"].startswith("/realtime/uploads/")
        assert (await http.get(uploaded.json()["status_url"])).json()["filename"] == "a.txt"
        resumable = {"Tus-Resumable": "1.0.0"}
        made = await http.post("/realtime/files/", headers={**resumable, "Upload-Length": "3"})
        assert made.headers["location"].startswith("/realtime/files/")
        assert (await http.head(made.headers["location"], headers=resumable)).headers["upload-offset"] == "0"
        document = (await http.get("/realtime/openapi.json")).json()
        assert {"/api/publish", "/uploads", "/upload-file/"} <= set(document["paths"])
        key = {"X-API-Key": settings.api_key.get_secret_value()} if settings.api_key else {}
        answer = await http.post("/realtime/api/publish", headers=key, json={"channel": "news", "data": 1})
        assert answer.json() == {"result": {}}
    assert life == ["up", "down"]


async def test_publishing_what_is_not_json_or_not_a_channel_is_told(tmp_path: Path) -> None:
    settings = load(
        dev=True,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/bongsu.db",
        storage_url=f"file://{tmp_path}/storage",
    )
    replica = bongsu.Bongsu(settings)
    async with replica.running():
        with pytest.raises(TypeError):
            await replica.publish("news", object())
        with pytest.raises(ValueError, match="empty"):
            await replica.publish("", 1)
        with pytest.raises(LookupError, match="unknown"):
            await replica.publish("unknown:x", 1)


def test_importing_reads_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped setting must not break an import, only a start."""
    monkeypatch.setenv("BONGSU_NO_SUCH_SETTING", "1")
    import importlib

    import bongsu.app

    importlib.reload(bongsu.app)


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A table of the embedding application's, in the database that it shares with us."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


async def test_an_app_publishes_in_its_own_transactions(database_url: str, tmp_path: Path) -> None:
    """
    Setup: an app whose own engine, session and table are in the database that it gave to us.
    Do: publish in a transaction that is rolled back, and in two that are committed, one of them without a
    replica's doorbell, as another program would.
    Expect: subscribers hear what was committed with its rows, and nothing else.
    """
    app = FastAPI()
    settings = load(
        dev=True,
        database_url=database_url,
        storage_url=f"file://{tmp_path}/storage",
    )
    realtime = bongsu.mount(app, "/realtime", settings=settings)
    engine = create_async_engine(database_url, connect_args=_patient(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with (
        serving(app) as address,
        connect(f"ws://{address}/realtime/ws/orders") as client,
        asyncio.timeout(DEADLINE),
    ):
        async with AsyncSession(engine) as session:
            session.add(Order(id=1))
            await realtime.outbox.publish(session, "orders", {"order": 1})
            await session.rollback()
        for number, outbox in ((2, realtime.outbox), (3, bongsu.Outbox())):
            async with AsyncSession(engine) as session, session.begin():
                session.add(Order(id=number))
                await outbox.publish(session, "orders", {"order": number})
            assert json.loads(await client.recv()) == {"order": number}
        async with AsyncSession(engine) as session:
            assert list((await session.execute(select(Order.id))).scalars()) == [2, 3]
            with pytest.raises(UnknownNamespace):
                await realtime.outbox.publish(session, "nowhere:x", {})
            with pytest.raises(TypeError):
                await realtime.outbox.publish(session, "orders", object())
            with pytest.raises(ValueError, match="at most"):
                await realtime.outbox.publish(session, "orders", "x" * 1024 * 1024)
    await engine.dispose()


async def test_an_app_has_its_own_jobs_and_hooks(database_url: str, tmp_path: Path) -> None:
    """
    Setup: an app with a job that writes a row of its own, and a hook that enqueues it for each upload.
    Do: upload a file.
    Expect: the row is there once, and the metrics count what waits.
    """
    app = FastAPI()
    settings = load(dev=True, database_url=database_url, storage_url=f"file://{tmp_path}/storage")
    realtime = bongsu.mount(app, "/realtime", settings=settings)
    engine = create_async_engine(database_url, connect_args=_patient(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    done = asyncio.Event()

    @realtime.job("count")
    async def count(job: bongsu.JobRun) -> None:
        async with job.completing() as session:
            session.add(Order(id=job.payload["size"]))
        done.set()

    @realtime.on_stored("count")
    async def enqueue(file: bongsu.ReceivedFile) -> None:
        async with AsyncSession(engine) as session, session.begin():
            payload = {"size": file.upload.size}
            first = await realtime.jobs.enqueue(session, "count", payload, key=file.key)
            again = await realtime.jobs.enqueue(session, "count", payload, key=file.key)
        assert (first is not None, again) == (True, None)

    async with (
        serving(app) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as http,
        asyncio.timeout(DEADLINE),
    ):
        await http.post("/realtime/upload-file/", files={"file": ("a.txt", b"content")})
        await done.wait()
        async with AsyncSession(engine) as session:
            assert list((await session.execute(select(Order.id))).scalars()) == [7]
        metrics = (await http.get("/realtime/metrics")).text
        for name in ('bongsu_jobs{state="dead"} 0.0', 'bongsu_oldest_job_seconds{state="queued"} 0.0'):
            assert name in metrics
    await engine.dispose()


def _patient(database_url: str) -> dict[str, object]:
    """SQLite has one writer at a time, and a second one waits for as long as it is told to."""
    return {"timeout": 10} if database_url.startswith("sqlite") else {}


_FAILS = """
import bongsu, structlog
from fastapi import FastAPI
{before}
bongsu.mount(FastAPI())

def handler():
    password = "hunter2-" + "of-a-handler"
    raise ValueError("broken")

try:
    handler()
except ValueError:
    structlog.get_logger("bongsu").exception("a handler failed")
"""


@pytest.mark.parametrize(
    ("before", "shows_variables"),
    [("", False), ("structlog.configure(processors=[structlog.dev.ConsoleRenderer()])", True)],
)
def test_a_traceback_shows_no_variables_unless_the_application_wants_it(
    before: str, shows_variables: bool, tmp_path: Path
) -> None:
    """Where nobody has configured structlog; rich shows the values of all local variables."""
    run = subprocess.run(
        [sys.executable, "-c", _FAILS.format(before=before)],
        env={**os.environ, "BONGSU_DEV": "true", "COLUMNS": "200"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = run.stdout + run.stderr
    assert "ValueError" in said
    assert ("hunter2-of-a-handler" in said) is shows_variables
