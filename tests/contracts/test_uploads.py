"""Uploads of many requests on several replicas: one database, one directory, no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, update
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.migrate import migrate
from bongsu.db.models import Job, Outbox, Upload, UploadSegment, UploadUsage
from bongsu.db.session import Database
from bongsu.jobs.queue import Queue
from bongsu.jobs.retry import RetryPolicy
from bongsu.jobs.worker import Rejected, Worker
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem, ProblemKind
from bongsu.uploads import rows
from bongsu.uploads.drafts import AlreadyReceived
from bongsu.uploads.hooks import ReceivedFile
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.orphans import remove_orphans
from bongsu.uploads.receiver import COMMIT_EVERY
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.service import UploadService
from bongsu.uploads.stores import Listable, LocalStore, Store, StoreError, store_from_url
from bongsu.uploads.stores.base import object_key, segment_key
from bongsu.uploads.tus import Checksum

MIB = 1024 * 1024
ANN = Principal(user="ann")
BOB = Principal(user="bob")


@dataclass
class Cluster:
    """Replicas `a` and `b`. `deaf` are those that do not answer when they are asked to let go."""

    database: Database
    store: Store
    a: UploadService
    b: UploadService
    worker: Worker
    deaf: set[str]
    published: list[tuple[str, bytes]]

    async def create(self, length: int | None = None, **given: object) -> str:
        return (await create(self.a, length=length, **given)).id

    async def send(
        self, service: UploadService, upload_id: str, offset: int, data: bytes, length: int | None = None
    ) -> UploadRecord:
        async with service.append(upload_id, offset=offset, principal=ANN, length=length) as sink:
            for start in range(0, len(data), 65536):
                await sink.write(data[start : start + 65536])
            return await sink.finish()

    async def content(self, upload_id: str) -> bytes:
        """What is served in the end."""
        await self.worker.start()
        async with asyncio.timeout(30):
            while (record := await self.a.get(upload_id, Principal(trusted=True))).state != "stored":
                assert record.state in {"received", "processing"}
                await asyncio.sleep(0.01)
        await self.worker.stop()  # it cleans up behind the commit, and is waited for
        _, reader = await self.a.open(upload_id, Principal(trusted=True))
        content = await reader.read(0, record.size)
        await reader.close()
        assert record.sha256 == hashlib.sha256(content).hexdigest()
        return content

    async def count(self, table: type[Job | Upload | UploadSegment]) -> int:
        async with self.database.session() as session:
            return (await session.execute(select(func.count()).select_from(table))).scalar_one()

    async def job(self) -> Job:
        async with self.database.session() as session:
            return (await session.execute(select(Job))).scalar_one()

    async def usage(self) -> dict[str, tuple[int, int]]:
        async with self.database.session() as session:
            used = (await session.execute(select(UploadUsage))).scalars()
            return {each.scope: (each.size, each.files) for each in used}

    async def age(self, upload_id: str) -> None:
        """Its time is over."""
        async with self.database.transaction() as session:
            over = update(Upload).where(col(Upload.id) == upload_id).values(expires_at=clock(-1))
            await session.execute(over)

    def files(self) -> list[str]:
        root = self.root
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

    @property
    def root(self) -> Path:
        assert isinstance(self.store, LocalStore)
        return self.store.root


async def create(service: UploadService, **given: object) -> UploadRecord:
    draft = {"filename": "f", "content_type": "a/b", "owner": "ann", "length": None} | given
    return await service.create(**draft)  # type: ignore[arg-type]


OPTIONS = UploadOptions(min_free=0)
Start = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start(database_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a cluster with options of your choice."""
    async with AsyncExitStack() as stack:

        async def starts(options: UploadOptions = OPTIONS) -> Cluster:
            return await stack.enter_async_context(
                running(database_url, LocalStore(tmp_path / "files"), options)
            )

        yield starts


@pytest.fixture
async def cluster(start: Start) -> Cluster:
    return await start()


@asynccontextmanager
async def running(url: str, store: Store, options: UploadOptions) -> AsyncIterator[Cluster]:
    await migrate(url)
    database = Database(url)
    await database.start()
    await store.start()
    services: dict[str, UploadService] = {}
    deaf: set[str] = set()
    published: list[tuple[str, bytes]] = []

    async def publish(channel: str, data: bytes) -> None:
        published.append((channel, data))

    async def ask(replica: str, upload_id: str, offset: int | None) -> None:
        if replica in deaf:
            await asyncio.get_running_loop().create_future()  # for ever
        elif replica in services:
            await services[replica].let_go(upload_id, offset)

    for name in ("a", "b"):
        queue = Queue(database, name)
        services[name] = UploadService(database, store, queue, publish, name, options, ask=ask)
    worker = Worker(database, queue, services["b"].handlers(), poll=0.05)
    try:
        yield Cluster(database, store, services["a"], services["b"], worker, deaf, published)
    finally:
        await worker.stop()
        await store.stop()
        await database.stop()


@asynccontextmanager
async def refused(kind: ProblemKind) -> AsyncIterator[None]:
    with pytest.raises(Problem) as caught:
        yield
    assert caught.value.kind is kind


