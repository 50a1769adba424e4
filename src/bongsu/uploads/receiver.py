"""Bytes on their way in: batches to the store, progress to the row, and the commit at the end.

What is written goes to the segment of one epoch. It counts once `Receiver` has made it durable and noted it
in the row, under the fence of that epoch; what a fenced writer leaves in its segment never counts. A segment
that no row can name is deleted when its request ends: it would count against no quota.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.db.models import Upload
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.queue import Queue
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads import rows
from bongsu.uploads.events import channel_of, progress_event, tell_changed
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores.base import SegmentWriter, Store, StoreError, StoreUnavailable, segment_key
from bongsu.uploads.tasks import FINISH, not_allowed
from bongsu.uploads.tus import Checksum
from bongsu.uploads.types import HEAD, is_allowed, sniff

__all__ = ["Batches", "Means", "Receiver", "Sink", "Stored", "taken", "too_large"]

log = structlog.stdlib.get_logger(__name__)

COMMIT_EVERY: Final = 8 * 1024 * 1024
"""Bytes between two commits: what a killed replica costs its client at most."""

_SIGN_OF_LIFE: Final = 10.0  # seconds between two commits of a slow sender; well below `abandoned_after`
_TELL_EVERY: Final = 0.25  # seconds between two events of progress
_INLINE: Final = 128 * 1024  # bytes up to which hashing is cheaper than the way to a thread and back


# What the batches of all uploads that arrive at one time may hold together. Few uploads get large batches,
# which cost less; many get small ones, which cost no more memory.
_BATCHES: Final = 32 * 1024 * 1024
_SMALLEST_BATCH: Final = 64 * 1024


class Batches:
    """How many bytes each upload gathers before it writes; `largest` is the store's."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._arriving = 0

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """One upload more arrives while the block runs."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    def size(self) -> int:
        """Bytes that each upload may gather now."""
        return max(_SMALLEST_BATCH, min(self._largest, _BATCHES // max(1, self._arriving)))


@dataclass(frozen=True, slots=True)
class Means:
    """What every receiver of one replica works with."""

    database: Database
    store: Store
    jobs: Queue
    publish: Callable[[str, bytes], Awaitable[None]]
    options: UploadOptions
    replica: str
    batches: Batches
    check_room: Callable[[int], Awaitable[None]]
    """Raises `Problem(DISK_FULL)` when so many bytes more would fall below the watermark."""


class Sink(Protocol):
    """Where one request's bytes go."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Returns only when more may come: the caller must not read ahead meanwhile.

        Raises `Problem`: `UPLOAD_TOO_LARGE`, `DISK_FULL`, `QUOTA_EXCEEDED`, and `OFFSET_MISMATCH` or
        `UPLOAD_NOT_STORED` when somebody else has it now; `StoreError`, `DatabaseUnavailable`.
        """
        ...

    async def finish(self) -> UploadRecord:
        """The request has brought all its bytes. Returns when they are safe.

        When the upload has all of its own, it is `received` and its job enqueued, in one transaction. Raises
        as `write` does, and `Problem(CHECKSUM_MISMATCH)`.
        """
        ...


class Stored:
    """The sink of an upload that has all its bytes: it takes no more."""

    def __init__(self, record: UploadRecord) -> None:
        self._record = record

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            raise over_length(self._record.size)

    async def finish(self) -> UploadRecord:
        return self._record


class Receiver:
    """The sink of one request, for as long as the row has our epoch.

    `whole`: the request's end is the upload's end. `interrupt` ends the request from outside.
    """

    def __init__(
        self,
        upload: Upload,
        means: Means,
        *,
        whole: bool,
        checksum: Checksum | None = None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self._upload = upload
        self._means = means
        self._whole = whole
        self._checksum = checksum
        self._hasher = checksum.hasher() if checksum else None
        self._interrupt = interrupt
        self._lifetime = means.options.expire_after if upload.resumable else means.options.abandoned_after
        self._lock = asyncio.Lock()  # the request writes, and another one may ask to let go
        self._writer: SegmentWriter | None = None
        self._unnamed: str | None = None  # our segment's key, while it is certain that no row names it
        self._batch = bytearray()
        self._base = upload.size
        self._written = 0  # bytes in our segment
        self._committed = 0  # bytes of them that count
        self._noted = 0  # bytes of them at the last commit, whether they count or await their checksum
        self._digest = None if upload.size else hashlib.sha256()  # of all, if it comes through us
        self._ended: Exception | None = None
        self._over = False
        self._committed_at = self._told_at = time.monotonic()

    @property
    def received(self) -> int:
        """Bytes of the upload that are here, safe or not."""
        return self._base + self._written + len(self._batch)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        async with self._lock:
            self._check()
            limit = self._means.options.max_size if self._upload.length is None else self._upload.length
            # None of them: with the first ones alone an upload could be complete that is not what was sent.
            if self.received + len(data) > limit:
                raise too_large(limit) if self._upload.length is None else over_length(limit)
            if not self._batch and 2 * len(data) >= self._means.batches.size():
                await self._append(data)  # large enough to be written as it is
            else:
                self._batch += data
            if len(self._batch) >= self._means.batches.size():
                await self._flush()
            waiting = self._written - self._noted
            if waiting >= COMMIT_EVERY or time.monotonic() - self._committed_at > _SIGN_OF_LIFE:
                await self._commit()
                await self._means.check_room(0)
        await self._tell()

    async def finish(self) -> UploadRecord:
        async with self._lock:
            self._check()
            if self._over:  # complete since a commit on the way
                return UploadRecord.of(self._upload, None)
            await self._flush(last=True)
            if self._checksum is not None:
                assert self._hasher is not None
                if not self._checksum.matches(self._hasher):
                    raise Problem(
                        problems.CHECKSUM_MISMATCH,
                        f"The {self._written} bytes do not have the checksum; none of them was kept.",
                    )
                self._checksum = None
            if self._whole or self.received == self._upload.length:
                await self._complete()
            else:
                await self._commit(last=True)
            self._over = True
            return UploadRecord.of(self._upload, None)

    async def let_go(self, offset: int | None) -> None:
        """Make safe what is here; if that leaves the upload at `offset`, end this request: another has it.

        Raises as `write` does.
        """
        async with self._lock:
            if self._over or self._ended is not None:
                return
            if self._checksum is None and self.received > self._upload.size:
                await self._flush()
                await self._commit()
            if offset == self._upload.size and not self._over:
                self._ended = taken()
                self._interrupt()

    async def close(self, *, keep: bool) -> None:
        """The request is over, finished or not; `keep`: what it brought until then counts."""
        async with self._lock:
            kept = self._over
            try:
                if keep and not self._over and self._ended is None:
                    if self._checksum is None:
                        await self._flush()
                    await self._commit(last=True)
                    kept = True
            except (Problem, StoreError, DatabaseUnavailable) as error:
                # The client goes on from the last commit. The error that ended the request is told to it.
                log.info("the last bytes of a request are lost", upload=self._upload.id, reason=str(error))
            finally:
                self._over = True
                if self._writer is not None:
                    await self._writer.close()
                segment = self._unnamed
                if segment is None and self._writer is not None and not kept and await self._is_gone():
                    segment = segment_key(self._upload.id, self._upload.epoch)
                if segment is not None:
                    await self._drop(segment)

    async def _is_gone(self) -> bool:
        """Whether the upload has been removed: what we wrote since to its segment nobody else removes.

        From then on no row names the segment, and the epoch is nobody else's.
        """
        try:
            async with self._means.database.session() as session:
                return await rows.is_gone(session, self._upload.id)
        except DatabaseUnavailable:
            return False  # the hourly search for what belongs to no row finds it

    async def _drop(self, segment: str) -> None:
        if isinstance(self._ended, StoreUnavailable):
            return  # it would keep the client waiting once more; the segment goes with the upload
        try:
            await self._means.store.delete(segment)
        except StoreError as error:
            # It goes with the upload: when that is stored, or removed.
            log.warning("a segment without use was not removed", upload=self._upload.id, error=str(error))

    def _check(self) -> None:
        if self._ended is not None:
            raise self._ended

    async def _flush(self, *, last: bool = False) -> None:
        # A new one: clear() would keep the capacity of the largest batch for the whole upload.
        batch, self._batch = self._batch, bytearray()
        if batch:
            await self._append(batch, whole=last and self._whole)

    async def _append(self, batch: bytes | bytearray | memoryview, *, whole: bool = False) -> None:
        if self._base + self._written == 0 and not self._upload.partial:
            self._check_type(batch, whole=whole)
        try:
            await (await self._segment()).write(batch)
        except BaseException as error:
            self._fail(error)
            raise
        self._written += len(batch)
        for digest in (self._digest, self._hasher):
            if digest is None:
                continue
            if len(batch) > _INLINE:
                await asyncio.to_thread(digest.update, batch)
            else:
                digest.update(batch)

    def _check_type(self, head: bytes | bytearray | memoryview, *, whole: bool) -> None:
        """Refuse early what is not allowed. Too few bytes say nothing: the job looks again."""
        if whole or len(head) >= HEAD:
            media_type = sniff(bytes(head[:HEAD]), self._upload.content_type)
            if not is_allowed(media_type, self._means.options.allowed_types):
                self._ended = Problem(problems.TYPE_NOT_ALLOWED, not_allowed(media_type))
                raise self._ended

    async def _segment(self) -> SegmentWriter:
        if self._writer is None:
            self._unnamed = segment_key(self._upload.id, self._upload.epoch)
            self._writer = await self._means.store.open_segment(self._unnamed)
        return self._writer

    async def _commit(self, *, last: bool = False) -> None:
        """What was written counts, unless its checksum is still awaited; a sign of life anyway."""
        if self._over:
            return
        counts = self._written if self._checksum is None else 0
        if self._base + counts == self._upload.length and self._checksum is None and not self._whole:
            # A client that is told of its last byte sends nothing more: it must be complete then, whatever
            # becomes of this request.
            await self._complete()
            self._over = True
            return
        try:
            if self._writer is not None and counts > self._committed:
                await self._writer.commit()
            async with self._noting(segment=counts > 0) as session:
                upload = self._ours(
                    await rows.progress(
                        session,
                        self._upload,
                        size=self._base + counts,
                        segment=counts,
                        holder=None if last else self._means.replica,
                        lifetime=self._lifetime,
                        limits=self._means.options,
                    )
                )
        except BaseException as error:
            self._fail(error)
            raise
        self._upload = upload
        self._committed = counts
        self._noted = self._written

    async def _complete(self) -> None:
        """receiving → received, and the job that goes with it, or neither."""
        try:
            # Also an empty one: the last piece is always ours, and nobody writes to it any more.
            await (await self._segment()).commit()
            async with self._noting(segment=True) as session:
                upload = self._ours(
                    await rows.receive(
                        session,
                        self._upload,
                        size=self.received,
                        segment=self._written,
                        sha256=self._digest.hexdigest() if self._digest else None,
                        lifetime=self._lifetime,
                        limits=self._means.options,
                    )
                )
                if not upload.partial:
                    await self._means.jobs.add(session, upload_id=upload.id, kind=FINISH)
                    await tell_changed(session, upload)
        except BaseException as error:
            self._fail(error)
            raise
        self._upload = upload

    @asynccontextmanager
    async def _noting(self, *, segment: bool) -> AsyncIterator[AsyncSession]:
        """The transaction of a commit; `segment`: it names ours, unless it is rolled back."""
        before = self._unnamed
        if segment:
            self._unnamed = None
        try:
            async with self._means.database.transaction() as session:
                yield session
        except Problem:  # raised within: rolled back, for certain
            self._unnamed = before
            raise
        self._committed_at = time.monotonic()

    def _ours(self, upload: Upload | None) -> Upload:
        if upload is None:
            raise taken() if self._upload.resumable else _removed()
        return upload

    def _fail(self, error: BaseException) -> None:
        # Where the segment ends is unknown now, or whether the row was changed: nothing more may be added.
        self._ended = error if isinstance(error, Exception) else taken()

    async def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY and not self._upload.partial:
            self._told_at = now
            event = progress_event(self._upload.id, size=self.received, length=self._upload.length)
            await self._means.publish(channel_of(self._upload.id), event)


def too_large(limit: int) -> Problem:
    """What a file over the limit of `limit` bytes is answered with."""
    return Problem(
        problems.UPLOAD_TOO_LARGE, f"Files may have up to {limit} bytes.", extra={"max_size": limit}
    )


def taken() -> Problem:
    """What a request is answered with whose upload another one has taken over."""
    return Problem(
        problems.OFFSET_MISMATCH,
        "Another request has this upload now. Ask for its offset, then try again.",
    )


def over_length(length: int) -> Problem:
    return Problem(problems.UPLOAD_TOO_LARGE, f"The upload has {length} bytes, and more arrived.")


def _removed() -> Problem:
    how = "deleted, or replaced by another request with its Idempotency-Key"
    return Problem(problems.UPLOAD_NOT_STORED, f"The upload was removed while it was being received: {how}.")
