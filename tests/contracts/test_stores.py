"""What every store must do, whatever keeps its bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bongsu.uploads.stores import (
    Listable,
    ObjectMissing,
    Piece,
    Store,
    StoreError,
    store_from_url,
)
from bongsu.uploads.stores.base import object_key, segment_key

ID = "01a20b9add5377cdbe9f6b0cc99be853"
OTHER = "01a20b9add5377cdbe9f6b0cc99be854"
MIB = 1024 * 1024


@pytest.fixture(params=["file", "memory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    urls = {"file": f"file://{tmp_path}/made/by-the-store", "memory": "memory://"}
    made = store_from_url(urls.get(request.param) or request.getfixturevalue("s3_url"))
    await made.start()
    yield made
    await made.stop()


async def put(store: Store, key: str, *writes: bytes) -> Piece:
    writer = await store.open_segment(key)
    for data in writes:
        await writer.write(data)
    await writer.commit()
    await writer.close()
    return Piece(key, sum(map(len, writes)))


async def put_object(store: Store, content: bytes) -> str:
    key = object_key(ID, 1)
    await store.compose([await put(store, segment_key(ID, 1), content)], key)
    return key


async def content(store: Store, key: str) -> bytes:
    reader = await store.open(key)
    try:
        chunks = [await reader.read(offset, MIB) for offset in range(0, reader.size, MIB)]
    finally:
        await reader.close()
    return b"".join(chunks)


async def kept(store: Store) -> dict[str, float]:
    assert isinstance(store, Listable)
    return {entry.key: entry.age async for entry in store.kept()}


async def test_an_object_is_what_was_written_to_its_segment(store: Store) -> None:
    writes = [os.urandom(n) for n in (1, MIB, 3)]
    piece = await put(store, segment_key(ID, 1), *writes)
    await store.compose([piece], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"".join(writes)


async def test_an_object_of_several_segments_has_them_in_order(store: Store) -> None:
    pieces = [
        await put(store, segment_key(ID, epoch), data)
        for epoch, data in enumerate((b"one", b"", b"three", b""), 1)
    ]
    await store.compose(pieces, object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"onethree"


async def test_an_object_may_have_segments_of_several_uploads(store: Store) -> None:
    first = await put(store, segment_key(OTHER, 12), b"one")
    second = await put(store, segment_key(ID, 2), b"two")
    third = await put(store, segment_key(OTHER, 1), b"three")
    await store.compose([first, second, third], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"onetwothree"


async def test_a_large_object_of_commits_of_all_sizes_is_whole(store: Store) -> None:
    """Some commits are larger than what S3 takes as a part (5 MiB), some are not; in every neighbourhood."""
    sizes = [8 * MIB, 1, 8 * MIB, 8 * MIB, 300_000, 5, 6 * MIB, 3 * MIB, 4 * MIB, 17]
    data = os.urandom(sum(sizes))
    pieces, start = [], 0
    for epoch in (1, 2):
        writer = await store.open_segment(segment_key(ID, epoch))
        begun = start
        for size in sizes[(epoch - 1) * 5 :][:5]:
            for at in range(start, start + size, MIB):
                await writer.write(data[at : min(at + MIB, start + size)])
            await writer.commit()
            start += size
        await writer.close()
        pieces.append(Piece(segment_key(ID, epoch), start - begun))
    await store.compose(pieces, object_key(ID, 1))
    reader = await store.open(object_key(ID, 1))
    assert reader.size == len(data)
    await reader.close()
    assert hashlib.sha256(await content(store, object_key(ID, 1))).digest() == hashlib.sha256(data).digest()


async def test_only_what_a_piece_names_of_its_segment_counts(store: Store) -> None:
    """Setup: a writer that was cut off wrote more than it could commit to the database."""
    first = await put(store, segment_key(ID, 1), b"one, and lost")
    last = await put(store, segment_key(ID, 2), b"two, and lost")
    await store.compose([Piece(first.key, 3), Piece(last.key, 3)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"onetwo"
    await store.compose([Piece(last.key, 3)], object_key(ID, 2))
    assert await content(store, object_key(ID, 2)) == b"two"


async def test_a_frozen_writer_that_thaws_does_not_change_the_object(store: Store) -> None:
    """The upload was finished by a later epoch, which had no byte left to add."""
    frozen = await store.open_segment(segment_key(ID, 1))
    await frozen.write(b"all of it")
    await frozen.commit()
    last = await put(store, segment_key(ID, 2))
    await store.compose([Piece(segment_key(ID, 1), 9), last], object_key(ID, 1))
    await frozen.write(b" and what came too late")
    await frozen.commit()
    await frozen.close()
    assert await content(store, object_key(ID, 1)) == b"all of it"


async def test_an_empty_file_is_a_file(store: Store) -> None:
    await store.compose([await put(store, segment_key(ID, 1))], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b""
    await store.compose([], object_key(ID, 2))
    assert await content(store, object_key(ID, 2)) == b""


async def test_composing_again_replaces_what_an_interrupted_try_left(store: Store) -> None:
    await store.compose([await put(store, segment_key(ID, 1), b"old")], object_key(ID, 1))
    await store.compose([await put(store, segment_key(ID, 2), b"new")], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"new"


async def test_attempts_do_not_touch_each_other(store: Store) -> None:
    piece = await put(store, segment_key(ID, 1), b"bytes")
    for attempt in (1, 2):
        await store.compose([piece], object_key(ID, attempt))
    await store.delete(object_key(ID, 1))
    await store.delete(segment_key(ID, 1))
    assert await content(store, object_key(ID, 2)) == b"bytes"


async def test_a_segment_has_one_writer(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"first")
    with pytest.raises(StoreError, match="exists already"):
        await store.open_segment(segment_key(ID, 1))


async def test_uploads_at_one_time_do_not_mix(store: Store) -> None:
    async def upload(epoch: int) -> None:
        data = bytes([epoch]) * 700_001
        piece = await put(
            store, segment_key(ID, epoch), *(data[at : at + 99_999] for at in range(0, 700_001, 99_999))
        )
        await store.compose([piece], object_key(ID, epoch))
        assert await content(store, object_key(ID, epoch)) == data

    async with asyncio.TaskGroup() as uploads:
        for epoch in range(1, 21):
            uploads.create_task(upload(epoch))


async def test_what_a_writer_was_given_may_change_afterwards(store: Store) -> None:
    batch = bytearray(b"first ")
    writer = await store.open_segment(segment_key(ID, 1))
    await writer.write(batch)
    batch[:] = b"second"
    await writer.write(memoryview(batch))
    batch[:] = b"third!"
    await writer.commit()
    await writer.close()
    await store.compose([Piece(segment_key(ID, 1), 12)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"first second"


async def test_any_part_can_be_read(store: Store) -> None:
    reader = await store.open(await put_object(store, b"0123456789"))
    assert reader.size == 10
    assert await reader.read(3, 4) == b"3456"
    assert await reader.read(7, 2) == b"78"
    assert await reader.read(0, 1) == b"0"
    assert await reader.read(8, 100) == b"89"
    assert await reader.read(10, 1) == b""
    await reader.close()


async def test_a_reader_never_shows_another_objects_bytes(store: Store) -> None:
    """Deleted, or replaced, while it is read: its bytes where the store can keep them, else a clear error."""
    key = await put_object(store, b"0123456789")
    reader = await store.open(key)
    assert await reader.read(0, 3) == b"012"
    await store.delete(key)
    await read_or_missing(reader.read(3, 7), b"3456789")
    await store.compose([await put(store, segment_key(ID, 2), b"abcdefghijkl")], key)
    await read_or_missing(reader.read(0, 10), b"0123456789")
    await reader.close()


async def read_or_missing(read: Coroutine[Any, Any, bytes], expected: bytes) -> None:
    with suppress(ObjectMissing):
        assert await read == expected


async def test_what_is_not_there_is_missing_and_may_be_deleted(store: Store) -> None:
    with pytest.raises(ObjectMissing):
        await store.open(object_key(ID, 1))
    await store.delete(object_key(ID, 1))
    await store.delete(segment_key(ID, 1))


async def test_without_one_of_its_segments_nothing_is_composed(store: Store) -> None:
    """Expect: no object of the rest either, neither when a segment is gone nor when it is too short."""
    there = await put(store, segment_key(ID, 1), b"there")
    gone, short = Piece(segment_key(ID, 2), 4), await put(store, segment_key(ID, 3), b"12")
    for broken in (gone, Piece(short.key, 3)):
        for pieces in ([broken], [there, broken], [broken, there]):
            with pytest.raises(ObjectMissing):
                await store.compose(pieces, object_key(ID, 1))
            with pytest.raises(ObjectMissing):
                await store.open(object_key(ID, 1))
    assert set(await kept(store)) == {segment_key(ID, 1), segment_key(ID, 3)}


async def test_a_deleted_segment_is_gone_whole_and_alone(store: Store) -> None:
    """Setup: epochs 1 and 12 of one upload; one's key begins as the other's."""
    await put(store, segment_key(ID, 1), b"one")
    other = await put(store, segment_key(ID, 12), b"twelve")
    await store.delete(segment_key(ID, 1))
    with pytest.raises(ObjectMissing):
        await store.compose([Piece(segment_key(ID, 1), 3)], object_key(ID, 1))
    await store.compose([other], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"twelve"


async def test_all_that_is_kept_is_listed_once_with_its_age_and_can_be_removed(store: Store) -> None:
    segments = [await put(store, segment_key(ID, epoch), b"bytes") for epoch in (1, 2)]
    open_one = await store.open_segment(segment_key(OTHER, 1))
    await open_one.write(b"bytes")
    await open_one.commit()
    await store.compose(segments, object_key(ID, 1))
    await store.compose(segments, object_key(OTHER, 1))
    ages = await kept(store)
    assert set(ages) == {
        *(piece.key for piece in segments),
        segment_key(OTHER, 1),
        object_key(ID, 1),
        object_key(OTHER, 1),
    }
    assert all(0 <= age < 600 for age in ages.values())
    for key in ages:
        await store.delete(key)
    await open_one.close()
    assert await kept(store) == {}


async def test_a_writer_whose_segment_was_removed_brings_nothing_back_that_is_not_listed(
    store: Store,
) -> None:
    """A frozen writer thaws after its upload was deleted: what it still writes can be found and removed."""
    writer = await store.open_segment(segment_key(ID, 1))
    await writer.write(b"bytes")
    await writer.commit()
    await store.delete(segment_key(ID, 1))
    await writer.write(b"more")
    await writer.commit()
    await writer.close()
    for key in await kept(store):
        await store.delete(key)
    assert await kept(store) == {}


async def test_after_a_cancelled_write_what_came_before_it_can_be_committed(store: Store) -> None:
    """Setup: a request that is cut off in the middle of a batch."""
    writer = await store.open_segment(segment_key(ID, 1))
    await writer.write(b"before")
    writing = asyncio.create_task(writer.write(bytes(64 * MIB)))
    await asyncio.sleep(0)  # one turn of the loop: the write is on its way
    writing.cancel()
    with suppress(asyncio.CancelledError):  # a store in memory is done already
        await writing
    await writer.commit()
    await writer.close()
    await store.compose(
        [Piece(segment_key(ID, 1), 6), await put(store, segment_key(ID, 2))], object_key(ID, 1)
    )
    assert await content(store, object_key(ID, 1)) == b"before"


async def test_a_cancelled_composition_leaves_what_the_next_one_replaces(store: Store) -> None:
    pieces = [await put(store, segment_key(ID, epoch), bytes(9 * MIB)) for epoch in (1, 2)]
    for turns in range(12):
        composing = asyncio.create_task(store.compose(pieces, object_key(ID, 1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        composing.cancel()
        with suppress(asyncio.CancelledError):
            await composing
    await store.compose(pieces, object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == bytes(18 * MIB)
    assert set(await kept(store)) == {*(piece.key for piece in pieces), object_key(ID, 1)}
