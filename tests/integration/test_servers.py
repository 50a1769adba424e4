"""The servers that all other tests stand on do what their fixtures promise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
from tests.servers import PostgresServer, RedisServer, RunningServer, StartError, answers


def _dsn(url: str) -> str:
    return url.replace("+asyncpg", "")


async def test_redis_comes_back_empty_on_the_same_port_after_a_kill(redis_server: RedisServer) -> None:
    url = redis_server.url
    async with redis.asyncio.from_url(url) as client:
        await client.set("beacon", "lit")
    redis_server.kill()
    async with redis.asyncio.from_url(url) as client:
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.ping()
    redis_server.start()
    assert redis_server.url == url
    async with redis.asyncio.from_url(url) as client:
        assert await client.get("beacon") is None


async def test_each_test_gets_an_empty_database(postgres_url: str) -> None:
    connection = await asyncpg.connect(_dsn(postgres_url))
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    finally:
        await connection.close()


async def test_postgres_keeps_committed_rows_over_a_kill_with_a_session_open(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    connection = await asyncpg.connect(_dsn(postgres_url))
    await connection.execute(
        "create table beacon (hill text); insert into beacon values ('Namsan'); checkpoint"
    )
    postgres_server.kill()
    postgres_server.start()
    connection.terminate()
    connection = await asyncpg.connect(_dsn(postgres_url))
    try:
        assert await connection.fetchval("select hill from beacon") == "Namsan"
    finally:
        await connection.close()


def test_a_data_directory_that_somebody_else_put_there_is_refused(tmp_path: Path) -> None:
    """The fallback below /var/tmp has a name that can be guessed; root must not follow a link from there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    home = tmp_path / "home"
    home.symlink_to(theirs)
    server = PostgresServer(home, password_file=tmp_path / "password", volatile=True)
    with pytest.raises(StartError, match="is not ours"):
        server.start()
    assert list(theirs.iterdir()) == []
    assert theirs.stat().st_mode & 0o777 == 0o755


def pipes_and_sockets(server: RunningServer) -> set[str]:
    opened = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{server.pid}/fd")}
    return {name for name in opened if name.startswith(("pipe:", "socket:"))}


def test_a_preloaded_server_is_a_process_of_its_own_and_ends_as_one(
    bongsu_server: Callable[..., RunningServer],
) -> None:
    first, second = bongsu_server(), bongsu_server()
    for server in (first, second):
        assert os.getpgid(server.pid) == server.pid
        assert Path(f"/proc/{server.pid}/cwd").readlink() == server.directory
    assert pipes_and_sockets(first) & pipes_and_sockets(second) == set()
    first.kill()
    assert (first.running, first.exit_code) == (False, -signal.SIGKILL)
    assert not answers(f"{first.url}/livez")
    assert answers(f"{second.url}/livez")
    first.start()
    first.stop()
    assert (first.running, first.exit_code) == (False, 0)


def test_a_preloaded_server_that_cannot_start_says_why(bongsu_server: Callable[..., RunningServer]) -> None:
    with pytest.raises(StartError, match=r"exit status 1(.|\n)*BONGSU_LOG__LEVEL"):
        bongsu_server(BONGSU_LOG__LEVEL="loud")
