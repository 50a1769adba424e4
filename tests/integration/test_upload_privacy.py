"""Outside development an upload is its owner's: nobody else reads it, lists it, or hears of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.servers import API_KEY, RunningServer
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bongsu.auth import sign_connection_token, sign_subscription_token

SECRET = "a-secret-of-the-tests-that-is-long-enough"
KEY = {"x-api-key": API_KEY}


def token(user: str) -> str:
    return sign_connection_token(SECRET, user=user, now=time.time(), ttl=3600)


def bearer(user: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user)}"}


@pytest.fixture
def server(bongsu_server: Callable[..., RunningServer]) -> RunningServer:
    return bongsu_server(dev=False, BONGSU_TOKEN__HMAC_SECRET=SECRET)


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def upload(http: httpx.Client, headers: dict[str, str]) -> str:
    answer = http.post("/uploads", files={"file": ("a.txt", b"content")}, headers=headers)
    assert answer.status_code == 202, answer.text
    upload_id: str = answer.json()["id"]
    return upload_id


def until_stored(http: httpx.Client, upload_id: str) -> None:
    deadline = time.monotonic() + 30
    while http.get(f"/uploads/{upload_id}", headers=KEY).json()["state"] != "stored":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listed(http: httpx.Client, headers: dict[str, str]) -> list[str]:
    return [each["id"] for each in http.get("/uploads", headers=headers).json()["uploads"]]


def test_only_its_owner_and_the_api_key_read_an_upload(http: httpx.Client) -> None:
    ann, nobody, key = upload(http, bearer("ann")), upload(http, bearer("")), upload(http, KEY)
    until_stored(http, ann)
    table = [
        (ann, bearer("ann"), 200),
        (ann, bearer("bob"), 403),
        (ann, bearer(""), 403),
        (ann, KEY, 200),
        (nobody, bearer(""), 200),
        (nobody, bearer("ann"), 403),
        (key, bearer("ann"), 403),
        (key, bearer(""), 403),
        (key, KEY, 200),
    ]
    for upload_id, headers, status in table:
        assert http.get(f"/uploads/{upload_id}", headers=headers).status_code == status
    for path in (f"/uploads/{ann}/content", f"/files/{ann}"):
        assert http.get(path, headers=bearer("ann")).content == b"content"
        refused = http.get(path, headers=bearer("bob"))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert listed(http, bearer("ann")) == [ann]
    assert listed(http, bearer("bob")) == []
    assert listed(http, bearer("")) == []
    assert listed(http, KEY) == [key, nobody, ann]


class Line:
    """One connection of the client protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._id = 0
        self.pushes: list[dict[str, Any]] = []

    async def ask(self, **command: Any) -> dict[str, Any]:
        self._id += 1
        await self._socket.send(json.dumps({"id": self._id, **command}))
        while True:
            for reply in await self._read():
                if reply.get("id") == self._id:
                    return reply
                self._keep(reply)

    async def until_state(self, state: str) -> None:
        while not any(
            push["pub"]["data"]["upload"].get("state") == state for push in self.pushes if "pub" in push
        ):
            for reply in await self._read():
                self._keep(reply)

    def _keep(self, reply: dict[str, Any]) -> None:
        if "push" in reply:
            self.pushes.append(reply["push"])

    async def _read(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            return [json.loads(line) for line in (await self._socket.recv()).splitlines()]


async def test_only_its_owner_hears_of_an_upload_and_what_it_missed_comes_after(
    server: RunningServer, http: httpx.Client
) -> None:
    upload_id = await asyncio.to_thread(upload, http, bearer("ann"))
    await asyncio.to_thread(until_stored, http, upload_id)
    channel = f"uploads:{upload_id}"
    for user, code in (("bob", 103), ("", 103), ("ann", None)):
        async with connect(f"{server.ws_url}/connection/websocket") as socket:
            line = Line(socket)
            assert "error" not in await line.ask(connect={"token": token(user)})
            reply = await line.ask(subscribe={"channel": channel, "recover": True})
            assert reply.get("error", {}).get("code") == code, (user, reply)
            feed = await line.ask(subscribe={"channel": "uploads:feed"})
            assert feed["error"]["code"] == 103
            if user == "ann":
                events = [each["data"]["upload"] for each in reply["subscribe"]["publications"]]
                assert [event["state"] for event in events][-1] == "stored"
                for unknown in ("uploads:" + "0" * 32, "uploads:nonsense", f"${channel}"):
                    refused = await line.ask(subscribe={"channel": unknown})
                    assert refused["error"]["code"] == 103


async def test_the_feed_takes_a_subscription_token(server: RunningServer, http: httpx.Client) -> None:
    given = sign_subscription_token(SECRET, user="admin", channel="uploads:feed", now=time.time(), ttl=60)
    async with connect(f"{server.ws_url}/connection/websocket") as socket:
        line = Line(socket)
        await line.ask(connect={"token": token("admin")})
        reply = await line.ask(subscribe={"channel": "uploads:feed", "token": given})
        assert reply["subscribe"]["recoverable"]
        await asyncio.to_thread(upload, http, bearer("ann"))
        await line.until_state("stored")


async def test_plain_sockets_obey_the_same_rule(server: RunningServer, http: httpx.Client) -> None:
    upload_id = await asyncio.to_thread(upload, http, bearer("ann"))
    for path, headers, allowed in (
        (f"/ws/uploads:{upload_id}", bearer("ann"), True),
        (f"/ws/uploads:{upload_id}", bearer("bob"), False),
        ("/ws/uploads:feed", bearer("ann"), False),
        ("/ws/uploads:feed", KEY, True),
    ):
        if allowed:
            async with connect(server.ws_url + path, additional_headers=headers):
                pass
            continue
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.ws_url + path, additional_headers=headers)
        assert refused.value.response.status_code == 403
