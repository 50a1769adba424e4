"""The Centrifugo server API's own Python client, unmodified, and what its calls do to somebody connected."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import cent
import pytest
from tests.sdk.conftest import Deployment
from tests.sdk.line import Line
from tests.sdk.python_client import Clients, Heard, new_channel


@pytest.fixture
async def backend(deployment: Deployment) -> AsyncIterator[cent.AsyncClient]:
    async with cent.AsyncClient(f"{deployment.url}/api", deployment.api_key, timeout=30) as backend:
        yield backend


@pytest.fixture
async def clients(line: Line) -> AsyncIterator[Clients]:
    async with Clients.of(line.url, protobuf=False) as clients:
        yield clients


async def listener(deployment: Deployment, clients: Clients, channel: str) -> Heard:
    client = await clients.connected(token=deployment.sign({"sub": "ada"}))
    return (await clients.subscribed(client, channel))[1]


def test_the_synchronous_client_publishes_and_reads_back(deployment: Deployment) -> None:
    channel = new_channel()
    backend = cent.Client(f"{deployment.url}/api", deployment.api_key, timeout=30)
    published = backend.publish(cent.PublishRequest(channel=channel, data={"n": 1}))
    assert published.offset == 1
    history = backend.history(cent.HistoryRequest(channel=channel, limit=10))
    assert (history.offset, history.epoch) == (1, published.epoch)
    assert [publication.data for publication in history.publications] == [{"n": 1}]
    backend.close()


async def test_a_publication_carries_tags_and_is_published_once_for_each_idempotency_key(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    channel = new_channel()
    heard = await listener(deployment, clients, channel)
    request = cent.PublishRequest(
        channel=channel, data={"n": 1}, tags={"lang": "ko"}, idempotency_key="once", skip_history=False
    )
    first = await backend.publish(request)
    again = await backend.publish(request)
    other = await backend.publish(cent.PublishRequest(channel=channel, data={"n": 2}))
    assert (first.offset, again.offset, other.offset) == (1, 1, 2)
    [one, two] = await heard.count("publication", 2)
    assert (one.pub.data, one.pub.tags, two.pub.data) == ({"n": 1}, {"lang": "ko"}, {"n": 2})


async def test_a_broadcast_answers_for_each_channel(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    channels = [new_channel(), new_channel()]
    heard = [await listener(deployment, clients, channel) for channel in channels]
    sent = await backend.broadcast(
        cent.BroadcastRequest(channels=[*channels, "nowhere:else"], data={"to": "all"})
    )
    assert [response.result and response.result.offset for response in sent.responses] == [1, 1, None]
    assert sent.responses[2].error is not None
    assert sent.responses[2].error.code == 102
    for each in heard:
        [context] = await each.count("publication", 1)
        assert context.pub.data == {"to": "all"}


async def test_history_is_paged_and_removed(backend: cent.AsyncClient) -> None:
    channel = new_channel()
    for number in range(1, 6):
        await backend.publish(cent.PublishRequest(channel=channel, data={"n": number}))
    top = await backend.history(cent.HistoryRequest(channel=channel))
    assert (top.offset, top.publications) == (5, [])
    since = cent.StreamPosition(offset=2, epoch=top.epoch)
    page = await backend.history(cent.HistoryRequest(channel=channel, limit=2, since=since))
    assert [publication.data["n"] for publication in page.publications] == [3, 4]
    newest = await backend.history(cent.HistoryRequest(channel=channel, limit=2, reverse=True))
    assert [publication.data["n"] for publication in newest.publications] == [5, 4]

    await backend.history_remove(cent.HistoryRemoveRequest(channel=channel))
    left = await backend.history(cent.HistoryRequest(channel=channel, limit=10))
    assert (left.offset, left.epoch, left.publications) == (5, top.epoch, [])


async def test_presence_tells_who_is_connected_to_any_replica(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    channel = new_channel()
    for _ in range(3):
        await listener(deployment, clients, channel)
    present = await backend.presence(cent.PresenceRequest(channel=channel))
    assert [info.user for info in present.presence.values()] == ["ada"] * 3
    stats = await backend.presence_stats(cent.PresenceStatsRequest(channel=channel))
    assert (stats.num_clients, stats.num_users) == (3, 1)


async def test_a_batch_is_answered_in_its_order(backend: cent.AsyncClient) -> None:
    one, other = new_channel(), new_channel()
    answer = await backend.batch(
        cent.BatchRequest(
            requests=[
                cent.PublishRequest(channel=one, data={"n": 1}),
                cent.PublishRequest(channel=one, data={"n": 2}),
                cent.BroadcastRequest(channels=[one, other], data={"n": 3}),
                cent.PresenceRequest(channel=one),
                cent.HistoryRequest(channel=one, limit=5),
            ]
        )
    )
    first, second, broadcast, presence, history = answer.replies
    assert isinstance(broadcast, cent.BroadcastResult)
    assert isinstance(presence, cent.PresenceResult)
    assert isinstance(history, cent.HistoryResult)
    assert isinstance(first, cent.PublishResult)
    assert isinstance(second, cent.PublishResult)
    assert (first.offset, second.offset) == (1, 2)
    assert [response.result and response.result.offset for response in broadcast.responses] == [3, 1]
    assert presence.presence == {}
    assert [publication.data["n"] for publication in history.publications] == [1, 2, 3]


async def test_binary_data_reaches_clients_of_the_binary_encoding(
    deployment: Deployment, line: Line, backend: cent.AsyncClient
) -> None:
    channel = new_channel()
    async with Clients.of(line.url, protobuf=True) as clients:
        heard = await listener(deployment, clients, channel)
        payload = base64.b64encode(b"\x00\xff").decode()
        await backend.publish(cent.PublishRequest(channel=channel, data="", b64data=payload))
        [context] = await heard.count("publication", 1)
    assert context.pub.data == b"\x00\xff"


async def several(deployment: Deployment, clients: Clients, user: str) -> list[Heard]:
    """Four connections of one user, which nginx spreads over both replicas."""
    heard = []
    for _ in range(4):
        client, events = clients.client(token=deployment.sign({"sub": user}))
        await client.connect()
        await events.count("connected", 1)
        heard.append(events)
    return heard


async def named(heard: Heard, event: str, channel: str) -> Any:
    """The first such event of a server-side subscription to `channel`."""
    wanted = 1
    while True:
        contexts = await heard.count(event, wanted)
        for context in contexts:
            if context.channel == channel:
                return context
        wanted = len(contexts) + 1


async def test_a_user_is_subscribed_and_unsubscribed_on_every_replica(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    user, channel = uuid4().hex, new_channel()
    heard = await several(deployment, clients, user)
    await backend.subscribe(cent.SubscribeRequest(user=user, channel=channel, data={"why": "server"}))
    for each in heard:
        assert (await named(each, "subscribed", channel)).data == {"why": "server"}
    counted = await backend.channels(cent.ChannelsRequest(pattern=channel.replace("python", "*")))
    assert {name: info.num_clients for name, info in counted.channels.items()} == {channel: 4}
    await backend.publish(cent.PublishRequest(channel=channel, data={"n": 1}))
    for each in heard:
        assert (await named(each, "publication", channel)).pub.data == {"n": 1}
    await backend.unsubscribe(cent.UnsubscribeRequest(user=user, channel=channel))
    for each in heard:
        await named(each, "unsubscribed", channel)
    assert (await backend.channels(cent.ChannelsRequest(pattern=channel))).channels == {}


async def test_a_user_is_disconnected_on_every_replica_but_for_the_whitelist(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    user = uuid4().hex
    kept, *others = await several(deployment, clients, user)
    [connected] = kept.all["connected"]
    await backend.disconnect(
        cent.DisconnectRequest(
            user=user, whitelist=[connected.client], disconnect=cent.Disconnect(code=4500, reason="banned")
        )
    )
    for each in others:
        [context] = await each.count("disconnected", 1)
        assert (context.code, context.reason) == (4500, "banned")
    await backend.publish(cent.PublishRequest(channel=f"#{user}", data={"still": "here"}))
    assert (await named(kept, "publication", f"#{user}")).pub.data == {"still": "here"}
    assert kept.all["disconnected"] == []


async def test_a_users_connections_are_let_expire_on_every_replica(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    user = uuid4().hex
    heard = await several(deployment, clients, user)
    await backend.refresh(cent.RefreshRequest(user=user, expire_at=int(time.time()) + 600))
    await backend.refresh(cent.RefreshRequest(user=user, expired=True))
    for each in heard:
        assert [context.code for context in await each.count("connecting", 2)] == [0, 3005]
        await each.count("connected", 2)


async def test_info_counts_what_all_replicas_have(
    deployment: Deployment, clients: Clients, backend: cent.AsyncClient
) -> None:
    await several(deployment, clients, uuid4().hex)
    nodes = (await backend.info(cent.InfoRequest())).nodes
    assert len(nodes) == len({node.uid for node in nodes}) == 2
    assert all(node.version and node.num_clients for node in nodes)
    assert sum(node.num_clients for node in nodes) >= 4
    assert sum(node.num_subs for node in nodes) >= 4  # each user has a personal channel


async def test_errors_arrive_as_the_clients_own_exceptions(
    deployment: Deployment, backend: cent.AsyncClient
) -> None:
    with pytest.raises(cent.CentApiResponseError, match="unknown channel") as refused:
        await backend.publish(cent.PublishRequest(channel="nowhere:else", data={}))
    assert refused.value.code == 102
    async with cent.AsyncClient(f"{deployment.url}/api", "not the key", timeout=30) as stranger:
        with pytest.raises(cent.CentUnauthorizedError):
            await stranger.info(cent.InfoRequest())
