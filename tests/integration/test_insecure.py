"""`client.insecure`, and the keys of subscription tokens, on the shipped command."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.servers import RunningServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bongsu.auth import sign_connection_token, sign_subscription_token

Start = Callable[..., RunningServer]
DEADLINE = 20.0


def address(server: RunningServer, path: str = "/connection/websocket") -> str:
    return server.url.replace("http://", "ws://") + path


async def ask(socket: ClientConnection, **request: Any) -> dict[str, Any]:
    """The answer to one command, which nothing else may precede here."""
    await socket.send(json.dumps({"id": 1, **request}))
    async with asyncio.timeout(DEADLINE):
        answer: dict[str, Any] = json.loads(await socket.recv())
    return answer


async def test_insecure_lets_anybody_do_everything_but_with_private_channels_and_uploads(
    bongsu_server: Start,
) -> None:
    server = bongsu_server(
        dev=False,
        BONGSU_API_KEY="test-api-key",
        BONGSU_TOKEN__HMAC_SECRET="secret",
        BONGSU_CLIENT__INSECURE="true",
        BONGSU_CHANNELS__WITHOUT_NAMESPACE__PRESENCE="true",
    )
    assert "whoever can reach this replica may do everything" in (server.directory / "serve.log").read_text()
    async with connect(address(server)) as socket:
        assert "client" in (await ask(socket, connect={}))["connect"]
        assert "publish" in await ask(socket, publish={"channel": "lobby", "data": 1})
        assert "subscribe" in await ask(socket, subscribe={"channel": "lobby"})
        members = (await ask(socket, presence={"channel": "lobby"}))["presence"]["presence"]
        assert len(members) == 1
        for refused in (
            {"subscribe": {"channel": "$plans"}},
            {"publish": {"channel": "uploads:feed", "data": 1}},
        ):
            assert (await ask(socket, **refused))["error"]["code"] == 103
        assert (await ask(socket, subscribe={"channel": "other:x"}))["error"]["code"] == 102
    with pytest.raises(InvalidStatus, match="401"):  # a plain socket is opened by --dev, or by a token
        await connect(address(server, "/ws"))


async def test_insecure_checks_the_tokens_it_is_given_but_lets_no_connection_expire(
    bongsu_server: Start,
) -> None:
    """SDKs fetch a new token on 109; told nothing, they would never learn that theirs is over."""
    server = bongsu_server(
        dev=False,
        BONGSU_API_KEY="api_key",
        BONGSU_TOKEN__HMAC_SECRET="secret",
        BONGSU_CLIENT__INSECURE="true",
    )
    now = time.time()
    async with connect(address(server)) as socket:
        token = sign_connection_token("secret", user="42", now=now - 600, ttl=60)
        assert (await ask(socket, connect={"token": token}))["error"]["code"] == 109
    async with connect(address(server)) as socket:
        with pytest.raises(ConnectionClosed, match="3500"):
            await ask(socket, connect={"token": "no"})
    async with connect(address(server)) as socket:
        token = sign_connection_token("secret", user="42", now=now, ttl=60)
        assert "expires" not in (await ask(socket, connect={"token": token}))["connect"]
        for token, code in (
            (sign_subscription_token("secret", user="42", channel="$x", now=now - 600, ttl=60), 109),
            (sign_subscription_token("other", user="42", channel="$x", now=now, ttl=60), 103),
        ):
            answer = await ask(socket, subscribe={"channel": "$x", "token": token})
            assert answer["error"]["code"] == code


async def test_without_it_nobody_connects_without_a_token(bongsu_server: Start) -> None:
    server = bongsu_server(dev=False, BONGSU_TOKEN__HMAC_SECRET="s" * 32)
    assert "may do everything" not in (server.directory / "serve.log").read_text()
    async with connect(address(server)) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await ask(socket, connect={})
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 3501


async def test_subscription_tokens_with_keys_of_their_own_are_checked_by_those(bongsu_server: Start) -> None:
    connections, subscriptions = "c" * 32, "s" * 32
    server = bongsu_server(
        dev=False,
        BONGSU_TOKEN__HMAC_SECRET=connections,
        BONGSU_CLIENT__SUBSCRIPTION_TOKEN__ENABLED="true",
        BONGSU_CLIENT__SUBSCRIPTION_TOKEN__HMAC_SECRET=subscriptions,
    )
    now = time.time()
    async with connect(address(server)) as socket:
        token = sign_connection_token(connections, user="42", now=now, ttl=600)
        assert "connect" in await ask(socket, connect={"token": token})
        for secret, accepted in ((connections, False), (subscriptions, True)):
            token = sign_subscription_token(secret, user="42", channel="$plans", now=now, ttl=600)
            answer = await ask(socket, subscribe={"channel": "$plans", "token": token})
            assert ("subscribe" in answer) is accepted, answer
