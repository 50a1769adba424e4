"""Segments and objects in a bucket.

An object of S3 appears whole or not at all, and is never appended to. So a segment is a row of objects,
`<segment>.000000`, `<segment>.000001`, …, each of which is there when `commit` returns; and the server itself
puts a finished file together, copying them one after the other.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bongsu.uploads.stores.base import Kept, ObjectMissing, Piece, StoreError, StoreUnavailable
from bongsu.uploads.stores.s3.bucket import Bucket, Found
from bongsu.uploads.stores.s3.plan import LARGEST, LARGEST_PART, Part, Source, plan

if TYPE_CHECKING:
    from obstore import BytesStream

__all__ = ["S3Store"]

T = TypeVar("T")

# What all writers hold together. Few get large parts, which the server can copy (5 MiB or more); many get
# small ones, which the finishing job has to read and merge, but no more memory.
_BUFFERS: Final = 16 * 1024 * 1024
_SMALLEST: Final = 256 * 1024

_PUTS: Final = 16  # objects on their way at one time: each has a connection with buffers of its own
_COPIES: Final = 8  # requests at one time for one file
_AHEAD: Final = 256 * 1024  # bytes that a download asks for at a time


class S3Store:
    """Below `prefix` of the bucket `name`; both are checked by the caller."""

    batch: Final = 64 * 1024

    def __init__(self, name: str, prefix: str = "") -> None:
        self._bucket = Bucket(name, prefix)
        self._writers = 0
        self._putting = asyncio.Semaphore(_PUTS)
        self._merging = asyncio.Semaphore(1)  # of all files: a merged part is in memory

    async def start(self) -> None:
        await self._bucket.start()
        try:
            await self._bucket.check()
        except BaseException:
            await self._bucket.stop()
            raise

    async def stop(self) -> None:
        await self._bucket.stop()

    async def open_segment(self, key: str) -> S3Writer:
        async for _ in self._bucket.entries(f"{key}.", most=1):
            raise StoreError("the segment exists already")
        self._writers += 1
        return S3Writer(self, key)

    async def compose(self, pieces: Sequence[Piece], key: str) -> None:
        parts = plan(await self._sources([piece for piece in pieces if piece.size]))
        if not any(part.copied for part in parts) and len(parts) <= 1:
            await self._bucket.put(key, (await self._read(parts[0])).getbuffer() if parts else b"")
            return
        upload = await self._bucket.begin(key)
        try:
            etags = await self._make_parts(key, upload, parts)
            await self._bucket.complete(key, upload, etags)
        except BaseException:
            with suppress(StoreError):  # the sweep finds it
                await _to_its_end(self._bucket.abort(key, upload))
            raise

    async def open(self, key: str) -> S3Reader:
        return S3Reader(self._bucket, key, await self._bucket.find(key))

    async def delete(self, key: str) -> None:
        if key.startswith("segments/"):
            await self._bucket.delete([entry.key async for entry in self._bucket.entries(f"{key}.")])
            return
        for left, upload, _ in await self._bucket.unfinished(key):
            if left == key:
                await self._bucket.abort(key, upload)
        await self._bucket.delete([key])

    async def kept(self) -> AsyncIterator[Kept]:
        unfinished = {key: age for key, _, age in await self._bucket.unfinished("objects/")}
        async for entry in self._bucket.entries("objects/"):
            yield Kept(entry.key, min(entry.age, unfinished.pop(entry.key, entry.age)))
        for key, age in unfinished.items():
            yield Kept(key, age)
        segment: Kept | None = None
        async for entry in self._bucket.entries("segments/"):  # in order: a segment's objects come together
            key = entry.key.rpartition(".")[0]
            if segment is not None and segment.key == key:
                segment = Kept(key, min(segment.age, entry.age))
                continue
            if segment is not None:
                yield segment
            segment = Kept(key, entry.age)
        if segment is not None:
            yield segment

    # For writers

    def part_size(self) -> int:
        """Bytes that each writer may hold now."""
        return max(_SMALLEST, min(LARGEST_PART, _BUFFERS // max(1, self._writers)))

    async def put(self, key: str, data: memoryview) -> None:
        async with self._putting:
            await self._bucket.put(key, data)

    def let_go(self) -> None:
        self._writers -= 1

    # Composition

    async def _sources(self, pieces: Sequence[Piece]) -> list[Source]:
        """What makes up the pieces. Raises `ObjectMissing`, or `StoreError` for too large a file."""
        if sum(piece.size for piece in pieces) > LARGEST:
            raise StoreError(f"storage on S3 takes files of up to {LARGEST} bytes")
        sizes: dict[str, list[int]] = {}  # segment → its objects' sizes
        for upload in {piece.key.rpartition(".")[0]: None for piece in pieces}:
            async for entry in self._bucket.entries(f"{upload}."):
                segment, _, number = entry.key.rpartition(".")
                found = sizes.setdefault(segment, [])
                if number == _number(len(found)):  # after a gap nothing counts
                    found.append(entry.size)
        return [source for piece in pieces for source in _cut(piece, sizes.get(piece.key, []))]

    async def _make_parts(self, key: str, upload: str, parts: Sequence[Part]) -> list[str]:
        """Have all parts made, several at a time where only the server works; their ETags."""
        etags = [""] * len(parts)
        copies = asyncio.Semaphore(_COPIES)

        async def make(number: int, part: Part) -> None:
            if part.copied:
                async with copies:
                    etag = await self._bucket.copy_part(key, upload, number, part.sources[0].key)
            else:
                async with self._merging:
                    etag = await self._bucket.put_part(key, upload, number, await self._read(part))
            etags[number - 1] = etag

        await _all(make(number, part) for number, part in enumerate(parts, 1))
        return etags

    async def _read(self, part: Part) -> BytesIO:
        data = BytesIO()
        data.seek(part.size - 1)
        data.write(b"\0")  # all its room at once: growing would move and copy it again and again
        data.seek(0)
        gets = asyncio.Semaphore(_COPIES)

        async def get(source: Source, at: int) -> None:
            async with gets:
                got = await self._bucket.get(source.key, 0, source.size)
            if len(got) != source.size:
                raise ObjectMissing("a segment has fewer bytes in the store than were committed")
            with data.getbuffer() as room:
                room[at : at + source.size] = memoryview(got)

        starts = accumulate((source.size for source in part.sources), initial=0)
        await _all(get(source, at) for source, at in zip(part.sources, starts, strict=False))
        return data


class S3Writer:
    """A segment that is being written: what is not sent yet, and how many objects were."""

    def __init__(self, store: S3Store, key: str) -> None:
        self._store = store
        self._key = key
        self._waiting: _Buffer | None = None
        self._sending: _Buffer | None = None
        self._sent = 0

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            if self._waiting is None:
                self._waiting = _Buffer(self._store.part_size())
            rest = rest[self._waiting.take(rest) :]
            if self._waiting.filled >= min(self._waiting.size, self._store.part_size()):
                await _to_its_end(self._send())

    async def commit(self) -> None:
        while self._sending is not None or self._waiting is not None:
            await _to_its_end(self._send())

    async def _send(self) -> None:
        # A request that failed may still take effect later. So an object's bytes are settled before the
        # first try: a second one sends the same again, and nothing that came since.
        if self._sending is None:
            self._sending, self._waiting = self._waiting, None
        assert self._sending is not None
        await self._store.put(f"{self._key}.{_number(self._sent)}", self._sending.content())
        self._sending = None
        self._sent += 1

    async def close(self) -> None:
        self._waiting = self._sending = None
        self._store.let_go()


class _Buffer:
    """Up to `size` bytes outside the heap, where large blocks that come and go would leave holes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.filled = 0
        self._pages = mmap.mmap(-1, size)

    def take(self, data: memoryview) -> int:
        """Append as much as fits; how much that was."""
        end = min(self.filled + len(data), self.size)
        taken = end - self.filled
        self._pages[self.filled : end] = data[:taken]
        self.filled = end
        return taken

    def content(self) -> memoryview:
        return memoryview(self._pages)[: self.filled]


