"""What every store must do, whatever keeps its bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bongsu.uploads.stores import LocalStore, ObjectMissing, Store, StoreError
from bongsu.uploads.stores.base import object_key, segment_key

ID = "01a20b9add5377cdbe9f6b0cc99be853"


@pytest.fixture(params=["local"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = {"local": lambda: LocalStore(tmp_path / "made" / "by the store")}[request.param]()
    await made.start()
    yield made
    await made.stop()


async def put(store: Store, key: str, *pieces: bytes) -> None:
    writer = await store.open_segment(key)
    for piece in pieces:
        await writer.write(piece)
    await writer.commit()
    await writer.close()


async def content(store: Store, key: str) -> bytes:
    reader = await store.open(key)
    try:
        return await reader.read(0, reader.size)
    finally:
        await reader.close()


async def test_an_object_is_what_was_written_to_its_segment(store: Store) -> None:
    pieces = [os.urandom(n) for n in (1, 1024 * 1024, 3)]
    await put(store, segment_key(ID, 1), *pieces)
    await store.compose([segment_key(ID, 1)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"".join(pieces)


async def test_an_object_of_several_segments_has_them_in_order(store: Store) -> None:
    for epoch, piece in enumerate((b"one", b"", b"three"), 1):
        await put(store, segment_key(ID, epoch), piece)
    await store.compose([segment_key(ID, epoch) for epoch in (1, 2, 3)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"onethree"


async def test_an_empty_file_is_a_file(store: Store) -> None:
    await put(store, segment_key(ID, 1))
    await store.compose([segment_key(ID, 1)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b""


async def test_composing_again_replaces_what_an_interrupted_try_left(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"old")
    await store.compose([segment_key(ID, 1)], object_key(ID, 1))
    await put(store, segment_key(ID, 2), b"new")
    await store.compose([segment_key(ID, 2)], object_key(ID, 1))
    assert await content(store, object_key(ID, 1)) == b"new"


async def test_attempts_do_not_touch_each_other(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"bytes")
    for attempt in (1, 2):
        await store.compose([segment_key(ID, 1)], object_key(ID, attempt))
    await store.delete(object_key(ID, 1))
    await store.delete(segment_key(ID, 1))
    assert await content(store, object_key(ID, 2)) == b"bytes"


async def test_a_segment_has_one_writer(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"first")
    with pytest.raises(StoreError, match="exists already"):
        await store.open_segment(segment_key(ID, 1))


async def test_any_part_can_be_read(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"0123456789")
    reader = await store.open(segment_key(ID, 1))
    assert reader.size == 10
    assert await reader.read(3, 4) == b"3456"
    assert await reader.read(8, 100) == b"89"
    assert await reader.read(10, 1) == b""
    await reader.close()


async def test_what_is_deleted_while_it_is_read_can_be_read_to_its_end(store: Store) -> None:
    await put(store, segment_key(ID, 1), b"0123456789")
    reader = await store.open(segment_key(ID, 1))
    await store.delete(segment_key(ID, 1))
    assert await reader.read(0, 10) == b"0123456789"
    await reader.close()


async def test_what_is_not_there_is_missing_and_may_be_deleted(store: Store) -> None:
    with pytest.raises(ObjectMissing):
        await store.open(object_key(ID, 1))
    with pytest.raises(ObjectMissing):
        await store.compose([segment_key(ID, 1)], object_key(ID, 1))
    await store.delete(object_key(ID, 1))


async def test_a_cancelled_write_has_ended_when_it_says_so(store: Store) -> None:
    """If its thread worked on, closing the segment would let it write into another upload's file."""
    size = 64 * 1024 * 1024
    writer = await store.open_segment(segment_key(ID, 1))
    writing = asyncio.create_task(writer.write(bytes(size)))
    await asyncio.sleep(0)  # one turn of the loop: the write is on its way
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    reader = await store.open(segment_key(ID, 1))
    assert reader.size in (0, size)
    await reader.close()
    await writer.close()
