"""The upload lifecycle: receive, list, serve, remove. The database row is the truth about every upload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from sqlalchemy import ColumnElement, select
from sqlmodel import col

from bongsu.db.models import Upload, UploadLog, is_id
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.queue import Queue
from bongsu.jobs.worker import Handler
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem
from bongsu.uploads import rows
from bongsu.uploads.multipart import FileData, FileStart, UploadForm
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.receiver import Receiver
from bongsu.uploads.record import FEED, UploadRecord, changed_event, deleted_event
from bongsu.uploads.stores.base import BATCH, Reader, Store, StoreError, object_key, segment_key
from bongsu.uploads.tasks import FINISH, FinishUpload

__all__ = ["Publish", "UploadService"]

log = structlog.stdlib.get_logger(__name__)

Publish = Callable[[str, bytes], Awaitable[None]]

# What the batches of all uploads that arrive at one time may hold together. Few uploads get large batches,
# which cost less; many get small ones, which cost no more memory.
_BATCHES: Final = 32 * 1024 * 1024
_SMALLEST_BATCH: Final = 64 * 1024

_SWEEP: Final = 100  # stale uploads looked at per sweep: the rest waits for the next one


class UploadService:
    """Uploads as one replica handles them.

    `publish(channel, json)` is called after the commit of every change of state. It must not raise: an
    upload is not undone because nobody could be told.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        jobs: Queue,
        publish: Publish,
        replica: str,
        options: UploadOptions,
    ) -> None:
        self.options = options
        self._database = database
        self._store = store
        self._jobs = jobs
        self._publish = publish
        self._replica = replica
        self._arriving = 0

    def handlers(self) -> Mapping[str, Handler]:
        """The jobs of uploads, by kind, for this replica's worker."""
        return {FINISH: FinishUpload(self._database, self._store, self._jobs, self._announce, self._replica)}

    def ring(self) -> None:
        """Wake the worker: the doorbell that runs right after a response."""
        self._jobs.ring()

    @asynccontextmanager
    async def receive(
        self, *, filename: str, content_type: str, owner: str | None
    ) -> AsyncIterator[Receiver]:
        """Receive one file; `filename` and `content_type` are cleaned ones.

        Unless `Receiver.finish` has been reached, nothing of it is left when the block ends. Raises
        `StoreError`, `DatabaseUnavailable`, and `Problem` from the receiver.
        """
        async with self._database.transaction() as session:
            upload = await rows.create(
                session,
                filename=filename,
                content_type=content_type,
                owner=owner,
                received_by=self._replica,
            )
        try:
            await self._announce(upload)
            writer = await self._store.open_segment(segment_key(upload.id, upload.epoch))
            self._arriving += 1
            try:
                yield Receiver(
                    upload,
                    writer,
                    self._database,
                    self._jobs,
                    self._announce,
                    self.options,
                    self._batch_size,
                )
            finally:
                self._arriving -= 1
                await writer.close()
        except BaseException:
            # Also at cancellation. When a commit's outcome is unknown the row decides: a received upload
            # does not match, and stays.
            await self._discard(upload)
            raise

    async def receive_form(
        self, body: AsyncIterator[bytes], *, content_type: str, owner: str | None
    ) -> UploadRecord:
        """Receive the multipart form whose bytes `body` yields; constant memory, no byte twice on disk.

        Returns once the file is durably received and its job enqueued. Raises what `receive` and
        `UploadForm` raise, and what `body` raises; then nothing is left.
        """
        form = UploadForm(content_type)
        receiver: Receiver | None = None
        async with AsyncExitStack() as stack:
            async for chunk in body:
                for start in range(0, len(chunk), BATCH):
                    for event in form.feed(chunk[start : start + BATCH]):
                        match event:
                            case FileStart(filename=name, content_type=declared):
                                receiver = await stack.enter_async_context(
                                    self.receive(filename=name, content_type=declared, owner=owner)
                                )
                            case FileData(data=data):
                                assert receiver is not None  # the form begins the file before its data
                                await receiver.write(data)
            form.end()
            assert receiver is not None  # the form ends only with a file
            return await receiver.finish()

    async def page(self, limit: int, before: rows.Cursor | None) -> list[UploadRecord]:
        """Up to `limit` uploads of every state, newest first, older than `before`."""
        async with self._database.session() as session:
            return await rows.page(session, limit, before)

    async def get(self, upload_id: str) -> UploadRecord:
        """Raises `Problem(NOT_FOUND)`."""
        return UploadRecord.of(*await self._find(upload_id))

    async def open(self, upload_id: str) -> tuple[UploadRecord, Reader]:
        """The upload and its content; the caller closes the reader.

        Raises `Problem(NOT_FOUND)`, `Problem(UPLOAD_NOT_STORED)`, `StoreError`.
        """
        upload, entry = await self._find(upload_id)
        record, key = UploadRecord.of(upload, entry), upload.storage_key
        if record.state != "stored" or key is None:
            why = f" {record.error}" if record.error else ""
            raise Problem(problems.UPLOAD_NOT_STORED, f"The upload is {record.state}.{why}")
        return record, await self._store.open(key)

    async def delete(self, upload_id: str, principal: Principal) -> None:
        """Remove an upload in any state; its log entry stays. Its owner and the API key's holder may.

        Raises `Problem(NOT_FOUND)`, `Problem(FORBIDDEN)`, `StoreError` (call again then).
        """
        record = await self.get(upload_id)
        if not principal.trusted and record.owner != principal.user:
            raise Problem(
                problems.FORBIDDEN, "Only who uploaded a file may delete it, or the API key's holder."
            )
        await self._remove(col(Upload.id) == upload_id)

    async def sweep(self) -> None:
        """Remove what a dead replica left: uploads cut off in the middle, removals not finished."""
        stale = rows.is_stale(self.options.abandoned_after)
        async with self._database.session() as session:
            left = (await session.execute(select(col(Upload.id)).where(stale).limit(_SWEEP))).scalars().all()
        for upload_id in left:
            try:
                if await self._remove((col(Upload.id) == upload_id) & stale):
                    log.info("removed an abandoned upload", upload=upload_id)
            except StoreError as error:
                log.warning("an abandoned upload could not be removed", upload=upload_id, error=str(error))

    async def _find(self, upload_id: str) -> tuple[Upload, UploadLog | None]:
        found = None
        if is_id(upload_id):
            async with self._database.session() as session:
                found = await rows.get(session, upload_id)
        if found is None:
            raise Problem(problems.NOT_FOUND, f"There is no upload {upload_id[:64]!r}.")
        return found

    def _batch_size(self) -> int:
        """Bytes that each upload may gather now before it writes."""
        return max(_SMALLEST_BATCH, min(BATCH, _BATCHES // max(1, self._arriving)))

    async def _discard(self, upload: Upload) -> None:
        try:
            await self._remove(rows.is_receiving(upload))
        except (StoreError, DatabaseUnavailable) as error:
            # The row says that something is left, and the sweep goes by the rows.
            log.warning("an unfinished upload is left to the sweep", upload=upload.id, error=str(error))

    async def _remove(self, condition: ColumnElement[bool]) -> bool:
        """Remove the one upload that `condition` names, bytes first: a row is never without a reason to look.

        False when there is none, or somebody else is at it. May be repeated after any failure.
        """
        async with self._database.transaction() as session:
            expired = await rows.expire(session, condition)
        if expired is None:
            return False
        upload, attempts = expired
        for epoch in range(1, upload.epoch):  # its own is the raised one, which nobody writes
            await self._store.delete(segment_key(upload.id, epoch))
        for attempt in range(1, attempts + 1):
            await self._store.delete(object_key(upload.id, attempt))
        async with self._database.transaction() as session:
            gone = await rows.forget(session, upload.id)
        if gone:
            await self._publish(FEED, deleted_event(upload.id))
        return gone

    async def _announce(self, upload: Upload, entry: UploadLog | None = None) -> None:
        """Tell `uploads:feed` of a change that has been committed."""
        await self._publish(FEED, changed_event(UploadRecord.of(upload, entry)))
