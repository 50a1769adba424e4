"""One file on its way in: batches to the store, signs of life to its row, and the commit at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from bongsu.db.models import Upload
from bongsu.db.session import Database
from bongsu.jobs.queue import Queue
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads import rows
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores.base import SegmentWriter
from bongsu.uploads.tasks import FINISH, Announce

__all__ = ["Receiver"]

_SIGN_OF_LIFE: Final = 10.0  # seconds between notes of progress in the row; well below `abandoned_after`


class Receiver:
    """Writes one upload's bytes while its row has our epoch. Made by `UploadService.receive`."""

    def __init__(
        self,
        upload: Upload,
        writer: SegmentWriter,
        database: Database,
        jobs: Queue,
        announce: Announce,
        options: UploadOptions,
        batch_size: Callable[[], int],
    ) -> None:
        self._upload = upload
        self._writer = writer
        self._database = database
        self._jobs = jobs
        self._announce = announce
        self._max_size = options.max_size
        self._batch_size = batch_size
        self._batch = bytearray()
        self._size = 0
        self._touched = time.monotonic()

    async def write(self, data: bytes | memoryview) -> None:
        """Append. Returns only when another batch may come: the caller must not read ahead meanwhile.

        Raises `Problem(UPLOAD_TOO_LARGE)`, `Problem(UPLOAD_NOT_STORED)` when it was removed, `StoreError`.
        """
        self._size += len(data)
        if self._size > self._max_size:
            raise too_large(self._max_size)
        self._batch += data
        if len(self._batch) >= self._batch_size():
            await self._flush()
        # Per piece, not per batch: a slow sender needs longer for one batch than `abandoned_after`.
        if time.monotonic() - self._touched > _SIGN_OF_LIFE:
            await self._touch()

    async def finish(self) -> UploadRecord:
        """Make the bytes durable, then row and job in one transaction: from here on it is ours to finish.

        Raises as `write` does, and `DatabaseUnavailable`.
        """
        await self._flush()
        await self._writer.commit()
        async with self._database.transaction() as session:
            upload = await rows.receive(session, self._upload, self._size)
            if upload is None:
                raise _taken()
            await self._jobs.add(session, upload_id=upload.id, kind=FINISH)
        await self._announce(upload)
        return UploadRecord.of(upload, None)

    async def _flush(self) -> None:
        if self._batch:
            await self._writer.write(self._batch)
            # A new one: clear() would keep the capacity of the largest batch for the whole upload.
            self._batch = bytearray()

    async def _touch(self) -> None:
        async with self._database.transaction() as session:
            if not await rows.touch(session, self._upload, self._size):
                raise _taken()
        self._touched = time.monotonic()


def too_large(limit: int) -> Problem:
    """What a file over the limit of `limit` bytes is answered with."""
    return Problem(
        problems.UPLOAD_TOO_LARGE, f"Files may have up to {limit} bytes.", extra={"max_size": limit}
    )


def _taken() -> Problem:
    return Problem(problems.UPLOAD_NOT_STORED, "The upload was removed while it was being received.")
