"""Uploads of every kind while the database, or the storage, is away for a while: by the shipped command."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pytest
from tests.faults import FaultProxy
from tests.scale import scaled
from tests.servers import PostgresServer, RunningServer, S3Server, wait_until

MIB = 1024 * 1024
SIZE = 24 * MIB
SECONDS = scaled(2, 10)
"""How long it is away, at least."""
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
BEFORE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
AFTER = b"\r\n--b--\r\n"


@dataclass
class Place:
    """A server on a PostgreSQL and an S3 that can both be taken away."""

    server: RunningServer
    postgres: PostgresServer
    storage: FaultProxy
    kept: Callable[[], list[str]]

    @asynccontextmanager
    async def without(self, what: str) -> AsyncIterator[None]:
        if what == "storage":
            with self.storage.away():
                yield
            return
        await asyncio.to_thread(self.postgres.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(self.postgres.start)

    async def ask(self, question: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.postgres.url("uploads").replace("+asyncpg", ""))
        try:
            rows: list[asyncpg.Record] = await connection.fetch(question)
            return rows
        finally:
            await connection.close()

    async def until_none(self, question: str) -> None:
        while True:
            if not await self.ask(question):
                return
            await asyncio.sleep(0.05)


@pytest.fixture
def place(bongsu_server: Callable[..., RunningServer], s3_server: S3Server, s3_url: str) -> Iterator[Place]:
    home = Path(tempfile.mkdtemp(prefix="bongsu-postgres-"))
    postgres = PostgresServer(home, password_file=home / "password")
    try:
        postgres.start()
        postgres.create_database("uploads")
        with FaultProxy(s3_server.port) as storage:
            server = bongsu_server(
                **dict(s3_server.environment) | {"AWS_ENDPOINT_URL_S3": storage.url},
                BONGSU_DATABASE_URL=postgres.url("uploads"),
                BONGSU_STORAGE_URL=s3_url,
                BONGSU_UPLOAD__JOB_POLL="0.2",
            )
            yield Place(server, postgres, storage, lambda: s3_server.keys(s3_url))
            server.stop()
    finally:
        postgres.stop()
        shutil.rmtree(home)


@dataclass
class Clients:
    """They send the first half of what they have, wait until it is away, and go on until it is stored."""

    http: httpx.AsyncClient
    away: asyncio.Event = field(default_factory=asyncio.Event)
    refused: Counter[str] = field(default_factory=Counter)
    """How often each was told to come again."""
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def tus(self, name: str, content: bytes) -> str:
        made = await self._try(
            name, lambda: self.http.post("/files/", headers=TUS | {"Upload-Length": str(SIZE)})
        )
        path: str = made.headers["location"]
        offset = 0
        while offset < SIZE:
            headers = BYTES | {"Upload-Offset": str(offset), "Content-Length": str(SIZE - offset)}
            with suppress(httpx.TransportError):
                answer = await self.http.patch(path, headers=headers, content=self._body(content, offset))
                if answer.status_code != 204:
                    await self._told_to_wait(name, answer)
            head = await self._try(name, lambda: self.http.head(path, headers=TUS))
            offset = int(head.headers["upload-offset"])
        return path.rpartition("/")[2]

    async def form(self, name: str, content: bytes) -> str:
        body = BEFORE + content + AFTER
        headers = FORM | {"Content-Length": str(len(body)), "Idempotency-Key": name}
        answer = await self._try(
            name, lambda: self.http.post("/uploads", headers=headers, content=self._body(body, 0))
        )
        upload_id: str = answer.json()["id"]
        return upload_id

    async def until_all_are_refused(self, names: set[str]) -> None:
        async with self.moved:
            await self.moved.wait_for(lambda: set(self.refused) >= names)

    async def _body(self, data: bytes, start: int) -> AsyncIterator[bytes]:
        for at in range(start, len(data), MIB):
            if at >= SIZE // 2:
                await self.away.wait()
            yield data[at : at + MIB]

    async def _try(self, name: str, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        while True:
            # Cut off is who sends on for seconds after it was refused, as on a machine that is busy.
            with suppress(httpx.TransportError):
                answer = await send()
                if answer.is_success:
                    return answer
                await self._told_to_wait(name, answer)

    async def _told_to_wait(self, name: str, answer: httpx.Response) -> None:
        assert answer.status_code == 503, (name, answer.status_code, answer.text)
        async with self.moved:
            self.refused[name] += 1
            self.moved.notify_all()
        await asyncio.sleep(int(answer.headers["retry-after"]))


@pytest.mark.soak
@pytest.mark.parametrize("what", ["database", "storage"])
async def test_what_is_away_for_a_while_costs_a_client_that_comes_again_nothing(
    what: str, place: Place
) -> None:
    """
    Setup: two tus uploads and two forms, each half way.
    Do: take the database, or S3, away; bring it back when all of them have been refused.
    Expect: 503 with Retry-After; then all four are stored whole, and nothing else is left.
    """
    contents = {name: os.urandom(SIZE) for name in ("tus-1", "tus-2", "form-1", "form-2")}
    async with httpx.AsyncClient(base_url=place.server.url, timeout=60) as http, asyncio.timeout(240):
        clients = Clients(http)
        async with asyncio.TaskGroup() as group:
            sending = {
                name: group.create_task((clients.tus if name.startswith("tus") else clients.form)(name, data))
                for name, data in contents.items()
            }
            half_way = f"SELECT count(*) AS n FROM upload WHERE size >= {8 * MIB}"
            await place.until_none(f"SELECT n FROM ({half_way}) AS seen WHERE n < 4")
            async with place.without(what):
                clients.away.set()
                await clients.until_all_are_refused(set(contents))
                await asyncio.sleep(SECONDS)  # what is tested, not a wait for anything
        expected = {
            task.result(): hashlib.sha256(contents[name]).hexdigest() for name, task in sending.items()
        }
        await place.until_none("SELECT id FROM job WHERE state <> 'done'")

        # What could not be removed is the sweep's, in good time; it does not have to wait for that here.
        left = "id NOT IN (SELECT upload_id FROM upload_log)"
        assert not await place.ask(
            f"SELECT id FROM upload WHERE {left} AND expires_at > now() + interval '301 seconds'"
        )
        await place.ask(f"UPDATE upload SET expires_at = now() WHERE {left}")
        await place.until_none(f"SELECT id FROM upload WHERE {left}")
    stored = {row["id"]: row["sha256"] for row in await place.ask("SELECT id, sha256 FROM upload")}
    assert stored == expected
    logged = [row["upload_id"] for row in await place.ask("SELECT upload_id FROM upload_log")]
    assert sorted(logged) == sorted(expected)
    wait_until(
        lambda: sorted(key.split("/")[-1].partition(".")[0] for key in place.kept()) == sorted(expected),
        within=30,
        what="nothing but the four files to be kept",
    )