class S3Reader:
    """One object, as it was when it was opened. Reading on and on goes through one request."""

    def __init__(self, bucket: Bucket, key: str, found: Found) -> None:
        self.size = found.size
        self._bucket = bucket
        self._key = key
        self._etag = found.etag
        self._at: int | None = None
        self._stream: BytesStream | None = None
        self._ahead = bytearray()

    async def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if offset == self._at:
            data = await self._read_on(offset, end)
        else:  # at first exactly what is asked for: it may be all, as when somebody looks into a large file
            self._stop()
            data = bytes(await self._bucket.get(self._key, offset, end, self._etag))
        self._at = offset + len(data)
        return data

    async def _read_on(self, start: int, end: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = await self._bucket.stream(self._key, start, self._etag, _AHEAD)
            while len(self._ahead) < end - start:
                self._ahead += await self._bucket.next_chunk(self._stream)
        except StoreUnavailable:
            # A client that pauses for minutes costs the request its connection; the object is still there.
            self._stop()
            return bytes(await self._bucket.get(self._key, start, end, self._etag))
        data = bytes(self._ahead[: end - start])
        del self._ahead[: end - start]
        return data

    async def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stream, self._ahead = None, bytearray()


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all of it at one time; the first `StoreError` ends the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* StoreError as errors:
        raise errors.exceptions[0] from None


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which is bounded in time; a cancellation arrives when it has ended, not before.

    A request that nobody waits for would still be carried out, at a moment when nobody reckons with it.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen; whoever was cancelled has no use for it
        raise


def _number(index: int) -> str:
    return f"{index:06d}"  # in the order of their names, up to a million


def _cut(piece: Piece, sizes: Sequence[int]) -> list[Source]:
    """The objects of the piece's segment, of which `sizes` are there, up to where the piece ends."""
    sources: list[Source] = []
    left = piece.size
    for index, size in enumerate(sizes):
        if not left:
            break
        taken = min(left, size)
        sources.append(Source(f"{piece.key}.{_number(index)}", taken, whole=taken == size))
        left -= taken
    if left:
        raise ObjectMissing("a segment is not in the store as it was committed")
    return sources
