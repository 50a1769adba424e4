"""What only a store on S3 can get wrong, with a real server of it behind a network that breaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
from tests.faults import Fault, FaultProxy
from tests.servers import S3Server, free_port

from bongsu.uploads.stores import Piece, Store, StoreUnavailable, store_from_url
from bongsu.uploads.stores.base import object_key, segment_key
from bongsu.uploads.stores.s3.bucket import Bucket
from bongsu.uploads.stores.s3.store import S3Store

ID = "01a20b9add5377cdbe9f6b0cc99be853"
MIB = 1024 * 1024


@pytest.fixture
def network(s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


@pytest.fixture
async def store(s3_url: str, network: FaultProxy) -> AsyncIterator[S3Store]:
    made = store_from_url(s3_url)
    assert isinstance(made, S3Store)
    await made.start()
    yield made
    await made.stop()


async def put(store: Store, epoch: int, data: bytes) -> Piece:
    writer = await store.open_segment(segment_key(ID, epoch))
    await writer.write(data)
    await writer.commit()
    await writer.close()
    return Piece(segment_key(ID, epoch), len(data))


async def content(store: Store, key: str) -> bytes:
    reader = await store.open(key)
    chunks = [await reader.read(offset, MIB) for offset in range(0, reader.size, MIB)]
    await reader.close()
    return b"".join(chunks)


async def test_the_server_puts_large_files_together_and_no_byte_comes_to_us(
    store: S3Store, network: FaultProxy
) -> None:
    data = os.urandom(20 * MIB)
    pieces = [await put(store, 1, data)]
    before = network.carried
    await store.compose(pieces, object_key(ID, 1))
    assert network.carried - before < 100_000
    assert await content(store, object_key(ID, 1)) == data


async def test_many_writers_hold_no_more_memory_than_few(
    store: S3Store, s3_server: S3Server, s3_url: str
) -> None:
    """What waits in memory is sent when a writer's share of 16 MiB is full: its objects are not larger."""
    writers = [await store.open_segment(segment_key(ID, epoch)) for epoch in range(1, 65)]
    for writer in writers[:2]:
        await writer.write(bytes(700_000))
        await writer.commit()
    for writer in writers:
        await writer.close()
    alone = await store.open_segment(segment_key(ID, 65))
    await alone.write(bytes(9 * MIB))
    await alone.commit()
    await alone.close()
    prefix = s3_url.removeprefix("s3://bongsu/")
    listed = s3_server.client().list_objects_v2(Bucket="bongsu", Prefix=f"{prefix}/segments/")["Contents"]
    assert [entry["Size"] for entry in listed] == [
        *(262_144, 262_144, 175_712) * 2,
        *(8 * MIB, MIB),
    ]


async def test_a_commit_that_failed_can_be_repeated_and_brings_each_byte_once(
    store: S3Store, network: FaultProxy
) -> None:
    writer = await store.open_segment(segment_key(ID, 1))
    await writer.write(b"first ")
    with network.away(), pytest.raises(StoreUnavailable):
        await writer.commit()
    await writer.commit()
    await writer.close()
    await store.compose([Piece(segment_key(ID, 1), 6), await put(store, 2, b"second")], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"first second"


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize(("after", "direction"), [(0, "up"), (2 * MIB, "up"), (1, "down")])
async def test_a_connection_that_breaks_in_a_commit_is_not_noticed(
    store: S3Store, network: FaultProxy, kind: str, after: int, direction: str
) -> None:
    """Also when the object had arrived, and only the answer was lost."""
    writer = await store.open_segment(segment_key(ID, 1))
    data = os.urandom(3 * MIB)
    await writer.write(data)
    network.break_open("cut")  # the next request needs a new connection
    network.break_next(Fault(kind, after, direction))  # type: ignore[arg-type]
    await writer.commit()
    await writer.close()
    assert network.happened == 1
    await store.compose([Piece(segment_key(ID, 1), len(data))], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == data


async def test_a_download_goes_on_when_its_connection_breaks(store: S3Store, network: FaultProxy) -> None:
    data = os.urandom(6 * MIB)
    await store.compose([await put(store, 1, data)], object_key(ID, 1))
    reader = await store.open(object_key(ID, 1))
    chunks = [await reader.read(0, MIB), await reader.read(MIB, MIB)]
    network.break_open("reset")
    chunks += [await reader.read(offset, MIB) for offset in range(2 * MIB, 6 * MIB, MIB)]
    await reader.close()
    assert b"".join(chunks) == data


async def test_a_composition_that_was_cut_off_is_listed_and_can_be_removed(
    store: S3Store, s3_server: S3Server, s3_url: str
) -> None:
    """Setup: what a replica leaves that is killed between beginning and ending a multipart upload."""
    client, prefix = s3_server.client(), s3_url.removeprefix("s3://bongsu/")
    for attempt in (1, 12):
        client.create_multipart_upload(Bucket="bongsu", Key=f"{prefix}/{object_key(ID, attempt)}")
    ages = {kept.key: kept.age async for kept in store.kept()}
    assert set(ages) == {object_key(ID, 1), object_key(ID, 12)}
    assert all(0 <= age < 600 for age in ages.values())
    await store.delete(object_key(ID, 1))
    assert [kept.key async for kept in store.kept()] == [object_key(ID, 12)]
    await store.delete(object_key(ID, 12))
    assert [kept.key async for kept in store.kept()] == []


async def start(url: str) -> str:
    """What a store that cannot start says."""
    store = store_from_url(url)
    with pytest.raises(StoreUnavailable) as caught:
        await store.start()
    await store.stop()
    return str(caught.value)


async def test_a_missing_bucket_is_named(s3_url: str) -> None:
    assert "there is no bucket “elsewhere”: create it" in await start("s3://elsewhere/x")


async def test_wrong_credentials_are_said_to_be_wrong(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    said = await start(s3_url)
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert "wrong-and-secret" not in said


async def test_without_credentials_it_says_which_to_set(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # nobody at 169.254.169.254 is asked for a role
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in await start(s3_url)


async def test_a_server_that_is_not_there_is_said_not_to_be(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    assert "S3 cannot be reached" in await start(s3_url)


async def test_a_server_that_hangs_keeps_a_request_waiting_for_one_bound_and_not_for_one_with_each_try(
    network: FaultProxy, s3_url: str
) -> None:
    """Each of four tries waited 30 seconds for its answer: a client was told 503 after minutes."""
    bucket = Bucket("bongsu", s3_url.rpartition("/")[2], patience=timedelta(seconds=0.5))
    await bucket.start()
    try:
        await bucket.put("a", b"kept")
        with network.away("stall"):
            async with asyncio.timeout(20):  # less than one try had
                with pytest.raises(StoreUnavailable):
                    [entry async for entry in bucket.entries("a")]
                with pytest.raises(StoreUnavailable):
                    await bucket.delete(["b"])
                with pytest.raises(StoreUnavailable):
                    await bucket.unfinished("a")
        assert [entry.key async for entry in bucket.entries("a")] == ["a"]
    finally:
        await bucket.stop()
