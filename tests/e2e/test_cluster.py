"""The main job on a cluster, over the shipped commands: broadcast, upload, and what they survive."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
from asyncio import as_completed
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from urllib.parse import urlsplit

import httpx
from deploy.cluster import Cluster
from deploy.replica import BONGSU
from tests.e2e.listener import Listener, eventually, open_stalled_socket
from tests.scale import scaled
from tests.servers import outer_environment

Listen = Callable[[str], Awaitable[Listener]]


async def healths(http: httpx.AsyncClient, cluster: Cluster) -> list[tuple[int, str]]:
    """Status and word of each replica's /readyz, asked directly."""
    answers = [await http.get(f"{replica.url}/readyz") for replica in cluster.replicas]
    return [(answer.status_code, answer.json()["health"]) for answer in answers]


async def upload(http: httpx.AsyncClient, base: str, content: bytes, name: str = "beacon.bin") -> str:
    """Upload by multipart form; the new upload's id."""
    answer = await http.post(f"{base}/upload-file/", files={"file": (name, content)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["message"] == "파일 업로드 중..."
    return str(answer.json()["id"])


@asynccontextmanager
async def unfinished_uploads(
    http: httpx.AsyncClient, cluster: Cluster, *, count: int
) -> AsyncIterator[tuple[Counter[str], list[asyncio.Task[bytes]]]]:
    """Uploads through nginx that stop in the middle: how many each replica has, and their answers to come."""
    address = urlsplit(cluster.url)
    head = f"PUT /uploads?filename=half HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    async with AsyncExitStack() as closing, asyncio.TaskGroup() as tasks:
        answers = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            closing.callback(writer.close)
            writer.write(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
            answers.append(tasks.create_task(reader.read()))
        receivers: Counter[str] = Counter()

        async def all_have_arrived() -> bool:
            rows = (await http.get(f"{cluster.url}/uploads")).json()["uploads"]
            receivers.clear()
            receivers.update(row["received_by"] for row in rows)
            return receivers.total() == count

        await eventually(all_have_arrived, f"{count} uploads begun")
        yield receivers, answers
        for answer in answers:
            answer.cancel()


async def stored(http: httpx.AsyncClient, base: str, upload_id: str) -> dict[str, object]:
    """The upload's row once its background tasks are done."""
    row: dict[str, object] = {}

    async def is_stored() -> bool:
        row.update((await http.get(f"{base}/uploads/{upload_id}")).raise_for_status().json())
        assert row["state"] != "failed", row
        return row["state"] == "stored"

    await eventually(is_stored, f"upload {upload_id} stored")
    return row


async def test_what_is_sent_through_any_replica_reaches_everybody_in_each_senders_order(
    trio: Cluster, listen: Listen, http: httpx.AsyncClient
) -> None:
    """
    Setup: three replicas, 30 clients through nginx.
    Do: ten of them, on all replicas, send 20 messages each, all at once.
    Expect: everybody has all 200, each sender's in the order of sending; the cluster's count is 30.
    """
    clients = [await listen(f"{trio.ws_url}/ws") for _ in range(30)]
    spread = Counter(client.replica for client in clients)
    assert spread == {"replica-1": 10, "replica-2": 10, "replica-3": 10}

    senders = clients[:10]
    assert {sender.replica for sender in senders} == {"replica-1", "replica-2", "replica-3"}
    sent = [[f"{number}: {index}" for index in range(20)] for number in range(len(senders))]

    async def send_all(sender: Listener, texts: list[str]) -> None:
        for text in texts:
            await sender.send(text)

    async with asyncio.TaskGroup() as sending:
        for sender, texts in zip(senders, sent, strict=True):
            sending.create_task(send_all(sender, texts))

    for client in clients:
        await client.hears(*(text for texts in sent for text in texts))
        assert len(client.heard) == 200
        for number, texts in enumerate(sent):
            assert [text for text in client.heard if text.startswith(f"{number}: ")] == texts

    async def counts_everybody() -> bool:
        status = (await http.get(f"{trio.url}/status")).json()
        return bool(status["cluster"]["clients"] == 30)

    await eventually(counts_everybody, "30 clients counted in the cluster")


async def test_an_upload_to_one_replica_is_listed_and_served_by_the_others(
    trio: Cluster, http: httpx.AsyncClient
) -> None:
    content = os.urandom(3_000_000)
    upload_id = await upload(http, trio.replica(1).url, content, name="봉수.bin")
    await stored(http, trio.replica(1).url, upload_id)

    for replica in trio.replicas:
        listed = (await http.get(f"{replica.url}/uploads")).raise_for_status().json()
        [row] = [row for row in listed["uploads"] if row["id"] == upload_id]
        assert row["filename"] == "봉수.bin"
        assert row["size"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        served = await http.get(f"{replica.url}/uploads/{upload_id}/content")
        assert served.headers["X-Bongsu-Replica"] == replica.name
        assert served.content == content


async def test_a_killed_replicas_clients_reconnect_at_once_and_nobody_else_notices(
    pair: Cluster, listen: Listen, http: httpx.AsyncClient
) -> None:
    """
    Setup: two replicas, ten clients through nginx, five on each. Do: kill -9 replica-1. Expect: its five
    come back on the first try, on replica-2; the other five are undisturbed and hear everything; who had a
    request there is told so in the form of our errors; an upload is stored; replica-1 started again takes its
    share.
    """
    clients = [await listen(f"{pair.ws_url}/ws") for _ in range(10)]
    lost = [client for client in clients if client.replica == "replica-1"]
    others = [client for client in clients if client.replica == "replica-2"]
    assert len(lost) == len(others) == 5

    async with unfinished_uploads(http, pair, count=4) as (receivers, answers):
        pair.replica(1).kill()
        for client in lost:
            await client.loses_its_connection()
        for told in [await next_one for next_one in islice(as_completed(answers), receivers["replica-1"])]:
            head, _, body = told.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 502 ")
            assert b"application/problem+json" in head
            assert json.loads(body)["code"] == "replica_gone"
    back = [await listen(f"{pair.ws_url}/ws") for _ in lost]
    assert {client.replica for client in back} == {"replica-2"}

    await others[0].send("still burning")
    await back[0].send("burning again")
    for client in [*others, *back]:
        await client.hears("still burning", "burning again")
        assert not client.closed
    await stored(http, pair.url, await upload(http, pair.url, b"after the kill"))

    pair.replica(1).start()
    returned = [await listen(f"{pair.ws_url}/ws") for _ in range(5)]
    assert {client.replica for client in returned} == {"replica-1"}
    await returned[0].send("the hill is back")
    for client in [*others, *back, *returned]:
        await client.hears("the hill is back")


async def test_messages_flow_again_after_redis_was_killed_and_readiness_told_it_meanwhile(
    pair: Cluster, listen: Listen, http: httpx.AsyncClient
) -> None:
    first = await listen(f"{pair.ws_url}/ws")
    second = await listen(f"{pair.ws_url}/ws")
    assert {first.replica, second.replica} == {"replica-1", "replica-2"}

    pair.redis.kill()

    async def all_say_that_the_broker_is_down() -> bool:
        return await healths(http, pair) == [(503, "broker down")] * 2

    await eventually(all_say_that_the_broker_is_down, "both replicas say that the broker is down")
    newcomer = await listen(f"{pair.ws_url}/ws")  # nobody is turned away because of it

    pair.redis.start()

    async def all_are_ready() -> bool:
        return await healths(http, pair) == [(200, "ready")] * 2

    await eventually(all_are_ready, "both replicas are ready again")
    await first.send("from the first")
    await second.send("from the second")
    for client in (first, second, newcomer):
        await client.hears("from the first", "from the second")
        assert not client.closed
    assert all(replica.running for replica in pair.replicas)


async def test_a_client_that_stops_reading_is_closed_and_the_others_get_everything(
    pair: Cluster, listen: Listen, http: httpx.AsyncClient
) -> None:
    """
    Setup: two replicas, 20 clients through nginx; one of them never reads.
    Do: send messages of 4 KB, a few hundred a second, until a replica says that it closed a slow client.
    Expect: exactly one was, with 3008; every other client has every message, in order.
    """
    stalled = open_stalled_socket(pair.url)
    clients = [await listen(f"{pair.ws_url}/ws") for _ in range(19)]
    sent: list[str] = []

    async def slow_clients_closed() -> int:
        closed = 0
        for replica in pair.replicas:
            metrics = (await http.get(f"{replica.url}/metrics")).text
            counts = re.findall(r'^bongsu_disconnects_total\{code="3008"\} (\S+)$', metrics, re.M)
            closed += sum(int(float(count)) for count in counts)
        return closed

    async def one_was_closed() -> bool:
        for _ in range(20):
            sent.append(f"{len(sent)}".ljust(4096, "."))
            await clients[0].send(sent[-1])
        return await slow_clients_closed() > 0

    await eventually(one_was_closed, "the stalled client closed with 3008")
    for client in clients:
        await client.hears(*sent)
        assert client.heard == sent
        assert not client.closed
    assert await slow_clients_closed() == 1
    stalled.close()


def test_the_doctor_sees_all_replicas_through_nginx_and_a_message_arrive(trio: Cluster) -> None:
    env = {**outer_environment(), "BONGSU_URL": trio.url, "BONGSU_API_KEY": trio.api_key}
    told = subprocess.run(
        [BONGSU, "doctor"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "3 in the cluster, 3 answered here" in told.stdout
    assert "failed" not in told.stdout
    assert "skipped" not in told.stdout


async def test_of_two_who_send_at_one_offset_through_nginx_exactly_one_succeeds(trio: Cluster) -> None:
    """
    Do: two PATCHes at offset 0 of one upload at one time, as often as it takes to meet in every way.
    Expect: 204 for one, 409 for the other, and the content is that of the first.
    """
    tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    replicas = set()
    async with httpx.AsyncClient(base_url=trio.url, timeout=60) as a, httpx.AsyncClient(timeout=60) as b:
        for size in [1, 1000, 100_000, 3_000_000] * scaled(2, 50):
            made = await a.post("/files/", headers=tus | {"Upload-Length": str(size)})
            url = str(made.url.join(made.headers["location"]))
            answers = await asyncio.gather(
                *(
                    http.patch(url, headers=tus | {"Upload-Offset": "0"}, content=octet * size)
                    for http, octet in ((a, b"a"), (b, b"b"))
                )
            )
            assert sorted(answer.status_code for answer in answers) == [204, 409]
            replicas |= {answer.headers["X-Bongsu-Replica"] for answer in answers}
            winner = b"ab"[[answer.status_code for answer in answers].index(204)]
            row = await stored(a, trio.url, url.rpartition("/")[2])
            assert row["sha256"] == hashlib.sha256(bytes([winner]) * size).hexdigest()
    assert len(replicas) > 1
