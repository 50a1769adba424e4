"""Servers on one SQLite file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.servers import RedisServer, RunningServer

WARNING = "neither hears the other's events"


def test_a_second_server_without_a_broker_says_that_it_hears_nothing_of_the_first(
    bongsu_server: Callable[..., RunningServer], redis_server: RedisServer, tmp_path: Path
) -> None:
    """
    Setup: a server with a broker in memory, a second one on its database, as of `make run` in two terminals.
    Expect: the second one says what is lost and what to set; one with a Redis says nothing; nor does the
    first one when it is started again after `kill -9` and the second one is gone.
    """
    url = f"sqlite+aiosqlite:///{tmp_path}/shared.sqlite"
    first = bongsu_server(BONGSU_DATABASE_URL=url)
    second = bongsu_server(BONGSU_DATABASE_URL=url)
    assert WARNING in second.log()
    assert "BONGSU_BROKER_URL" in second.log()
    second.stop()
    assert WARNING not in bongsu_server(BONGSU_DATABASE_URL=url, BONGSU_BROKER_URL=redis_server.url).log()
    first.kill()
    first.start()
    assert WARNING not in first.log()
