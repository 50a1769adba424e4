"""What clients and backends of one replica live through while Redis is dead, frozen, or out of reach.

Every answer here is given while it still is: nothing waits for its return.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from tests.faults import FaultProxy
from tests.integration.test_client_protocol import ENV, Client, client
from tests.servers import API_KEY, RedisServer, RunningServer

DEADLINE = 30.0

FAST = {
    "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
    "ALLOW_PUBLISH_FOR_CLIENT": "true",
    "ALLOW_PUBLISH_FOR_ANONYMOUS": "true",
}
CHANNELS = {
    **ENV,
    **{f"BONGSU_CHANNELS__NAMESPACES__fast__{name}": value for name, value in FAST.items()},
    **{f"BONGSU_CHANNELS__NAMESPACES__all__{name}": value for name, value in FAST.items()},
    "BONGSU_CHANNELS__NAMESPACES__all__LOCAL_WHEN_BROKER_IS_AWAY": "false",
}

TRY_AGAIN = {"code": 100, "message": "internal server error", "temporary": True}
DO_NOT = {"code": 100, "message": "internal server error"}

Start = Callable[..., RunningServer]
Away = Callable[[], AbstractContextManager[None]]


class Path:
    """From one replica to Redis: its address, and how to break it."""

    def __init__(self, url: str, away: Away) -> None:
        self.url = url
        self.away = away


@pytest.fixture(params=["dead", "frozen", "cut off"])
def path(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Path]:
    @contextmanager
    def dead() -> Iterator[None]:
        redis_server.kill()
        yield
        redis_server.start()

    @contextmanager
    def frozen() -> Iterator[None]:
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)

    with FaultProxy(redis_server.port) as proxy:
        ways: dict[str, Away] = {"dead": dead, "frozen": frozen, "cut off": lambda: proxy.away("stall")}
        yield Path(f"redis://127.0.0.1:{proxy.port}/0", ways[request.param])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, timeout=DEADLINE) as http:
        yield http


async def until_broker(http: httpx.AsyncClient, server: RunningServer, state: str) -> None:
    """The replica knows."""
    async with asyncio.timeout(DEADLINE):
        while (await http.get(f"{server.url}/status")).json()["broker"]["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_delivered_here(http: httpx.AsyncClient, server: RunningServer) -> None:
    """It knows that it hears nothing either: before that, nothing may overtake what is still to be heard."""
    async with asyncio.timeout(DEADLINE):
        while True:
            told = await call(http, server, "publish", channel="fast:nobody", data=0)
            if "only subscribers of this replica" in told.get("error", {}).get("message", ""):
                return


async def call(http: httpx.AsyncClient, server: RunningServer, method: str, **request: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await http.post(f"{server.url}/api/{method}", json=request)).json()
    return answer


async def error(client: Client, method: str, **request: Any) -> dict[str, Any]:
    [reply] = await client.ask((method, request))
    found: dict[str, Any] = reply["error"]
    return found


async def test_every_command_is_answered(path: Path, http: httpx.AsyncClient, bongsu_server: Start) -> None:
    """A subscribe waited 10 seconds and ended the connection with 3004; SDKs give up after 5."""
    server = bongsu_server(**CHANNELS, BONGSU_BROKER_URL=path.url)
    await until_broker(http, server, "connected")
    async with client(server) as a:
        assert (await a.call("subscribe", channel="chat"))["recoverable"]
        assert await a.call("publish", channel="chat", data=1) == {}
        assert (await a.publication("chat"))["data"] == 1
        with path.away():
            # The first ones are on their way before anybody knows.
            publish, subscribe = await a.ask(
                ("publish", {"channel": "chat", "data": 2}), ("subscribe", {"channel": "other"})
            )
            assert publish["error"] in (DO_NOT, TRY_AGAIN)
            assert subscribe["error"] == TRY_AGAIN
            await until_broker(http, server, "connecting")
            assert await error(a, "publish", channel="chat", data=3) == TRY_AGAIN
            many = await a.ask(*[("subscribe", {"channel": f"{number}"}) for number in range(100)])
            assert [reply["error"] for reply in many] == [TRY_AGAIN] * 100
            assert await error(a, "presence", channel="chat") == TRY_AGAIN
            assert await error(a, "presence_stats", channel="chat") == TRY_AGAIN
            assert await error(a, "history", channel="chat", limit=1) == TRY_AGAIN
            assert await a.call("unsubscribe", channel="other") == {}
            async with client(server) as b:
                assert await error(b, "subscribe", channel="chat") == TRY_AGAIN
            for method in ("publish", "history", "presence", "presence_stats", "history_remove"):
                answer = await call(http, server, method, channel="chat", data=4)
                assert answer["error"]["code"] == 100
            for method in ("unsubscribe", "disconnect", "refresh"):
                answer = await call(http, server, method, user="nobody", channel="chat")
                assert answer["error"]["code"] == 100
            assert (await call(http, server, "info"))["result"]["nodes"]
        await until_broker(http, server, "connected")
        async with client(server) as b:
            assert (await b.call("subscribe", channel="chat"))["recoverable"]
            assert await b.call("publish", channel="chat", data=5) == {}
            assert (await b.publication("chat"))["data"] == 5
            # A Redis that was started again has forgotten the stream: who followed it subscribes again.
            forgot = {"code": 2500, "reason": "insufficient state"}
            await a.until(
                lambda push: push.get("pub", {}).get("data") == 5 or push.get("unsubscribe") == forgot
            )


async def test_subscribers_here_hear_each_other_where_there_is_no_history(
    path: Path, redis_server: RedisServer, http: httpx.AsyncClient, bongsu_server: Start
) -> None:
    """Publishers are told that others did not hear it; afterwards all do, each once and in order."""
    one = bongsu_server(**CHANNELS, BONGSU_BROKER_URL=path.url)
    two = bongsu_server(**CHANNELS, BONGSU_BROKER_URL=redis_server.url)
    for server in (one, two):
        await until_broker(http, server, "connected")
    async with client(one) as a, client(one) as b, client(two) as c:
        for each in (a, b, c):
            for channel in ("fast:1", "all:1"):
                await each.call("subscribe", channel=channel)
        assert await a.call("publish", channel="fast:1", data="before") == {}
        for each in (a, b, c):
            assert (await each.publication("fast:1"))["data"] == "before"
        with path.away():
            await until_delivered_here(http, one)
            for number in range(10):
                assert await error(a, "publish", channel="fast:1", data=number) == DO_NOT
            told = await call(http, one, "publish", channel="fast:1", data=10)
            assert "only subscribers of this replica have it" in told["error"]["message"]
            assert await error(a, "publish", channel="all:1", data="nowhere") == TRY_AGAIN
            # Who gives a key will publish it again, until it is everywhere.
            repeated = {"channel": "fast:1", "data": "repeated", "idempotency_key": "x"}
            told = await call(http, one, "publish", **repeated)
            assert "only subscribers" not in told["error"]["message"]
            assert [(await b.publication("fast:1"))["data"] for _ in range(11)] == list(range(11))
        for server in (one, two):
            await until_broker(http, server, "connected")
        assert "result" in await call(http, one, "publish", **repeated)
        for channel in ("fast:1", "all:1"):
            assert await c.call("publish", channel=channel, data="after") == {}
        for each, meanwhile in ((a, list(range(11))), (b, []), (c, [])):
            expected = [*meanwhile, "repeated", "after"]
            assert [(await each.publication("fast:1"))["data"] for _ in expected] == expected
            assert (await each.publication("all:1"))["data"] == "after"


async def test_subscribers_keep_their_place_and_get_what_they_missed(
    redis_server: RedisServer, http: httpx.AsyncClient, bongsu_server: Start
) -> None:
    """One replica cannot reach Redis, while the other publishes more than two reads of the history hold."""
    history = {
        "BONGSU_CHANNELS__NAMESPACES__long__HISTORY_SIZE": "5000",
        "BONGSU_CHANNELS__NAMESPACES__long__HISTORY_TTL": "300s",
        "BONGSU_CHANNELS__NAMESPACES__long__FORCE_RECOVERY": "true",
        "BONGSU_CHANNELS__NAMESPACES__long__ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
        "BONGSU_CHANNELS__NAMESPACES__long__ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
    }
    with FaultProxy(redis_server.port) as proxy:
        one = bongsu_server(**history, BONGSU_BROKER_URL=f"redis://127.0.0.1:{proxy.port}/0")
        two = bongsu_server(**history, BONGSU_BROKER_URL=redis_server.url)
        for server in (one, two):
            await until_broker(http, server, "connected")
        async with client(one) as a:
            await a.call("subscribe", channel="long:1")
            with proxy.away("stall"):
                await until_broker(http, one, "connecting")
                for first in (0, 600):
                    numbers = range(first, first + 600)
                    commands = [{"publish": {"channel": "long:1", "data": number}} for number in numbers]
                    answer = await call(http, two, "batch", commands=commands)
                    assert all("publish" in reply for reply in answer["replies"])
            heard = [await a.publication("long:1") for _ in range(1200)]
            assert [publication["data"] for publication in heard] == list(range(1200))
            assert a.pushes == []