class Holding:
    """A request on `service` that has brought `data` and stands still. `go_on` ends its waiting."""

    def __init__(self, service: UploadService, upload_id: str, offset: int, *data: bytes) -> None:
        self._arrived = asyncio.Event()
        self._go_on = asyncio.Event()
        self.more = b""
        self.request = asyncio.create_task(self._run(service, upload_id, offset, data))

    async def _run(
        self, service: UploadService, upload_id: str, offset: int, data: tuple[bytes, ...]
    ) -> UploadRecord:
        async with service.append(upload_id, offset=offset, principal=ANN) as sink:
            for some in data:
                await sink.write(some)
            self._arrived.set()
            await self._go_on.wait()
            await sink.write(self.more)
            return await sink.finish()

    async def arrived(self) -> Holding:
        async with asyncio.timeout(30):
            await self._arrived.wait()
        return self

    async def go_on(self, more: bytes = b"") -> UploadRecord:
        self.more = more
        self._go_on.set()
        async with asyncio.timeout(30):
            return await self.request


async def test_an_upload_in_pieces_over_two_replicas_is_stored_whole_and_leaves_no_segment(
    cluster: Cluster,
) -> None:
    content = os.urandom(3 * MIB + 5)
    upload_id = await cluster.create(len(content))
    assert (await cluster.send(cluster.a, upload_id, 0, content[:MIB])).size == MIB
    assert (await cluster.send(cluster.b, upload_id, MIB, content[MIB : 2 * MIB])).state == "receiving"
    record = await cluster.send(cluster.a, upload_id, 2 * MIB, content[2 * MIB :])
    assert (record.state, record.size, record.received_by) == ("received", len(content), "a")
    assert await cluster.content(upload_id) == content
    assert cluster.files() == [object_key(upload_id, 1)]


async def test_bytes_for_another_offset_are_refused_with_the_right_one(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    for offset in (0, 4, 6, 10):
        with pytest.raises(Problem) as caught:
            await cluster.send(cluster.b, upload_id, offset, b"67890")
        assert (caught.value.kind, caught.value.extra) == (problems.OFFSET_MISMATCH, {"offset": 5})
    assert (await cluster.b.head(upload_id, ANN)).size == 5


async def test_of_many_requests_at_one_offset_exactly_one_wins(cluster: Cluster) -> None:
    content = [os.urandom(200_000) for _ in range(6)]
    upload_id = await cluster.create(200_000)
    services = (cluster.a, cluster.b)
    outcomes = await asyncio.gather(
        *(cluster.send(services[n % 2], upload_id, 0, data) for n, data in enumerate(content)),
        return_exceptions=True,
    )
    lost = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(error, Problem) and error.kind is problems.OFFSET_MISMATCH for error in lost)
    (winner,) = (n for n, outcome in enumerate(outcomes) if isinstance(outcome, UploadRecord))
    assert await cluster.content(upload_id) == content[winner]


async def test_a_question_for_the_offset_makes_what_another_replica_holds_safe_and_disturbs_nobody(
    cluster: Cluster,
) -> None:
    upload_id = await cluster.create(12)
    holding = await Holding(cluster.a, upload_id, 0, b"12345").arrived()
    assert (await cluster.b.head(upload_id, ANN)).size == 5
    assert (await cluster.a.head(upload_id, ANN)).size == 5
    assert (await holding.go_on(b"6789abc")).state == "received"
    assert await cluster.content(upload_id) == b"123456789abc"


@pytest.mark.parametrize("taker", ["a", "b"])
async def test_whoever_goes_on_where_a_request_stands_still_takes_the_upload_over(
    cluster: Cluster, taker: str
) -> None:
    """
    Setup: a request on replica a that has brought 5 bytes and stands still: its client has reconnected.
    Do: go on at 5, on either replica.
    Expect: the new request succeeds; the old one is ended, though it neither reads nor writes.
    """
    upload_id = await cluster.create(12)
    holding = await Holding(cluster.a, upload_id, 0, b"12345").arrived()
    record = await cluster.send(getattr(cluster, taker), upload_id, 5, b"6789abc")
    assert record.state == "received"
    async with refused(problems.OFFSET_MISMATCH), asyncio.timeout(30):
        await holding.request
    assert await cluster.content(upload_id) == b"123456789abc"


async def test_a_frozen_replica_that_thaws_can_add_nothing(cluster: Cluster) -> None:
    """
    Setup: replica a holds an upload with bytes in its segment beyond its last commit, and freezes.
    Do: replica b goes on from the last commit and finishes; then a thaws and writes on.
    Expect: a is told that it lost the upload; the content is what b's client was acknowledged.
    """
    first, lost, rest = os.urandom(COMMIT_EVERY), os.urandom(MIB), os.urandom(3 * MIB)
    upload_id = await cluster.create(len(first) + len(rest))
    holding = await Holding(cluster.a, upload_id, 0, first, lost).arrived()
    cluster.deaf.add("a")
    assert (await cluster.b.head(upload_id, ANN)).size == len(first)
    async with cluster.b.append(upload_id, offset=len(first), principal=ANN) as sink:
        await sink.write(rest[:MIB])
        async with refused(problems.OFFSET_MISMATCH):
            await holding.go_on(os.urandom(2 * MIB))
        await sink.write(rest[MIB:])
        await sink.finish()
    assert await cluster.content(upload_id) == first + rest


