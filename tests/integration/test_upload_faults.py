"""Uploads while what they need goes away: the database restarts, the replica is killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.uploading import serving
from tests.servers import PostgresServer, RunningServer, wait_until


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that this test may stop."""
    home = Path(tempfile.mkdtemp(prefix="bongsu-postgres-"))
    server = PostgresServer(home, password_file=home / "password", volatile=True)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


async def test_while_the_database_is_away_uploads_are_refused_for_now_and_work_again_after(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    own_postgres.create_database("uploads")
    async with (
        serving(own_postgres.url("uploads"), tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        before = (await client.post("/uploads", files={"file": ("a", b"before")})).json()["id"]
        await server.stored(before)

        await asyncio.to_thread(own_postgres.kill)
        for response in (
            await client.post("/uploads", files={"file": ("a", b"meanwhile")}),
            await client.get("/uploads"),
            await client.get(f"/uploads/{before}/content"),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
            assert int(response.headers["retry-after"]) > 0
        assert len(server.kept_files()) == 1

        await asyncio.to_thread(own_postgres.start)
        after = (await client.post("/uploads", files={"file": ("a", b"after")})).json()["id"]
        await server.stored(after)
        assert server.worker.alive
        listed = (await client.get("/uploads")).json()["uploads"]
        assert [upload["id"] for upload in listed] == [after, before]


def test_what_was_acknowledged_is_stored_once_though_the_server_is_killed_each_time(
    bongsu_server: Callable[..., RunningServer],
) -> None:
    """
    Setup: the shipped command; uploads one after the other.
    Do: `kill -9` at the moment an upload has been acknowledged, then start it again, several times.
    Expect: each one is stored with its hash, and nothing else is in the storage.
    """
    server = bongsu_server(BONGSU_UPLOAD__JOB_LEASE="1", BONGSU_UPLOAD__JOB_POLL="0.2")
    expected: dict[str, str] = {}
    for _ in range(4):
        content = os.urandom(3_000_000)
        answer = httpx.post(f"{server.url}/upload-file/", files={"file": ("a", content)}, timeout=30)
        server.kill()
        expected[answer.json()["id"]] = hashlib.sha256(content).hexdigest()
        server.start()

    def hashes() -> dict[str, str]:
        uploads = httpx.get(f"{server.url}/uploads", timeout=30).json()["uploads"]
        return {upload["id"]: upload["sha256"] for upload in uploads if upload["state"] == "stored"}

    wait_until(lambda: hashes() == expected, within=60, what="all uploads to be stored")

    def kept() -> set[str]:
        storage = server.directory / "storage"
        return {path.name.partition(".")[0] for path in storage.rglob("objects/*/*")}

    assert kept() == set(expected)
