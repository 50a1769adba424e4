"""The official Python SDK, unmodified, in both encodings over WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from centrifuge import Client, DeltaType, ReplyError, StreamPosition
from tests.sdk.conftest import Deployment
from tests.sdk.line import Line
from tests.sdk.python_client import Clients, Heard, new_channel

CROWD = 64


@pytest.fixture(params=["json", "protobuf"])
async def clients(request: pytest.FixtureRequest, line: Line) -> AsyncIterator[Clients]:
    async with Clients.of(line.url, protobuf=request.param == "protobuf") as clients:
        yield clients


async def publish_numbers(deployment: Deployment, channel: str, numbers: Sequence[int]) -> None:
    """One publication for each number, alike enough for a delta to pay."""
    for number in numbers:
        body = {"channel": channel, "data": {"n": number, "filling": "beacon " * 60}}
        assert "result" in await deployment.api("publish", body)


def numbers_of(clients: Clients, publications: Sequence[Any]) -> list[int]:
    return [clients.decode(context.pub.data)["n"] for context in publications]


async def test_a_client_with_a_token_connects_as_its_user(deployment: Deployment, clients: Clients) -> None:
    client, heard = clients.client(token=deployment.sign({"sub": "ada", "info": {"name": "Ada"}}))
    await client.connect()
    [connected] = await heard.count("connected", 1)
    assert connected.version

    subscription, _ = await clients.subscribed(client, new_channel())
    present = (await subscription.presence()).clients
    assert list(present) == [connected.client]
    assert present[connected.client].user == "ada"
    assert clients.decode(present[connected.client].conn_info) == {"name": "Ada"}


async def test_a_wrong_token_ends_the_connection_for_good(clients: Clients) -> None:
    client, heard = clients.client(token="nonsense")
    await client.connect()
    [disconnected] = await heard.count("disconnected", 1)
    assert disconnected.code == 3500


async def test_a_wrong_subscription_token_is_refused_and_the_connection_lives(
    deployment: Deployment, clients: Clients
) -> None:
    client = await clients.connected(token=deployment.sign({"sub": "ada"}))
    subscription = client.new_subscription(new_channel(""), token="nonsense")
    heard = Heard(subscription.events)
    await subscription.subscribe()
    [unsubscribed] = await heard.count("unsubscribed", 1)
    assert unsubscribed.code == 103
    await clients.subscribed(client, new_channel())


async def test_a_remote_call_that_nobody_handles_is_not_available(
    deployment: Deployment, clients: Clients
) -> None:
    client = await clients.connected(token=deployment.sign({"sub": "ada"}))
    with pytest.raises(ReplyError) as refused:
        await client.rpc("add", clients.encode({"a": 1}))
    assert refused.value.code == 108


async def test_a_connection_and_a_subscription_outlive_their_tokens_as_long_as_both_are_renewed(
    deployment: Deployment, clients: Clients
) -> None:
    """The SDK asks for a third token only when the server has accepted the second and told its lifetime."""
    channel = new_channel("")
    asked = {"connection": 0, "subscription": 0}
    enough = asyncio.Event()

    def sign(kind: str, claims: dict[str, Any]) -> str:
        asked[kind] += 1
        if min(asked.values()) >= 3:
            enough.set()
        return deployment.sign({"sub": "ada", "exp": int(time.time()) + 2, **claims})

    async def get_token() -> str:
        return sign("connection", {})

    async def get_subscription_token(channel: str) -> str:
        return sign("subscription", {"channel": channel})

    client, heard = clients.client(get_token=get_token)
    await client.connect()
    _, subscription_heard = await clients.subscribed(client, channel, get_token=get_subscription_token)
    async with asyncio.timeout(30):
        await enough.wait()
    assert len(heard.all["connecting"]) == 1
    assert len(subscription_heard.all["subscribing"]) == 1


async def test_what_is_published_reaches_each_subscriber_once_with_its_publisher(
    deployment: Deployment, clients: Clients
) -> None:
    channel = new_channel()
    ada = await clients.connected(token=deployment.sign({"sub": "ada"}))
    bob = await clients.connected(token=deployment.sign({"sub": "bob"}))
    first, first_heard = await clients.subscribed(ada, channel)
    _, second_heard = await clients.subscribed(bob, channel)

    await first.publish(clients.encode({"n": 1, "text": "안녕\n"}))
    await bob.publish(channel, clients.encode({"n": 2}))
    await publish_numbers(deployment, channel, [3])
    for heard in (first_heard, second_heard):
        publications = await heard.count("publication", 3)
        assert numbers_of(clients, publications) == [1, 2, 3]
        assert [context.pub.info and context.pub.info.user for context in publications] == [
            "ada",
            "bob",
            None,
        ]


async def test_presence_joins_and_leaves_tell_who_is_there(deployment: Deployment, clients: Clients) -> None:
    channel = new_channel()
    ada = await clients.connected(token=deployment.sign({"sub": "ada"}))
    bob = await clients.connected(token=deployment.sign({"sub": "bob"}))
    first, heard = await clients.subscribed(ada, channel)
    second, _ = await clients.subscribed(bob, channel)
    assert [context.info.user for context in await heard.count("join", 2)] == ["ada", "bob"]
    stats = await first.presence_stats()
    assert (stats.num_clients, stats.num_users) == (2, 2)

    await second.unsubscribe()
    [left] = await heard.count("leave", 1)
    assert left.info.user == "bob"
    assert [info.user for info in (await first.presence()).clients.values()] == ["ada"]


async def test_history_is_read_page_by_page(deployment: Deployment, clients: Clients) -> None:
    channel = new_channel()
    client = await clients.connected(token=deployment.sign({"sub": "ada"}))
    subscription, _ = await clients.subscribed(client, channel)
    await publish_numbers(deployment, channel, range(1, 6))

    first = await subscription.history(limit=2)
    assert [clients.decode(publication.data)["n"] for publication in first.publications] == [1, 2]
    assert first.offset == 5
    second = await subscription.history(limit=2, since=StreamPosition(offset=2, epoch=first.epoch))
    assert [clients.decode(publication.data)["n"] for publication in second.publications] == [3, 4]
    backwards = await subscription.history(limit=-1, reverse=True)
    assert [publication.offset for publication in backwards.publications] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("delta", [None, DeltaType.FOSSIL], ids=["full", "delta"])
async def test_a_client_whose_connection_was_cut_gets_all_that_it_missed(
    deployment: Deployment, clients: Clients, line: Line, delta: DeltaType | None
) -> None:
    channel = new_channel()
    _, heard = await cut_off(deployment, clients, line, channel, delta=delta)
    await publish_numbers(deployment, channel, range(2, 7))
    line.mend()
    subscribed = (await heard.count("subscribed", 2))[1]
    assert (subscribed.was_recovering, subscribed.recovered) == (True, True)
    await publish_numbers(deployment, channel, [7, 8])
    publications = await heard.count("publication", 8)
    assert numbers_of(clients, publications) == list(range(1, 9))
    assert [context.pub.offset for context in publications] == list(range(1, 9))


async def test_who_missed_more_than_the_history_holds_is_told_so(
    deployment: Deployment, clients: Clients, line: Line
) -> None:
    channel = new_channel("smallhistory")
    _, heard = await cut_off(deployment, clients, line, channel)
    await publish_numbers(deployment, channel, range(2, 6))
    line.mend()
    subscribed = (await heard.count("subscribed", 2))[1]
    assert (subscribed.was_recovering, subscribed.recovered) == (True, False)
    await publish_numbers(deployment, channel, [6])
    assert numbers_of(clients, await heard.count("publication", 2)) == [1, 6]


async def test_who_reads_its_state_elsewhere_reads_it_again_when_its_position_is_gone(
    deployment: Deployment, clients: Clients, line: Line
) -> None:
    channel = new_channel("smallhistory")
    read: list[int] = []

    async def get_state(channel: str) -> StreamPosition:
        top = (await deployment.api("history", {"channel": channel}))["result"]
        read.append(top["offset"])
        return StreamPosition(offset=top["offset"], epoch=top["epoch"])

    _, heard = await cut_off(deployment, clients, line, channel, get_state=get_state)
    await publish_numbers(deployment, channel, range(2, 7))
    line.mend()
    await heard.count("subscribed", 2)
    assert read == [0, 6]
    await publish_numbers(deployment, channel, [7])
    assert numbers_of(clients, await heard.count("publication", 2)) == [1, 7]


async def test_a_user_has_a_personal_channel(deployment: Deployment, clients: Clients) -> None:
    user = new_channel("")
    client, heard = clients.client(token=deployment.sign({"sub": user}))
    await client.connect()
    [subscribed] = await heard.count("subscribed", 1)
    assert subscribed.channel == f"#{user}"
    [joined] = await heard.count("join", 1)
    assert joined.info.user == user
    await client.publish(f"#{user}", clients.encode({"n": 1}))
    await publish_numbers(deployment, f"#{user}", [2])
    assert numbers_of(clients, await heard.count("publication", 2)) == [1, 2]


async def test_what_64_clients_send_at_once_reaches_all_of_them_in_the_same_order(
    deployment: Deployment, clients: Clients
) -> None:
    channel = new_channel()

    async def join(number: int) -> tuple[Client, Heard]:
        client = await clients.connected(token=deployment.sign({"sub": f"user-{number}"}))
        return client, (await clients.subscribed(client, channel))[1]

    crowd = await asyncio.gather(*(join(number) for number in range(CROWD)))
    await asyncio.gather(
        *(client.publish(channel, clients.encode({"n": n})) for n, (client, _) in enumerate(crowd))
    )
    orders = [numbers_of(clients, await heard.count("publication", CROWD)) for _, heard in crowd]
    assert sorted(orders[0]) == list(range(CROWD))
    assert all(order == orders[0] for order in orders)


async def cut_off(
    deployment: Deployment, clients: Clients, line: Line, channel: str, **options: Any
) -> tuple[Client, Heard]:
    """A subscriber that heard one publication and then lost its connection; the line is cut."""
    client, client_heard = clients.client(token=deployment.sign({"sub": "ada"}))
    await client.connect()
    _, heard = await clients.subscribed(client, channel, **options)
    await publish_numbers(deployment, channel, [1])
    await heard.count("publication", 1)
    line.cut()
    await client_heard.count("connecting", 2)
    return client, heard