async def test_progress_is_safe_every_8_mib_though_nobody_asks(cluster: Cluster) -> None:
    upload_id = await cluster.create(100 * MIB)
    holding = await Holding(cluster.a, upload_id, 0, os.urandom(COMMIT_EVERY + 5)).arrived()
    assert (await cluster.b.get(upload_id, Principal(trusted=True))).size >= COMMIT_EVERY
    holding.request.cancel()
    await asyncio.gather(holding.request, return_exceptions=True)


async def test_what_a_broken_request_has_brought_stays(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)

    async def broken() -> None:
        async with cluster.a.append(upload_id, offset=0, principal=ANN) as sink:
            await sink.write(b"1234567")
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await broken()
    assert (await cluster.b.get(upload_id, Principal(trusted=True))).size == 7
    await cluster.send(cluster.b, upload_id, 7, b"890")
    assert await cluster.content(upload_id) == b"1234567890"


async def test_an_upload_is_complete_with_its_last_byte_whatever_becomes_of_the_request(
    cluster: Cluster,
) -> None:
    """A client that reads of its last byte in a HEAD sends nothing more. Such uploads were left to expire."""
    asked, broken = await cluster.create(5), await cluster.create(5)
    holding = await Holding(cluster.a, asked, 0, b"12345").arrived()
    assert (await cluster.b.head(asked, ANN)).state == "received"
    assert (await holding.go_on(b"")).state == "received"

    cut_off = Holding(cluster.a, broken, 0, b"12345")
    await cut_off.arrived()
    cut_off.request.cancel()
    await asyncio.gather(cut_off.request, return_exceptions=True)
    assert (await cluster.b.head(broken, ANN)).state == "received"
    assert await cluster.count(Job) == 2
    for upload_id in (asked, broken):
        assert await cluster.content(upload_id) == b"12345"


async def test_a_question_completes_what_a_replica_died_over(cluster: Cluster) -> None:
    """Setup: all bytes are there, their number was said, and the replica died before it was complete."""
    upload_id = await cluster.create()
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    async with cluster.database.transaction() as session:
        await session.execute(update(Upload).where(col(Upload.id) == upload_id).values(length=5))
    assert (await cluster.b.head(upload_id, ANN)).state == "received"
    assert await cluster.content(upload_id) == b"12345"


async def test_more_bytes_than_were_declared_are_refused_and_none_of_them_kept(cluster: Cluster) -> None:
    upload_id = await cluster.create(5)
    async with refused(problems.UPLOAD_TOO_LARGE):
        await cluster.send(cluster.a, upload_id, 0, b"123456")
    async with (
        refused(problems.UPLOAD_TOO_LARGE),
        cluster.a.append(upload_id, offset=0, principal=ANN, size=6),
    ):
        pytest.fail("it was taken")
    assert (await cluster.a.head(upload_id, ANN)).size == 0
    assert (await cluster.send(cluster.a, upload_id, 0, b"12345")).state == "received"


async def test_bytes_without_their_checksum_leave_the_offset_where_it_was(cluster: Cluster) -> None:
    upload_id = await cluster.create(8 + COMMIT_EVERY)
    await cluster.send(cluster.a, upload_id, 0, b"good")
    rest = os.urandom(4 + COMMIT_EVERY)
    right = Checksum("sha256", hashlib.sha256(rest).digest())

    async def send(data: bytes) -> UploadRecord:
        async with cluster.b.append(upload_id, offset=4, principal=ANN, checksum=right) as sink:
            await sink.write(data)
            assert (await cluster.a.get(upload_id, Principal(trusted=True))).size == 4
            return await sink.finish()

    async with refused(problems.CHECKSUM_MISMATCH):
        await send(bytes([rest[0] ^ 1]) + rest[1:])
    assert (await cluster.a.head(upload_id, ANN)).size == 4
    assert (await send(rest)).state == "received"
    assert await cluster.content(upload_id) == b"good" + rest


async def test_bytes_that_await_their_checksum_cost_the_database_no_more_than_others(
    cluster: Cluster,
) -> None:
    """Since nothing of them counted yet, every write behind the first 8 MiB was a transaction."""
    data = os.urandom(3 * COMMIT_EVERY)
    upload_id = await cluster.create(1 + len(data))
    checksum = Checksum("sha1", hashlib.sha1(data).digest())
    commits: list[object] = []
    async with cluster.a.append(upload_id, offset=0, principal=ANN, checksum=checksum) as sink:
        event.listen(cluster.database.engine.sync_engine, "commit", commits.append)
        for start in range(0, len(data), 65536):
            await sink.write(data[start : start + 65536])
        assert len(commits) < 8  # 3, and one for every 10 s that it takes
        assert (await sink.finish()).size == len(data)


async def test_bytes_that_never_count_are_not_kept(cluster: Cluster) -> None:
    """
    Setup: an upload with 5 of 10 bytes.
    Do: send the rest five times, with bytes that have not their checksum.
    Expect: nothing of that is in the store, and the upload goes on as if they had never come.
    """
    upload_id = await cluster.create(10)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    before = cluster.files()
    wrong = Checksum("sha1", hashlib.sha1(b"67890").digest())
    for _ in range(5):
        async with (
            refused(problems.CHECKSUM_MISMATCH),
            cluster.b.append(upload_id, offset=5, principal=ANN, checksum=wrong) as sink,
        ):
            await sink.write(b"wrong")
            await sink.finish()
    assert cluster.files() == before
    assert (await cluster.send(cluster.b, upload_id, 5, b"67890")).state == "received"
    assert await cluster.content(upload_id) == b"1234567890"
    assert cluster.files() == [object_key(upload_id, 1)]


