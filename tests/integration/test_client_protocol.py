"""The client protocol on the shipped command: one replica, and two over Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.servers import API_KEY, RedisServer, RunningServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bongsu.auth import sign_connection_token

DEADLINE = 20.0

CHANNELS = {
    "PRESENCE": "true",
    "JOIN_LEAVE": "true",
    "FORCE_PUSH_JOIN_LEAVE": "true",
    "HISTORY_SIZE": "100",
    "HISTORY_TTL": "300s",
    "FORCE_RECOVERY": "true",
    "ALLOWED_DELTA_TYPES": '["fossil"]',
    "DELTA_PUBLISH": "true",
    "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
    "ALLOW_PUBLISH_FOR_SUBSCRIBER": "true",
    "ALLOW_PUBLISH_FOR_ANONYMOUS": "true",
    "ALLOW_PRESENCE_FOR_SUBSCRIBER": "true",
    "ALLOW_PRESENCE_FOR_ANONYMOUS": "true",
    "ALLOW_HISTORY_FOR_SUBSCRIBER": "true",
    "ALLOW_HISTORY_FOR_ANONYMOUS": "true",
}
ENV = {
    **{f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": value for name, value in CHANNELS.items()},
    "BONGSU_CHANNELS__NAMESPACES__small__HISTORY_SIZE": "2",
    "BONGSU_CHANNELS__NAMESPACES__small__HISTORY_TTL": "300s",
    "BONGSU_CHANNELS__NAMESPACES__small__FORCE_RECOVERY": "true",
    "BONGSU_CHANNELS__NAMESPACES__small__ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "BONGSU_CHANNELS__NAMESPACES__small__ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
}

Start = Callable[..., RunningServer]


class Client:
    """A client of the JSON protocol that answers pings and keeps pushes apart from replies."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._id = 0
        self._waiting: list[dict[str, Any]] = []
        self.pushes: list[dict[str, Any]] = []
        self.id = ""

    async def _next(self) -> dict[str, Any]:
        while not self._waiting:
            async with asyncio.timeout(DEADLINE):
                frame = await self._socket.recv()
            self._waiting = [json.loads(line) for line in str(frame).split("\n")]
        message: dict[str, Any] = self._waiting.pop(0)
        return message

    async def _read(self) -> dict[str, Any]:
        message = await self._next()
        if not message:
            await self._socket.send("{}")
        elif "push" in message:
            self.pushes.append(message["push"])
        return message

    async def ask(self, *commands: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """All in one frame; their replies."""
        ids = range(self._id + 1, self._id + 1 + len(commands))
        self._id += len(commands)
        frame = [
            json.dumps({"id": id, method: request})
            for id, (method, request) in zip(ids, commands, strict=True)
        ]
        await self._socket.send("\n".join(frame))
        replies: list[dict[str, Any]] = []
        while len(replies) < len(commands):
            if (reply := await self._read()).get("id") in ids:
                replies.append(reply)
        return replies

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        [reply] = await self.ask((method, request))
        if "error" in reply:
            return {"error": reply["error"]["code"]}
        result: dict[str, Any] = reply[method]
        return result

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first push that is `wanted`, past or to come; it is taken out."""
        while True:
            for push in self.pushes:
                if wanted(push):
                    self.pushes.remove(push)
                    return push
            await self._read()

    async def publication(self, channel: str) -> dict[str, Any]:
        push = await self.until(lambda push: push["channel"] == channel and "pub" in push)
        publication: dict[str, Any] = push["pub"]
        return publication


@asynccontextmanager
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with connect(f"{server.ws_url}/connection/websocket") as socket:
        client = Client(socket)
        client.id = (await client.call("connect", name="test"))["client"]
        yield client


def publish(server: RunningServer, channel: str, data: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}/api/publish", json={"channel": channel, "data": data}, headers={"X-API-Key": API_KEY}
    )
    result: dict[str, Any] = answer.json()["result"]
    return result


@pytest.fixture(params=["memory", "redis"])
def pair(request: pytest.FixtureRequest, bongsu_server: Start) -> tuple[RunningServer, RunningServer]:
    """Two replicas on Redis, or twice the one in memory."""
    if request.param == "memory":
        server = bongsu_server(**ENV)
        return server, server
    redis: RedisServer = request.getfixturevalue("redis_server")
    return (
        bongsu_server(**ENV, BONGSU_BROKER_URL=redis.url),
        bongsu_server(**ENV, BONGSU_BROKER_URL=redis.url),
    )


async def test_a_publication_on_one_replica_reaches_subscribers_of_another(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    one, two = pair
    async with client(one) as a, client(two) as b:
        for each in (a, b):
            result = await each.call("subscribe", channel="chat")
            assert result["recoverable"]
            assert result["positioned"]
        assert await a.call("publish", channel="chat", data={"text": "안녕"}) == {}
        for each in (a, b):
            publication = await each.publication("chat")
            assert (publication["data"], publication["offset"]) == ({"text": "안녕"}, 1)
            assert publication["info"]["client"] == a.id
        assert await asyncio.to_thread(publish, two, "chat", 2) | {"epoch": ""} == {"offset": 2, "epoch": ""}
        for each in (a, b):
            assert (await each.publication("chat"))["data"] == 2
        page = await b.call("history", channel="chat", limit=10)
        assert [publication["offset"] for publication in page["publications"]] == [1, 2]


async def test_who_is_present_is_told_on_both_replicas_with_joins_and_leaves(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    one, two = pair
    async with client(one) as a:
        await a.call("subscribe", channel="room")
        await a.until(lambda push: push.get("join", {}).get("info", {}).get("client") == a.id)
        async with client(two) as b:
            await b.call("subscribe", channel="room")
            await a.until(lambda push: push.get("join", {}).get("info", {}).get("client") == b.id)
            assert set((await b.call("presence", channel="room"))["presence"]) == {a.id, b.id}
            stats = await a.call("presence_stats", channel="room")
            assert stats == {"num_clients": 2, "num_users": 1}
        await a.until(lambda push: push.get("leave", {}).get("info", {}).get("client") == b.id)
        assert set((await a.call("presence", channel="room"))["presence"]) == {a.id}


async def test_who_comes_back_gets_what_was_missed_once_and_in_order(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    one, two = pair
    async with client(one) as a:
        begun = await a.call("subscribe", channel="news")
    for number in range(1, 6):
        await asyncio.to_thread(publish, one, "news", number)
    async with client(two) as b:
        back = await b.call("subscribe", channel="news", recover=True, epoch=begun["epoch"])
        assert (back["recovered"], back["was_recovering"]) == (True, True)
        assert [one["data"] for one in back["publications"]] == [1, 2, 3, 4, 5]
        await asyncio.to_thread(publish, one, "news", 6)
        assert (await b.publication("news"))["offset"] == 6


async def test_what_is_not_kept_any_more_is_not_recovered_and_said_so(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    one, two = pair
    async with client(one) as a:
        begun = await a.call("subscribe", channel="small:x")
        for number in range(1, 4):
            await asyncio.to_thread(publish, two, "small:x", number)
        lost = {"channel": "small:x", "recover": True, "epoch": begun["epoch"]}
        await a.call("unsubscribe", channel="small:x")
        back = await a.call("subscribe", **lost)
        assert "recovered" not in back
        assert (back["was_recovering"], back["offset"]) == (True, 3)
        await a.call("unsubscribe", channel="small:x")
        assert await a.call("subscribe", **lost, flag=2) == {"error": 112}
        back = await a.call("subscribe", **(lost | {"offset": 1}))
        assert [one["data"] for one in back["publications"]] == [2, 3]
        await a.call("unsubscribe", channel="small:x")
        wrong = await a.call("subscribe", channel="small:x", recover=True, offset=3, epoch="_")
        assert "recovered" not in wrong


async def test_a_replica_that_dies_takes_its_members_with_it(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    one = bongsu_server(**ENV, BONGSU_BROKER_URL=redis_server.url)
    two = bongsu_server(**ENV, BONGSU_BROKER_URL=redis_server.url)
    async with client(two) as witness:
        await witness.call("subscribe", channel="room")
        with pytest.raises(ConnectionClosed):  # noqa: PT012  # its replica dies in the middle of it
            async with client(one) as doomed:
                await doomed.call("subscribe", channel="room")
                await witness.until(
                    lambda push: push.get("join", {}).get("info", {}).get("client") == doomed.id
                )
                one.kill()
                await doomed.call("presence", channel="room")
        await witness.until(lambda push: push.get("leave", {}).get("info", {}).get("client") == doomed.id)
        assert set((await witness.call("presence", channel="room"))["presence"]) == {witness.id}


async def test_a_redis_that_was_away_costs_no_publication_of_those_that_were_kept(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    """Redis comes back empty: the stream is another one, and the subscriber is told so, not fooled."""
    server = bongsu_server(**ENV, BONGSU_BROKER_URL=redis_server.url)
    async with client(server) as a:
        begun = await a.call("subscribe", channel="chat")
        await asyncio.to_thread(publish, server, "chat", 1)
        assert (await a.publication("chat"))["offset"] == 1
        redis_server.kill()
        redis_server.start()
        push = await a.until(lambda push: push["channel"] == "chat" and "unsubscribe" in push)
        assert push["unsubscribe"]["code"] == 2500
        back = await a.call("subscribe", channel="chat", recover=True, offset=1, epoch=begun["epoch"])
        assert "recovered" not in back
        assert back["epoch"] != begun["epoch"]
        while (
            "result"
            not in httpx.post(  # noqa: ASYNC210  # nothing else is to be read meanwhile
                f"{server.url}/api/publish",
                json={"channel": "chat", "data": 2},
                headers={"X-API-Key": API_KEY},
            ).json()
        ):
            pass
        assert (await a.publication("chat"))["data"] == 2


async def test_recovery_asked_for_where_nothing_is_kept_is_answered_as_not_recovered(
    bongsu_server: Start,
) -> None:
    """`was_recovering` was missing: a client took it for its first subscription, and kept stale state."""
    open_to_all = {"ALLOW_SUBSCRIBE_FOR_CLIENT": "true", "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true"}
    server = bongsu_server(
        **{f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": value for name, value in open_to_all.items()}
    )
    async with client(server) as a:
        asked = await a.call("subscribe", channel="now", recover=True, epoch="xQmZTbAh", offset=3)
        assert asked == {"was_recovering": True}
        assert await a.call("subscribe", channel="later") == {}


BROKEN = [
    ('{"id":1,"subscribe":{"channel":"chat"}}', 3501),
    ("not json", 3501),
    ("", 3501),
    ('{"id":1,"connect":{"token":"wrong"}}', 3500),
]


@pytest.mark.parametrize(("frame", "code"), BROKEN)
async def test_a_client_that_breaks_the_protocol_is_closed_with_its_code(
    bongsu_server: Start, frame: str, code: int
) -> None:
    server = bongsu_server(**ENV)
    async with connect(f"{server.ws_url}/connection/websocket") as socket:
        await socket.send(frame)
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(DEADLINE):
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert closed.value.rcvd.reason


DELTAS: dict[str, Any] = {"recover": True, "delta": "fossil"}
ASKING: dict[str, tuple[str, dict[str, Any]]] = {
    "subscribe": ("subscribe", {"channel": "bin", **DELTAS}),
    "subscribe without delta": ("subscribe", {"channel": "bin", "recover": True}),
    "connect": ("connect", {"subs": {"bin": DELTAS}}),
}


@pytest.mark.parametrize("asked", ASKING)
async def test_a_client_of_json_that_asks_for_bytes_is_told_that_it_is_the_wrong_protocol(
    bongsu_server: Start, asked: str
) -> None:
    """Recovered as deltas they were 3004, a temporary end: the client came back for them for ever."""
    server = bongsu_server(**ENV)
    await asyncio.to_thread(call, server, "publish", channel="bin", b64data="//4=")
    method, request = ASKING[asked]
    async with connect(f"{server.ws_url}/connection/websocket") as socket:
        client = Client(socket)
        if method != "connect":
            await client.call("connect")
        with pytest.raises(ConnectionClosed) as closed:
            await client.call(method, **request)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3506, "inappropriate protocol")


async def test_a_token_that_names_an_unknown_namespace_is_an_error_reply(bongsu_server: Start) -> None:
    secret = "a secret of at least thirty-two bytes"
    server = bongsu_server(**ENV, BONGSU_TOKEN__HMAC_SECRET=secret)
    token = sign_connection_token(secret, user="42", now=time.time(), ttl=60, channels=["nowhere:x"])
    async with connect(f"{server.ws_url}/connection/websocket") as socket:
        assert await Client(socket).call("connect", token=token) == {"error": 102}


def call(server: RunningServer, method: str, **request: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}/api/{method}", json=request, headers={"X-API-Key": API_KEY}, timeout=DEADLINE
    )
    result: dict[str, Any] = answer.json()["result"]
    return result


async def test_a_backend_reaches_connections_wherever_they_are(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    one, two = pair
    async with client(one) as a:
        assert await asyncio.to_thread(call, two, "subscribe", user="", client=a.id, channel="given") == {}
        push = await a.until(lambda push: push["channel"] == "given" and "subscribe" in push)
        assert push["subscribe"]["positioned"]
        await asyncio.to_thread(publish, two, "given", 1)
        assert (await a.publication("given"))["offset"] == 1
        await a.call("subscribe", channel="own")
        channels = (await asyncio.to_thread(call, two, "channels"))["channels"]
        assert channels == {"given": {"num_clients": 1}, "own": {"num_clients": 1}}
        assert (await asyncio.to_thread(call, two, "channels", pattern="g*"))["channels"].keys() == {"given"}
        nodes = (await asyncio.to_thread(call, two, "info"))["nodes"]
        assert sum(node["num_clients"] for node in nodes) == 1
        assert len(nodes) == len({one.url, two.url})
        await asyncio.to_thread(call, two, "unsubscribe", user="", client=a.id, channel="own")
        push = await a.until(lambda push: push["channel"] == "own" and "unsubscribe" in push)
        assert push["unsubscribe"]["code"] == 2000
        ends = int(time.time()) + 100
        await asyncio.to_thread(call, two, "refresh", user="", client=a.id, expire_at=ends)
        assert (await a.until(lambda push: "refresh" in push))["refresh"]["expires"]
        await asyncio.to_thread(
            call, two, "disconnect", user="", client=a.id, disconnect={"code": 4500, "reason": "banned"}
        )
        with pytest.raises(ConnectionClosed) as closed:
            await a.until(lambda _: False)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4500, "banned")


async def test_after_a_publication_beside_the_stream_the_next_is_no_patch(bongsu_server: Start) -> None:
    """SDKs patch what they got last: a patch to the stream's last publication would end them."""
    server = bongsu_server(**ENV)
    text = "the same words in every publication, so that a patch is worth it"

    async with client(server) as a:
        await a.call("subscribe", channel="news", delta="fossil")
        patched = []
        for number, beside in enumerate([False, False, True, False, False]):
            data = {"text": text, "number": number}
            await asyncio.to_thread(call, server, "publish", channel="news", data=data, skip_history=beside)
            patched.append((await a.publication("news")).get("delta", False))
    assert patched == [False, True, False, False, True]


async def test_what_was_removed_from_a_history_is_recovered_from_no_replica(
    pair: tuple[RunningServer, RunningServer],
) -> None:
    """Each replica keeps the newest publications of its live channels: they must go with the history."""
    one, two = pair
    async with client(one) as a, client(two) as b:
        epoch = (await a.call("subscribe", channel="news"))["epoch"]
        await b.call("subscribe", channel="news")
        for number in range(3):
            await asyncio.to_thread(publish, one, "news", number)
        for each in (a, b):
            await each.until(lambda push: push.get("pub", {}).get("offset") == 3)
        await asyncio.to_thread(call, two, "history_remove", channel="news")
        position = {"channel": "news", "recover": True, "epoch": epoch, "offset": 1}
        for server in pair:
            async with client(server) as late, asyncio.timeout(DEADLINE):
                # The other replica hears of it a moment later.
                while "recovered" in await late.call("subscribe", **position):
                    await late.call("unsubscribe", channel="news")
                assert (await late.call("history", channel="news"))["offset"] == 3


async def test_what_has_expired_is_not_recovered_though_somebody_is_still_there(bongsu_server: Start) -> None:
    brief = {**CHANNELS, "HISTORY_TTL": "500ms"}
    server = bongsu_server(
        **{f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name}": value for name, value in brief.items()}
    )
    async with client(server) as here, client(server) as late:
        epoch = (await here.call("subscribe", channel="news"))["epoch"]
        for number in range(3):
            await asyncio.to_thread(publish, server, "news", number)
        async with asyncio.timeout(DEADLINE):
            while (await asyncio.to_thread(call, server, "history", channel="news", limit=9))["publications"]:
                pass
        reply = await late.call("subscribe", channel="news", recover=True, epoch=epoch, offset=1)
        assert "recovered" not in reply
        await late.call("unsubscribe", channel="news")
        reply = await late.call("subscribe", channel="news", recover=True, epoch=epoch, offset=3)
        assert reply["recovered"]


async def test_a_frame_for_a_stream_is_taken_by_any_replica(
    bongsu_server: Start, redis_server: RedisServer
) -> None:
    env = {**ENV, "BONGSU_BROKER_URL": redis_server.url, "BONGSU_HTTP_STREAM__ENABLED": "true"}
    one, two = bongsu_server(**env), bongsu_server(**env)
    async with httpx.AsyncClient(timeout=DEADLINE) as http:
        connect_frame = '{"id":1,"connect":{}}'
        async with http.stream("POST", f"{one.url}/connection/http_stream", content=connect_frame) as stream:
            lines = stream.aiter_lines()
            result = json.loads(await anext(lines))["connect"]
            frame = {
                "session": result["session"],
                "node": result["node"],
                "data": '{"id":2,"subscribe":{"channel":"chat"}}',
            }
            taken = await http.post(f"{two.url}/emulation", json=frame)
            assert taken.status_code == 204
            while "subscribe" not in (message := json.loads(await anext(lines))):
                pass
            assert message["id"] == 2
