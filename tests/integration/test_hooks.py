"""Hooks of the embedding application: no content is served before all of them have said yes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import httpx
import pytest
from tests.integration.uploading import serving
from typer.testing import CliRunner

from bongsu import ReceivedFile, Rejected
from bongsu.cli import app
from bongsu.uploads.hooks import Hooks


async def test_content_is_served_once_every_hook_has_seen_all_of_it(
    database_url: str, tmp_path: Path
) -> None:
    content = os.urandom(2_500_000)
    seen: list[tuple[str, str]] = []
    asked, answer = asyncio.Event(), asyncio.Event()
    async with (
        serving(database_url, tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):

        @server.service.hooks.register("scan")
        async def scan(file: ReceivedFile) -> None:
            digest = hashlib.sha256()
            async for chunk in file.chunks():
                digest.update(chunk)
            seen.append((file.key, digest.hexdigest()))
            assert file.upload.sha256 == digest.hexdigest()
            asked.set()
            await answer.wait()

        @server.service.hooks.register("thumbnail")
        async def thumbnail(file: ReceivedFile) -> None:
            assert await file.read(2_499_990, 100) == content[2_499_990:]
            assert await file.read(2_500_000, 100) == b""
            seen.append((file.key, "thumbnail"))

        response = await client.post("/uploads", files={"file": ("a", content)})
        upload_id = response.json()["id"]
        async with asyncio.timeout(30):
            await asked.wait()
        held = await client.get(f"/uploads/{upload_id}/content")
        assert (held.status_code, held.json()["code"]) == (409, "upload_not_stored")
        answer.set()
        await server.stored(upload_id)
        assert (await client.get(f"/uploads/{upload_id}/content")).content == content
    assert seen == [
        (f"{upload_id}:scan", hashlib.sha256(content).hexdigest()),
        (f"{upload_id}:thumbnail", "thumbnail"),
    ]


async def test_a_hook_that_hangs_is_ended_and_holds_the_upload(database_url: str, tmp_path: Path) -> None:
    ended = asyncio.Event()
    async with (
        serving(database_url, tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):

        @server.service.hooks.register("scan", time_limit=0.05)
        async def scan(file: ReceivedFile) -> None:
            try:
                if not ended.is_set():
                    await asyncio.Event().wait()
            finally:
                ended.set()

        upload_id = (await client.post("/uploads", files={"file": ("a", b"content")})).json()["id"]
        held = await server.until(lambda event: bool(event["upload"].get("error")))
        assert (
            held["upload"]["error"]
            == "Held: the hook “scan” took longer than 0.05 seconds; it is tried again."
        )
        await server.stored(upload_id)


async def test_a_hook_that_fails_holds_the_upload_and_says_so_until_it_passes(
    database_url: str, tmp_path: Path
) -> None:
    """The client is not told what the hook raised: that may hold anything."""
    keys: list[str] = []
    async with (
        serving(database_url, tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):

        @server.service.hooks.register("scan")
        async def scan(file: ReceivedFile) -> None:
            keys.append(file.key)
            if len(keys) == 1:
                raise RuntimeError("secret-host:1234 is away")

        upload_id = (await client.post("/uploads", files={"file": ("a", b"content")})).json()["id"]
        held = await server.until(lambda event: bool(event["upload"].get("error")))
        assert held["upload"]["state"] == "processing"
        assert held["upload"]["error"] == "Held: the hook “scan” failed; it is tried again."
        stored = await server.stored(upload_id)
        assert (stored["error"], stored["attempts"]) == (None, 2)
        assert len(server.kept_files()) == 1
    assert keys == [f"{upload_id}:scan"] * 2


async def test_a_file_that_a_hook_rejects_is_never_served_and_says_why(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):

        @server.service.hooks.register("scan")
        async def scan(file: ReceivedFile) -> None:
            raise Rejected("it holds a virus")

        upload_id = (await client.post("/uploads", files={"file": ("a", b"content")})).json()["id"]
        failed = await server.until(lambda event: event["upload"].get("state") == "failed")
        assert failed["upload"]["error"] == "Rejected: it holds a virus"
        content = await client.get(f"/uploads/{upload_id}/content")
        assert content.status_code == 409
        assert "it holds a virus" in content.json()["detail"]
        deleted = await client.delete(f"/uploads/{upload_id}", headers={"x-who": "key"})
        assert deleted.status_code == 204
        assert server.kept_files() == []


async def test_an_operator_brings_an_upload_back_that_was_given_up(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was received is kept for that: the command changes rows only, and a replica finds the job."""
    monkeypatch.setenv("BONGSU_DATABASE_URL", database_url)
    strict = True
    async with (
        serving(database_url, tmp_path / "files") as server,
        httpx.AsyncClient(base_url=server.url, timeout=30) as client,
    ):

        @server.service.hooks.register("scan")
        async def scan(file: ReceivedFile) -> None:
            if strict:
                raise Rejected("no such thing")

        upload_id = (await client.post("/uploads", files={"file": ("a", b"content")})).json()["id"]
        await server.until(lambda event: event["upload"].get("state") == "failed")
        strict = False
        result = await asyncio.to_thread(CliRunner().invoke, app, ["jobs", "retry", "--all"])
        assert result.exit_code == 0, result.output
        stored = await server.stored(upload_id)
        assert (stored["error"], stored["attempts"]) == (None, 2)
        assert (await client.get(f"/uploads/{upload_id}/content")).content == b"content"
        assert server.states(upload_id)[-3:] == ["failed", "received", "stored"]


@pytest.mark.parametrize("name", ["", "a b", "a" * 61, "검사"])
def test_a_hook_has_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Hooks().register(name)


def test_a_name_of_a_hook_is_used_once() -> None:
    hooks = Hooks()

    @hooks.register("scan")
    async def scan(file: ReceivedFile) -> None:
        pass

    with pytest.raises(ValueError, match="already"):
        hooks.register("scan")