async def test_a_fenced_writer_keeps_what_counts_and_no_more(cluster: Cluster) -> None:
    """
    Setup: two requests on a that stand still and cannot be asked: one has committed, the other has not.
    Do: go on with both on b; then the two write on, and are refused.
    Expect: the bytes that count are there, those that never will are not; both uploads become whole.
    """
    first = os.urandom(COMMIT_EVERY)
    counted, uncounted = await cluster.create(COMMIT_EVERY + 3), await cluster.create(2 * MIB + 3)
    holds = await Holding(cluster.a, counted, 0, first).arrived()
    writes = await Holding(cluster.a, uncounted, 0, os.urandom(2 * MIB)).arrived()
    assert segment_key(uncounted, 2) in cluster.files()
    cluster.deaf.add("a")
    await cluster.send(cluster.b, counted, COMMIT_EVERY, b"end")
    await cluster.send(cluster.b, uncounted, 0, bytes(2 * MIB) + b"end")
    for fenced in (holds, writes):
        async with refused(problems.OFFSET_MISMATCH):
            await fenced.go_on(b"end")
    assert cluster.files() == sorted(
        [segment_key(counted, 2), segment_key(counted, 3), segment_key(uncounted, 3)]
    )
    assert await cluster.content(counted) == first + b"end"
    assert await cluster.content(uncounted) == bytes(2 * MIB) + b"end"


async def test_what_a_killed_replica_wrote_and_did_not_commit_goes_when_the_upload_is_stored(
    cluster: Cluster,
) -> None:
    """A segment of an epoch that no row names stayed in the store for a day, and counted against no quota."""
    upload_id = await cluster.create(6)
    await cluster.send(cluster.a, upload_id, 0, b"123")
    async with cluster.database.transaction() as session:
        found = await rows.get_resumable(session, upload_id)
        assert found is not None
        await rows.take(session, found[0], replica="killed", length=None, limits=OPTIONS)
    killed = await cluster.store.open_segment(segment_key(upload_id, 3))
    await killed.write(b"4")
    await killed.close()
    await cluster.send(cluster.b, upload_id, 3, b"456")
    assert segment_key(upload_id, 3) in cluster.files()
    assert await cluster.content(upload_id) == b"123456"
    assert cluster.files() == [object_key(upload_id, 1)]


async def test_an_upload_survives_a_storage_that_is_away_for_longer_than_its_tries(cluster: Cluster) -> None:
    """
    Setup: an upload that is received; then its storage is away, as a file system that is not mounted.
    Do: have the job tried more often than it may fail; bring the storage back.
    Expect: the upload is stored, with no failure counted.
    """
    upload_id = await cluster.create(5)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    away = cluster.root.rename(cluster.root.with_name("away"))
    eager = RetryPolicy(first_delay=0, longest_wait=0, max_failures=2)
    queue = Queue(cluster.database, "b")
    worker = Worker(cluster.database, queue, cluster.b.handlers(), poll=0.05, retry=eager)
    await worker.start()
    async with asyncio.timeout(30):
        while (await cluster.job()).attempts < 5:  # noqa: ASYNC110  # a row in a database is no event
            await asyncio.sleep(0.01)
    await worker.stop()
    job = await cluster.job()
    assert (job.failures, job.last_error) == (0, "Unavailable: the storage directory is away")
    away.rename(cluster.root)
    assert await cluster.content(upload_id) == b"12345"
    assert cluster.files() == [object_key(upload_id, (await cluster.job()).attempts)]


async def test_a_hook_may_quote_any_bytes_when_it_rejects_a_file(cluster: Cluster) -> None:
    """PostgreSQL stores no NUL: such a rejection ended the job workers of all replicas, one by one."""

    @cluster.b.hooks.register("scan")
    async def scan(file: ReceivedFile) -> None:
        raise Rejected("it holds " + (await file.read(0, 3)).decode("latin1"))

    upload_id = await cluster.create(3)
    await cluster.send(cluster.a, upload_id, 0, b"a\0b")
    await cluster.worker.start()
    async with asyncio.timeout(30):
        while (record := await cluster.a.get(upload_id, ANN)).state != "failed":
            assert cluster.worker.alive
            await asyncio.sleep(0.01)
    assert record.error == "Rejected: it holds a�b"
    async with cluster.database.session() as session:
        event = (await session.execute(select(Outbox).order_by(col(Outbox.id).desc()).limit(1))).scalar_one()
    assert json.loads(event.data)["upload"]["error"] == record.error


class Mute(Rejected):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ENDINGS: dict[str, BaseException] = {
    "is cancelled": asyncio.CancelledError(),
    "exits": SystemExit(3),
    "is closed": GeneratorExit(),
    "says nothing": Mute(),
}


