"""One upload through nginx while the replicas that receive it are killed or frozen, one after the other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import pytest
from deploy.cluster import Cluster
from deploy.replica import Replica
from tests.scale import scaled
from tests.servers import PreloadedCluster, S3Server, outer_environment

MIB: Final = 1024 * 1024
PIECE: Final = 256 * 1024
# A commit every 8 MiB and what a batch and the buffers on the way add. A client that never has more than that
# unsafe gets on only if the server commits as often as it says; and it never has to send more again.
WINDOW: Final = 9 * MIB + 512 * 1024
TUS: Final = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(params=["file", "s3"])
def cluster(request: pytest.FixtureRequest, cluster_root: Path) -> Iterator[Cluster]:
    """Two replicas, on a shared directory or on S3."""
    env = outer_environment()
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3_server")
        env |= dict(s3.environment) | {"BONGSU_STORAGE_URL": request.getfixturevalue("s3_url")}
    made = PreloadedCluster(cluster_root, replicas=2, env=env)
    try:
        with made:
            yield made
    finally:
        shutil.rmtree(made.postgres.home, ignore_errors=True)


def piece(number: int) -> bytes:
    """The file's bytes from `number` × 256 KiB on, the same whenever they are asked for."""
    return hashlib.shake_128(str(number).encode()).digest(PIECE)


