"""`bongsu jobs`: what an operator sees of the background jobs, and does with the dead ones."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col
from typer.testing import CliRunner, Result

from bongsu.cli import app
from bongsu.db.migrate import migrate
from bongsu.db.models import Job
from bongsu.db.session import Database
from bongsu.jobs.application import Jobs
from bongsu.jobs.queue import Queue


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["jobs", *args])


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two dead jobs and one that waits."""
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    monkeypatch.setenv("BONGSU_DATABASE_URL", url)

    async def make() -> list[str]:
        await migrate(url)
        database = Database(url)
        jobs = Jobs(database, Queue(database, "r1"))
        async with database.transaction() as session:
            ids = [str(await jobs.enqueue(session, name)) for name in ("first", "second", "third")]
            dead = update(Job).where(col(Job.id).in_(ids[:2]))
            await session.execute(dead.values(state="dead", last_error="RuntimeError: [bold]no luck"))
        await database.stop()
        return ids

    return asyncio.run(make())


def states() -> dict[str, Any]:
    return {job["id"]: job["state"] for job in json.loads(run("list", "--json").stdout)["jobs"]}


def test_list_shows_what_waits_and_what_is_dead(ids: list[str]) -> None:
    lines = run("list").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [ids[0], "app:first", "dead"],
        [ids[1], "app:second", "dead"],
        [ids[2], "app:third", "queued"],
    ]
    assert "RuntimeError: [bold]no" in lines[1]
    assert "\x1b" not in lines[1]
    assert len(run("list", "--state", "dead").stdout.splitlines()) == 3
    assert len(run("list", "--limit", "1").stdout.splitlines()) == 2
    assert run("list", "--state", "running").stdout == "no such jobs\n"
    shown = json.loads(run("list", "--json").stdout)["jobs"][0]
    assert (shown["kind"], shown["last_error"]) == ("app:first", "RuntimeError: [bold]no luck")


def test_retry_brings_dead_jobs_back_by_id_or_all(ids: list[str]) -> None:
    one = run("retry", ids[0])
    assert (one.exit_code, one.stdout) == (0, f"retried {ids[0]}\n")
    assert states() == {ids[0]: "queued", ids[1]: "dead", ids[2]: "queued"}
    rest = run("retry", "--all", "--json")
    assert json.loads(rest.stdout) == {"retried": [ids[1]], "unknown": []}
    assert run("retry", "--all").stdout == "nothing to do: no job is dead\n"


def test_retry_says_which_ids_are_none_of_dead_jobs(ids: list[str]) -> None:
    result = run("retry", ids[0], ids[2], "nonsense")
    assert result.exit_code == 1
    assert f"retried {ids[0]}" in result.stdout
    assert f"{ids[2]}, nonsense" in result.stderr


@pytest.mark.parametrize("args", [(), ("--all", "some-id")])
def test_retry_wants_ids_or_all(ids: list[str], args: tuple[str, ...]) -> None:
    result = run("retry", *args)
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_drop_deletes_dead_jobs_only(ids: list[str]) -> None:
    result = run("drop", ids[0], ids[2], "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"dropped": [ids[0]], "unknown": [ids[2]]}
    assert states() == {ids[1]: "dead", ids[2]: "queued"}


def test_a_database_without_tables_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BONGSU_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/x.db")
    result = run("list")
    assert result.exit_code == 1
    assert "run `bongsu migrate`" in result.stderr