@pytest.mark.parametrize("ending", ["swallows its end", *ENDINGS])
async def test_a_hook_that_is_cut_off_or_ends_otherwise_has_not_passed(cluster: Cluster, ending: str) -> None:
    """A hook that ended without an answer was taken for one that said yes, or asked again without end."""
    asked = []

    @cluster.b.hooks.register("scan", time_limit=0.05 if ending == "swallows its end" else 600)
    async def scan(file: ReceivedFile) -> None:
        asked.append(file.key)
        if ending in ENDINGS:
            raise ENDINGS[ending]
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    upload_id = await cluster.create(5)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    eager = RetryPolicy(first_delay=0, max_failures=2)
    worker = Worker(
        cluster.database, Queue(cluster.database, "b"), cluster.b.handlers(), poll=0.05, retry=eager
    )
    await worker.start()
    async with asyncio.timeout(30):
        while (await cluster.job()).state not in {"dead", "done"}:  # noqa: ASYNC110  # a row is no event
            await asyncio.sleep(0.01)
    await worker.stop()
    record = await cluster.a.get(upload_id, ANN)
    how = "took longer than 0.05 seconds" if ending == "swallows its end" else "failed"
    assert (record.state, record.error) == (
        "failed",
        f"Given up after 2 failures: the hook “scan” {how}.",
    )
    assert asked == [f"{upload_id}:scan"] * 2
    assert cluster.files() == [segment_key(upload_id, 2)], "an attempt left its object"


async def test_a_length_may_be_said_later_and_then_holds(cluster: Cluster) -> None:
    upload_id = await cluster.create(None)
    assert (await cluster.send(cluster.a, upload_id, 0, b"12345")).length is None
    for length, kind in ((4, problems.LENGTH_FIXED), (10**12, problems.UPLOAD_TOO_LARGE)):
        async with refused(kind):
            await cluster.send(cluster.a, upload_id, 5, b"", length)
    assert (await cluster.send(cluster.a, upload_id, 5, b"6", 7)).length == 7
    async with refused(problems.LENGTH_FIXED):
        await cluster.send(cluster.b, upload_id, 6, b"", 8)
    async with refused(problems.UPLOAD_TOO_LARGE):
        await cluster.send(cluster.b, upload_id, 6, b"789")
    assert (await cluster.send(cluster.b, upload_id, 6, b"7")).state == "received"
    assert await cluster.content(upload_id) == b"1234567"