@dataclass
class Sender:
    """A tus client that never gives up, never runs ahead of the commits, and counts what it sent.

    The kernel's buffers alone may hold 70 MiB between it, nginx and a replica: whatever a replica does, all
    that would be lost with it. It listens while it sends, as browsers do: an answer in the middle ends a
    request at once.
    """

    http: httpx.AsyncClient
    database: Database
    url: str
    size: int
    patience: float
    """Seconds without a commit after which it tries another connection."""
    sent: int = 0
    """Bytes of the file that have been sent once or more."""
    given: int = 0
    """Bytes that have been sent, each as often as it was."""
    ends: Counter[str] = field(default_factory=Counter)
    """How its requests ended: the status, or the exception's name."""
    left: list[asyncio.StreamWriter] = field(default_factory=list)
    """Connections that it gave up."""
    offset: int = 0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def id(self) -> str:
        return self.url.rpartition("/")[2]

    async def run(self) -> None:
        while self.offset < self.size:
            try:
                head = await self.http.head(self.url, headers=TUS)
                if head.status_code == 200:
                    self.offset = int(head.headers["upload-offset"])
                    end = str(await self._patch()) if self.offset < self.size else "200"
                else:
                    end = f"HEAD {head.status_code}"
                assert end.endswith(("200", "204", "409", "502", "503", "504")), end
            except (httpx.TransportError, OSError, EOFError) as error:
                end = type(error).__name__
            self.ends[end] += 1
            await asyncio.sleep(0.05)  # a pause between tries, not a wait for a state

    async def _patch(self) -> int:
        """Send from `offset` on until there is an answer; its status."""
        url = httpx.URL(self.url)
        head = [f"PATCH {url.path} HTTP/1.1", f"Host: {url.netloc.decode()}", "Tus-Resumable: 1.0.0"]
        head += ["Content-Type: application/offset+octet-stream", f"Upload-Offset: {self.offset}"]
        head += [f"Content-Length: {self.size - self.offset}"]
        reader, writer = await asyncio.open_connection(url.host, url.port)
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        sending = asyncio.create_task(self._send_to(writer, "\r\n".join([*head, "", ""]).encode()))
        try:
            await asyncio.wait({answer, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
            async with asyncio.timeout(self.patience):
                return int((await answer).split()[1])
        except TimeoutError:
            # As somebody does who goes on over another network: nobody at the other end is told.
            self.left.append(writer)
            raise
        finally:
            for task in (answer, sending):
                task.cancel()
            await asyncio.wait({answer, sending})
            if writer not in self.left:
                writer.transport.abort()

    async def _send_to(self, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(head)
        at = self.offset
        while at < self.size:
            block = piece(at // PIECE)[at % PIECE :]
            await self.until_safe(at + len(block) - WINDOW)
            writer.write(block)
            try:
                await writer.drain()
            except ConnectionError:  # whoever reads the answer is told the same, or why
                return
            at += len(block)
            self.given += len(block)
            self.sent = max(self.sent, at)
            async with self.moved:
                self.moved.notify_all()

    async def until_safe(self, offset: int) -> None:
        async with asyncio.timeout(self.patience):
            while True:
                if await self.database.ask("size", self.id) >= offset:
                    return
                await asyncio.sleep(0.01)

    async def until_sent(self, offset: int) -> None:
        async with asyncio.timeout(300), self.moved:
            await self.moved.wait_for(lambda: self.sent >= offset)


class Database:
    """A look at the upload's row."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def ask(self, column: str, upload_id: str) -> Any:
        async with self._lock:
            return await self._connection.fetchval(f"SELECT {column} FROM upload WHERE id = $1", upload_id)


@asynccontextmanager
async def sending(cluster: Cluster, size: int, *, patience: float) -> AsyncIterator[Sender]:
    connection = await asyncpg.connect(cluster.postgres.url().replace("+asyncpg", ""))
    try:
        async with httpx.AsyncClient(timeout=patience) as http:
            made = await http.post(f"{cluster.url}/files/", headers=TUS | {"Upload-Length": str(size)})
            assert made.status_code == 201, made.text
            url = str(made.url.join(made.headers["location"]))
            sender = Sender(http, Database(connection), url, size, patience)
            try:
                yield sender
            finally:
                for writer in sender.left:
                    writer.transport.abort()
    finally:
        await connection.close()


async def holder(cluster: Cluster, sender: Sender) -> Replica:
    """The replica that receives the upload now."""
    async with asyncio.timeout(60):
        while True:
            name = await sender.database.ask("holder", sender.id)
            for replica in cluster.replicas:
                if replica.name == name and replica.running:
                    return replica
            await asyncio.sleep(0.01)  # between two requests nobody does


async def stored(http: httpx.AsyncClient, cluster: Cluster, upload_id: str) -> dict[str, Any]:
    async with asyncio.timeout(300):
        while True:
            with suppress(httpx.TransportError):
                answer = await http.get(f"{cluster.url}/uploads/{upload_id}")
                if answer.status_code == 200 and answer.json()["state"] == "stored":
                    record: dict[str, Any] = answer.json()
                    return record
            await asyncio.sleep(0.1)


def sha256(size: int) -> str:
    digest = hashlib.sha256()
    for number in range(size // PIECE):
        digest.update(piece(number))
    return digest.hexdigest()


@pytest.mark.soak
async def test_an_upload_arrives_whole_though_its_replica_is_killed_again_and_again(cluster: Cluster) -> None:
    """
    Setup: two replicas behind nginx; one upload. Short: 64 MiB and 3 kills; soak: 1 GiB and 20.
    Do: `kill -9` the replica that receives it, at offsets chosen by a fixed seed, and start it again.
    Expect: the same bytes, stored once; a kill costs no more than what was not safe.
    """
    size, kills = scaled(64, 1024) * MIB, scaled(3, 20)
    step = size // (kills + 1)
    chosen = random.Random(5)
    async with sending(cluster, size, patience=30) as sender:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(sender.run())
            for kill in range(kills):
                await sender.until_sent(kill * step + chosen.randrange(step))
                victim = await holder(cluster, sender)
                victim.kill()
                victim.child.start()
        seconds = time.monotonic() - began
        record = await stored(sender.http, cluster, sender.id)
        again = sender.given - size
        print(f"{size // MIB} MiB, {kills} kills, {seconds:.0f} s, {again / MIB:.1f} MiB sent again")
        print(f"how the requests ended: {dict(sender.ends)}")
        assert (record["sha256"], record["size"]) == (sha256(size), size)
        assert again <= kills * WINDOW
        assert not sender.ends["TimeoutError"]


class Deaf(threading.Thread):
    """A client that sends one request at a steady rate and reads nothing before it may send no more.

    Browsers do the same: they look for the answer when the whole body is out.
    """

    RATE: Final = 20_000_000  # bytes a second
    BLOCK: Final = 64 * 1024

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self._url, self._size = httpx.URL(url), size
        self._ending = threading.Event()
        self.given = 0
        """Bytes that the kernel has taken."""
        self.answer = b""

    def run(self) -> None:
        head = [f"PATCH {self._url.path} HTTP/1.1", f"Host: {self._url.netloc.decode()}", "Upload-Offset: 0"]
        head += ["Tus-Resumable: 1.0.0", "Content-Type: application/offset+octet-stream"]
        head += [f"Content-Length: {self._size}", "", ""]
        with socket.create_connection((self._url.host, self._url.port or 80), timeout=60) as client:
            client.sendall("\r\n".join(head).encode())
            with suppress(ConnectionError):
                while self.given < self._size and not self._ending.wait(self.BLOCK / self.RATE):
                    client.sendall(bytes(self.BLOCK))
                    self.given += self.BLOCK
            with suppress(ConnectionError):
                while data := client.recv(65536):
                    self.answer += data

    def end(self) -> None:
        self._ending.set()
        self.join()


async def test_of_what_a_deaf_client_sends_behind_a_kill_nothing_is_read(pair: Cluster) -> None:
    """nginx answered 502 and read on for half a minute, all of it in vain; browsers saw the answer then."""
    size = 1024 * MIB
    async with sending(pair, size, patience=30) as sender:
        client = Deaf(sender.url, size)
        client.start()
        try:
            await sender.until_safe(2 * WINDOW)
            victim = await holder(pair, sender)
            before = client.given
            victim.kill()
            await asyncio.to_thread(client.join)
        finally:
            await asyncio.to_thread(client.end)
        print(f"{(client.given - before) / MIB:.1f} MiB sent after the kill")
        assert client.given - before <= 8 * MIB
        assert client.answer.startswith(b"HTTP/1.1 502 ")


async def test_a_frozen_replica_that_thaws_adds_nothing_to_what_another_one_received(
    cluster: Cluster,
) -> None:
    """
    Do: SIGSTOP the replica that receives an upload; send the rest through the other one; SIGCONT.
    Expect: the client goes on though the frozen one does not answer, and the bytes are the same.
    """
    size = 48 * MIB
    async with sending(cluster, size, patience=3) as sender:
        run = asyncio.create_task(sender.run())
        await sender.until_sent(20 * MIB)
        frozen = await holder(cluster, sender)
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(120):
                await run
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        record = await stored(sender.http, cluster, sender.id)
        assert record["sha256"] == sha256(size)
        content = hashlib.sha256()
        async with sender.http.stream("GET", f"{cluster.url}/uploads/{sender.id}/content") as response:
            async for block in response.aiter_bytes():
                content.update(block)
        assert content.hexdigest() == record["sha256"]
