"""Storage in this process, for tests and demonstrations: a restart forgets it, no other replica sees it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from bongsu.uploads.stores.base import Kept, ObjectMissing, Piece, StoreError, StoreFull

__all__ = ["MemoryStore"]

_LIMIT: Final = 256 * 1024 * 1024


class MemoryStore:
    """Up to `limit` bytes of segments and objects together."""

    batch: Final = 64 * 1024

    def __init__(self, *, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._segments: dict[str, bytearray] = {}
        self._objects: dict[str, bytes] = {}
        self._written: dict[str, float] = {}

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def open_segment(self, key: str) -> MemoryWriter:
        if key in self._segments:
            raise StoreError("the segment exists already")
        self._segments[key] = bytearray()
        self._written[key] = time.monotonic()
        return MemoryWriter(self, key, self._segments[key])

    def append(self, key: str, segment: bytearray, data: bytes | bytearray | memoryview) -> None:
        """What a writer does. Raises `StoreFull`."""
        self._take(len(data))
        segment += data
        if self._segments.get(key) is segment:  # not deleted under its writer, as an open file may be
            self._written[key] = time.monotonic()

    async def compose(self, pieces: Sequence[Piece], key: str) -> None:
        await self.delete(key)
        made = bytearray()
        for piece in pieces:
            if not piece.size:
                continue
            segment = self._segments.get(piece.key)
            if segment is None or len(segment) < piece.size:
                raise ObjectMissing("a segment is not in the store as it was committed")
            made += memoryview(segment)[: piece.size]
        self._take(len(made))
        self._objects[key] = bytes(made)
        self._written[key] = time.monotonic()

    async def open(self, key: str) -> MemoryReader:
        if key not in self._objects:
            raise ObjectMissing("there is no such object in the store")
        return MemoryReader(self._objects[key])

    async def delete(self, key: str) -> None:
        self._segments.pop(key, None)
        self._objects.pop(key, None)
        self._written.pop(key, None)

    async def free(self) -> int | None:
        return max(0, self._limit - self._held())

    async def kept(self) -> AsyncIterator[Kept]:
        now = time.monotonic()
        for key, written in list(self._written.items()):
            yield Kept(key, now - written)

    def _take(self, count: int) -> None:
        if self._held() + count > self._limit:
            raise StoreFull(f"the storage in memory is full ({self._limit} bytes)")

    def _held(self) -> int:
        return sum(map(len, self._segments.values())) + sum(map(len, self._objects.values()))


class MemoryWriter:
    """A segment that is being written."""

    def __init__(self, store: MemoryStore, key: str, segment: bytearray) -> None:
        self._store = store
        self._key = key
        self._segment = segment

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._store.append(self._key, self._segment, data)

    async def commit(self) -> None: ...

    async def close(self) -> None: ...


class MemoryReader:
    """An object, which its readers keep when it is deleted."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def close(self) -> None: ...