async def test_an_upload_that_was_accepted_is_received_though_the_limit_is_lower_now(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await cluster.create(8)
    monkeypatch.setattr(cluster.b, "options", cluster.b.options.model_copy(update={"max_size": 4}))
    async with cluster.b.append(upload_id, offset=0, principal=ANN, size=8) as sink:
        await sink.write(b"12345678")
        assert (await sink.finish()).state == "received"


async def test_a_request_without_bytes_at_the_end_changes_nothing(cluster: Cluster) -> None:
    upload_id = await cluster.create(5)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    for service in (cluster.a, cluster.b):
        assert (await cluster.send(service, upload_id, 5, b"")).size == 5
        async with refused(problems.UPLOAD_TOO_LARGE):
            await cluster.send(service, upload_id, 5, b"6")
    assert await cluster.count(Job) == 1


async def test_an_empty_upload_is_complete_when_it_is_created(cluster: Cluster) -> None:
    record = await create(cluster.a, length=0)
    assert record.state == "received"
    assert await cluster.content(record.id) == b""


async def test_an_empty_upload_that_could_not_be_completed_is_when_it_is_asked_for_again(
    cluster: Cluster,
) -> None:
    """It was acknowledged then, and stayed `receiving` until it expired: its client sends nothing more."""
    away = cluster.root.rename(cluster.root.with_name("away"))
    with pytest.raises(StoreError):
        await create(cluster.a, length=0, idempotency_key="k")
    with pytest.raises(StoreError):
        await create(cluster.a, length=0)
    assert await cluster.usage() == {
        "user:ann": (0, 1),
        "total": (0, 1),
    }  # of the one without a key nothing is left
    away.rename(cluster.root)
    record = await create(cluster.b, length=0, idempotency_key="k")
    assert record.state == "received"
    assert (await create(cluster.a, length=0, idempotency_key="k")).id == record.id
    assert await cluster.count(Job) == 1
    assert await cluster.content(record.id) == b""


async def test_parts_become_one_file_and_go_when_it_is_stored(cluster: Cluster) -> None:
    contents = [os.urandom(MIB), b"", os.urandom(5)]
    parts = [await cluster.create(len(content), partial=True) for content in contents]
    for part, content in zip(parts, contents, strict=True):
        await cluster.send(cluster.b, part, 0, content[:3])
        await cluster.send(cluster.a, part, len(content[:3]), content[3:])
    parts.reverse()

    async def concatenate(*ids: str, owner: str = "ann") -> UploadRecord:
        return await cluster.a.create_final(ids, filename="f", content_type="a/b", owner=owner)

    for strange in ([], ["0" * 32], [parts[0], parts[0]]):
        async with refused(problems.PARTS_UNUSABLE):
            await concatenate(*strange)
    async with refused(problems.PARTS_UNUSABLE):
        await concatenate(*parts, owner="bob")
    whole, again = await concatenate(*parts), await concatenate(*parts)
    assert (whole.id, whole.state, whole.parts) == (again.id, "received", tuple(parts))
    async with refused(problems.PARTS_UNUSABLE):
        await concatenate(*parts[:2])
    async with refused(problems.FORBIDDEN):
        await cluster.a.delete(parts[0], ANN)
    async with refused(problems.UPLOAD_IS_FINAL):
        await cluster.send(cluster.a, whole.id, whole.size, b"x")
    assert await cluster.content(whole.id) == b"".join(reversed(contents))
    assert [each.id for each in await cluster.a.page(10, None, Principal(trusted=True))] == [whole.id]
    await cluster.a.sweep()
    assert cluster.files() == [object_key(whole.id, 1)]
    assert await cluster.usage() == {"user:ann": (whole.size, 1), "total": (whole.size, 1)}


async def test_parts_count_as_one_file_once_they_are_put_together(start: Start) -> None:
    """They counted beside the whole until the sweep: who had room for the parts was refused the file."""
    cluster = await start(UploadOptions(min_free=0, user_max_files=3))
    parts = [await cluster.create(1, partial=True) for _ in range(3)]
    for part in parts:
        await cluster.send(cluster.a, part, 0, b"x")
    whole = await cluster.a.create_final(parts, filename="f", content_type="a/b", owner="ann")
    one = {"user:ann": (3, 1), "total": (3, 1)}
    assert await cluster.usage() == one
    assert await cluster.content(whole.id) == b"xxx"
    await cluster.a.sweep()
    assert (await cluster.usage(), cluster.files()) == (one, [object_key(whole.id, 1)])
    await cluster.a.delete(whole.id, ANN)
    assert await cluster.usage() == {"user:ann": (0, 0), "total": (0, 0)}


async def test_an_upload_that_nobody_goes_on_with_expires_and_says_so(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)
    await cluster.send(cluster.a, upload_id, 0, b"12345")
    await cluster.age(upload_id)
    for sweep in (False, True):
        if sweep:
            await cluster.b.sweep()
            assert cluster.files() == []
        async with refused(problems.EXPIRED):
            await cluster.b.head(upload_id, ANN)
        async with refused(problems.EXPIRED):
            await cluster.send(cluster.b, upload_id, 5, b"67890")
    assert (await cluster.usage())["total"] == (0, 0)
    await cluster.age(upload_id)
    await cluster.b.sweep()
    async with refused(problems.NOT_FOUND):
        await cluster.b.head(upload_id, ANN)
    assert await cluster.count(Upload) == 0


async def test_a_terminated_upload_is_gone_and_its_writer_is_told(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)
    holding = await Holding(cluster.a, upload_id, 0, b"12345").arrived()
    await cluster.b.terminate(upload_id, ANN)
    async with refused(problems.OFFSET_MISMATCH):
        await holding.go_on(b"67890")
    assert (await cluster.count(Upload), await cluster.count(UploadSegment)) == (0, 0)
    async with refused(problems.NOT_FOUND):
        await cluster.a.head(upload_id, ANN)


@pytest.mark.parametrize("kind", ["file", "s3"])
@pytest.mark.parametrize("ending", ["more", "nothing", "too much"])
async def test_what_a_writer_brings_to_an_upload_that_is_gone_goes_with_it(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path, kind: str, ending: str
) -> None:
    """
    Setup: a request that has committed 8 MiB, and is being sent more.
    Do: remove the upload; the request brings more bytes then, or too many, or ends.
    Expect: nothing is in the store. On S3 its next object came back, outside every quota, for a day.
    """
    url = f"file://{tmp_path}/files" if kind == "file" else request.getfixturevalue("s3_url")
    store = store_from_url(url)
    assert isinstance(store, Listable)
    async with running(database_url, store, OPTIONS) as cluster:
        upload_id = await cluster.create(4 * COMMIT_EVERY)
        holding = await Holding(cluster.a, upload_id, 0, bytes(COMMIT_EVERY), bytes(MIB)).arrived()
        await cluster.b.terminate(upload_id, ANN)
        more = {"more": 9 * MIB, "nothing": 0, "too much": 4 * COMMIT_EVERY}[ending]
        with pytest.raises(Problem):
            await holding.go_on(bytes(more))
        assert [each.key async for each in store.kept()] == []


async def test_only_its_owner_or_the_key_goes_on_with_an_upload(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)
    for stranger in (BOB, Principal()):
        async with refused(problems.FORBIDDEN):
            await cluster.a.head(upload_id, stranger)
        async with refused(problems.FORBIDDEN), cluster.a.append(upload_id, offset=0, principal=stranger):
            pass
        async with refused(problems.FORBIDDEN):
            await cluster.a.terminate(upload_id, stranger)
    assert (await cluster.b.head(upload_id, Principal(trusted=True))).size == 0


async def test_quotas_hold_though_two_replicas_create_at_the_same_moment(start: Start) -> None:
    cluster = await start(OPTIONS.model_copy(update={"user_quota": 1000, "user_max_files": 3}))
    services = (cluster.a, cluster.b)
    outcomes = await asyncio.gather(
        *(create(services[n % 2], length=300) for n in range(8)), return_exceptions=True
    )
    made = [outcome.id for outcome in outcomes if isinstance(outcome, UploadRecord)]
    kinds = {outcome.kind for outcome in outcomes if isinstance(outcome, Problem)}
    assert (len(made), kinds) == (3, {problems.QUOTA_EXCEEDED})
    await create(cluster.a, length=300, owner="bob")
    await create(cluster.a, length=9000, owner=None)
    await cluster.a.delete(made[0], ANN)
    async with refused(problems.QUOTA_EXCEEDED):
        await create(cluster.b, length=401)
    await create(cluster.b, length=400)


async def test_an_upload_of_unknown_length_stops_at_the_quota(start: Start) -> None:
    cluster = await start(OPTIONS.model_copy(update={"total_quota": COMMIT_EVERY + 10}))
    upload_id = await cluster.create(None)
    async with refused(problems.QUOTA_EXCEEDED):
        await cluster.send(cluster.a, upload_id, 0, bytes(2 * COMMIT_EVERY))
    size = (await cluster.a.get(upload_id, Principal(trusted=True))).size
    assert (await cluster.usage())["total"] == (size, 1)
    await cluster.a.delete(upload_id, ANN)
    assert (await cluster.usage())["total"] == (0, 0)


@pytest.mark.parametrize("quota", ["user_quota", "total_quota"])
async def test_of_two_of_unknown_length_that_end_at_once_only_one_fits_into_the_quota(
    start: Start, quota: str
) -> None:
    """
    The bytes since the last commit were added to what is used, and never compared with the quota: any number
    of uploads below 8 MiB went through.

    Setup: on each of two replicas a request of unknown length that has brought 3 MiB; the quota is 4.
    Do: end both at once.
    Expect: one is received; of the other nothing is left, nor counted; what still fits is taken.
    """
    cluster = await start(OPTIONS.model_copy(update={quota: 4 * MIB}))
    all_here = asyncio.Barrier(2)

    async def send(service: UploadService) -> UploadRecord:
        async with service.intake.receive(filename="f", content_type="a/b", owner="ann") as sink:
            await sink.write(bytes(3 * MIB))
            await all_here.wait()
            return await sink.finish()

    outcomes = await asyncio.gather(send(cluster.a), send(cluster.b), return_exceptions=True)
    (record,) = (outcome for outcome in outcomes if isinstance(outcome, UploadRecord))
    (error,) = (outcome for outcome in outcomes if isinstance(outcome, Problem))
    assert (error.kind, error.extra) == (problems.QUOTA_EXCEEDED, {"limit": 4 * MIB})
    assert cluster.files() == [segment_key(record.id, 1)]
    assert await cluster.count(Upload) == await cluster.count(Job) == 1
    assert await cluster.usage() == {"user:ann": (3 * MIB, 1), "total": (3 * MIB, 1)}
    async with cluster.a.intake.receive(filename="f", content_type="a/b", owner="ann") as sink:
        await sink.write(bytes(MIB))
        assert (await sink.finish()).state == "received"


async def test_below_the_watermark_nothing_is_accepted(start: Start) -> None:
    cluster = await start(OPTIONS.model_copy(update={"min_free": 2**62}))
    with pytest.raises(Problem) as caught:
        await cluster.create(10)
    assert caught.value.kind is problems.DISK_FULL
    assert caught.value.retry_after
    assert await cluster.count(Upload) == 0


async def test_the_same_key_of_the_same_owner_is_the_same_upload(cluster: Cluster) -> None:
    async def created(**given: object) -> str:
        return (await create(cluster.a, length=5, **given)).id

    first = await created(idempotency_key="k")
    assert await created(idempotency_key="k") == first
    others = {await created(idempotency_key="l"), await created(idempotency_key="k", owner="bob")}
    assert len(others - {first}) == 2
    await cluster.send(cluster.a, first, 0, b"12345")
    assert await created(idempotency_key="k") == first
    whole: dict[str, Any] = {"filename": "f", "content_type": "a/b", "owner": "ann", "idempotency_key": "w"}
    async with cluster.a.intake.receive(**whole) as sink:
        await sink.write(b"once")
        second = (await sink.finish()).id
    for length in (None, 4):
        with pytest.raises(AlreadyReceived) as caught:
            async with cluster.b.intake.receive(**whole, length=length):
                pass
        assert caught.value.record.id == second


async def test_a_key_is_not_taken_for_another_upload(cluster: Cluster) -> None:
    """It was answered with the first one, and who sent the second threw away the only copy of a file."""
    tus: dict[str, Any] = {"filename": "f", "owner": "ann", "length": 5, "idempotency_key": "tus"}
    whole: dict[str, Any] = {
        "filename": "f",
        "content_type": "a/b",
        "owner": "ann",
        "length": 4,
        "idempotency_key": "whole",
    }

    async def others_are_refused() -> None:
        for given in (
            tus | {"length": 6},
            tus | {"filename": "g"},
            tus | {"partial": True},
            tus | {"length": 4, "idempotency_key": "whole"},
        ):
            async with refused(problems.IDEMPOTENCY_KEY_REUSED):
                await create(cluster.b, **given)
        for given in (
            whole | {"length": 5},
            whole | {"length": None, "filename": "g"},
            whole | {"length": 5, "idempotency_key": "tus"},
        ):
            async with refused(problems.IDEMPOTENCY_KEY_REUSED), cluster.b.intake.receive(**given):
                pass

    first = await create(cluster.a, **tus)
    async with cluster.a.intake.receive(**whole) as sink:
        await sink.write(b"1234")
        await others_are_refused()  # nor do they replace what is on its way
        second = await sink.finish()
    await cluster.send(cluster.a, first.id, 0, b"12345")
    await others_are_refused()
    assert (await cluster.content(first.id), await cluster.content(second.id)) == (b"12345", b"1234")
    assert await cluster.count(Upload) == 2


async def test_a_key_of_an_upload_without_a_length_is_not_taken_for_one_that_has_one(
    cluster: Cluster,
) -> None:
    """Its client would send all the bytes, and nobody would know that they are all."""
    first = await create(cluster.a, idempotency_key="k")
    async with refused(problems.IDEMPOTENCY_KEY_REUSED):
        await create(cluster.b, length=5, idempotency_key="k")
    async with cluster.a.append(first.id, offset=0, principal=ANN, length=5) as sink:
        await sink.write(b"12")
    assert (await create(cluster.b, idempotency_key="k")).size == 2


async def test_a_key_is_not_taken_for_another_concatenation(cluster: Cluster) -> None:
    parts = []
    for content in (b"a", b"b"):
        part = (await create(cluster.a, length=1, partial=True)).id
        await cluster.send(cluster.a, part, 0, content)
        parts.append(part)
    whole: dict[str, Any] = {
        "filename": "f",
        "content_type": "a/b",
        "owner": "ann",
        "idempotency_key": "k",
    }
    made = await cluster.a.create_final(parts[:1], **whole)
    assert (await cluster.b.create_final(parts[:1], **whole)).id == made.id
    async with refused(problems.IDEMPOTENCY_KEY_REUSED):
        await cluster.b.create_final(parts[1:], **whole)
    async with refused(problems.IDEMPOTENCY_KEY_REUSED):
        await create(cluster.b, length=1, idempotency_key="k")
    assert (await cluster.b.create_final(parts[1:], **whole | {"idempotency_key": "l"})).size == 1


async def test_the_key_of_an_upload_that_has_expired_begins_a_new_one(cluster: Cluster) -> None:
    """Until the sweep came by it was answered with an address that answers 410."""
    first = await create(cluster.a, length=5, idempotency_key="k")
    await cluster.send(cluster.a, first.id, 0, b"12")
    await cluster.age(first.id)
    second = await create(cluster.b, length=5, idempotency_key="k")
    assert (second.id != first.id, second.size) == (True, 0)
    async with refused(problems.EXPIRED):
        await cluster.a.head(first.id, ANN)
    assert await cluster.usage() == {"user:ann": (5, 1), "total": (5, 1)}


async def test_a_request_sent_again_replaces_the_one_that_never_arrived(cluster: Cluster) -> None:
    """The first one's connection is dead, but its replica does not know yet; its client tries again."""
    again = {"filename": "f", "content_type": "a/b", "owner": "ann", "idempotency_key": "k"}
    async with cluster.b.intake.receive(**again) as retry_sink:  # type: ignore[arg-type]
        await retry_sink.write(b"first")
        async with cluster.a.intake.receive(**again) as sink:  # type: ignore[arg-type]
            await sink.write(b"second")
            record = await sink.finish()
        async with refused(problems.UPLOAD_NOT_STORED):
            await retry_sink.finish()
    assert await cluster.content(record.id) == b"second"
    assert await cluster.count(Upload) == 1


async def test_bytes_of_no_upload_are_removed_once_they_are_old(cluster: Cluster) -> None:
    stored = await cluster.create(5)
    await cluster.send(cluster.a, stored, 0, b"12345")
    await cluster.content(stored)
    waiting = await cluster.create(10)
    await cluster.send(cluster.a, waiting, 0, b"12345")
    needed = cluster.files()
    for key in (segment_key("0" * 32, 1), object_key("0" * 32, 1), object_key(stored, 2)):
        path = cluster.root / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left")
    assert isinstance(cluster.store, Listable)
    assert await remove_orphans(cluster.database, cluster.store, older_than=3600) == 0
    assert await remove_orphans(cluster.database, cluster.store, older_than=-1) == 3
    assert cluster.files() == needed


async def test_every_change_of_state_is_in_the_outbox_once_for_the_upload_and_for_the_feed(
    cluster: Cluster,
) -> None:
    upload_id = await cluster.create(5)
    await cluster.send(cluster.a, upload_id, 0, b"123")
    await cluster.send(cluster.b, upload_id, 3, b"45")
    await cluster.content(upload_id)
    await cluster.a.delete(upload_id, ANN)
    await cluster.create(5, partial=True)  # of parts nothing is told
    async with cluster.database.session() as session:
        events = (await session.execute(select(Outbox).order_by(col(Outbox.id)))).scalars().all()
    for channel in (f"uploads:{upload_id}", "uploads:feed"):
        told = [json.loads(event.data) for event in events if event.channel == channel]
        assert [event["upload"].get("state") for event in told] == [
            *("receiving", "received", "processing", "stored", "expired", None)
        ]
        assert [event["event"] for event in told] == ["changed"] * 5 + ["deleted"]


async def test_progress_is_told_to_those_who_watch_the_upload(cluster: Cluster) -> None:
    upload_id = await cluster.create(10)
    async with cluster.a.append(upload_id, offset=0, principal=ANN) as sink:
        async with asyncio.timeout(30):
            while not any(channel == f"uploads:{upload_id}" for channel, _ in cluster.published):
                await asyncio.sleep(0.05)
                await sink.write(b"")
