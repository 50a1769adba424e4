"""The upload lifecycle: receive, list, serve, remove. The database row is the truth about every upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from bongsu.db.models import Upload, UploadLog, is_id
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.queue import Queue
from bongsu.jobs.worker import Handler
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem
from bongsu.uploads import rows
from bongsu.uploads.drafts import AlreadyReceived, Drafts, digest_of, key_reused
from bongsu.uploads.events import tell_changed
from bongsu.uploads.hooks import Hooks
from bongsu.uploads.intake import Intake
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.receiver import Batches, Means, Receiver, Sink, Stored, over_length, taken, too_large
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.removal import Removal
from bongsu.uploads.stores.base import Reader, Store, StoreError
from bongsu.uploads.tasks import FINISH, FinishUpload
from bongsu.uploads.tus import Checksum

__all__ = ["Ask", "Publish", "UploadService"]

log = structlog.stdlib.get_logger(__name__)

Publish = Callable[[str, bytes], Awaitable[None]]

Ask = Callable[[str, str, int | None], Awaitable[None]]
"""Asks a replica to make an upload's bytes safe, and to let go of it if that leaves it at the offset.

`(replica, upload id, offset or None)`; returns when the replica has done so, or when it is known not to
answer. Never raises.
"""

_OURSELVES: Final = Principal(trusted=True)
_ASK_TIMEOUT: Final = 0.5  # seconds; a frozen replica does not answer, and its epoch is taken all the same


class UploadService:
    """Uploads as one replica handles them.

    `publish(channel, json)` is told of progress, at most once and never in the way: it must not raise.
    Changes of state go through the outbox, in the transactions that make them.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        jobs: Queue,
        publish: Publish,
        replica: str,
        options: UploadOptions,
        *,
        ask: Ask | None = None,
        open_to_all: bool = False,
    ) -> None:
        """`ask` None: there are no other replicas. `open_to_all` (`--dev`): anybody may read any upload."""
        self.options = options
        self.hooks = Hooks(time_limit=options.hook_time_limit)
        self._database = database
        self._store = store
        self._jobs = jobs
        self._publish = publish
        self._replica = replica
        self._ask = ask
        self._open_to_all = open_to_all
        self._held: dict[str, Receiver] = {}
        self._removal = Removal(database, store, options)
        self._drafts = Drafts(database, store, options, self._removal)
        self._means = Means(
            database,
            store,
            jobs,
            publish,
            options,
            replica,
            Batches(store.batch),
            self._drafts.check_room,
        )
        self.intake = Intake(self._means, self._drafts, self._removal)
        """Receives what comes in one request."""

    def handlers(self) -> Mapping[str, Handler]:
        """The jobs of uploads, by kind, for this replica's worker."""
        finish = FinishUpload(
            self._database,
            self._store,
            self._jobs,
            self.hooks,
            self._replica,
            self.options.allowed_types,
        )
        return {FINISH: finish}

    def ring(self) -> None:
        """Wake the worker: the doorbell that runs right after a response."""
        self._jobs.ring()

    # Many requests, one file: what arrived stays

    async def create(
        self,
        *,
        filename: str,
        content_type: str,
        owner: str | None,
        length: int | None,
        metadata: str | None = None,
        partial: bool = False,
        idempotency_key: str | None = None,
    ) -> UploadRecord:
        """A new upload that `append` fills; an empty one is complete at once. None for `length`: said later.

        Asked again with the key of an earlier one, that one; if it is empty, and was not completed then, it
        is now. Raises `DatabaseUnavailable`, `StoreError`, and `Problem`: `IDEMPOTENCY_KEY_REUSED`,
        `UPLOAD_TOO_LARGE`, `QUOTA_EXCEEDED`, `DISK_FULL`. Nothing is left then of one without a key.
        """
        draft = rows.Draft(
            filename,
            content_type,
            owner,
            self._replica,
            self.options.expire_after,
            length=length,
            reserved=length or 0,
            resumable=True,
            metadata=metadata,
            partial=partial,
            idempotency=digest_of(owner, idempotency_key),
        )
        try:
            record = UploadRecord.of(await self._drafts.admit(draft), None)
        except AlreadyReceived as again:
            record = again.record
        if length != 0 or record.state != "receiving":
            return record
        try:
            return UploadRecord.of(await self._completed(record.id, 0, _OURSELVES), None)
        except BaseException:
            if idempotency_key is None:  # nobody knows its address, or ever will
                await self._removal.discard(record.id)
            raise

    async def create_final(
        self,
        parts: Sequence[str],
        *,
        filename: str,
        content_type: str,
        owner: str | None,
        metadata: str | None = None,
        idempotency_key: str | None = None,
    ) -> UploadRecord:
        """The concatenation of partial uploads, which is `received` at once. They belong to it from then on.

        Asked again for the same parts, in the same order, the same one. Raises as `create` does, and
        `Problem(PARTS_UNUSABLE)` unless all are complete, the owner's, and part of nothing else.
        """
        draft = rows.Draft(
            filename,
            content_type,
            owner,
            self._replica,
            self.options.expire_after,
            resumable=True,
            metadata=metadata,
            idempotency=digest_of(owner, idempotency_key),
        )
        try:
            async with self._database.transaction() as session:
                upload = await rows.claim_parts(session, draft, parts)
                if upload is None:
                    raise Problem(
                        problems.PARTS_UNUSABLE,
                        "Each part must be a complete partial upload of yours that is in no other upload.",
                    )
                if upload.size > self.options.max_size:
                    raise too_large(self.options.max_size)
                await self._jobs.add(session, upload_id=upload.id, kind=FINISH)
                await tell_changed(session, upload)
        except (Problem, IntegrityError) as error:
            # The answer to the first request may have been lost on its way.
            made = await self._made_of(parts, owner)
            if made is not None:
                return made
            if isinstance(error, IntegrityError) and draft.idempotency is not None:
                raise key_reused() from error
            raise
        return UploadRecord.of(upload, None)

    @asynccontextmanager
    async def append(
        self,
        upload_id: str,
        *,
        offset: int,
        principal: Principal,
        length: int | None = None,
        checksum: Checksum | None = None,
        size: int | None = None,
    ) -> AsyncIterator[Sink]:
        """Go on with an upload at `offset`; whoever receives it now, on any replica, is made to let go.

        What has arrived when the block ends stays, also at an error, but with a `checksum` only what had
        it. `length` is what it will have, where that is said only now, `size` the bytes that will come, where
        that is known. Raises `Problem`: `NOT_FOUND`,
        `FORBIDDEN`, `EXPIRED`, `UPLOAD_IS_FINAL`, `OFFSET_MISMATCH`, `LENGTH_FIXED` and what `create` raises.
        """
        upload = await self._take(upload_id, offset=offset, principal=principal, length=length, size=size)
        if upload.state != "receiving":
            yield Stored(UploadRecord.of(upload, None))
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as interruption:
                receiver = Receiver(
                    upload,
                    self._means,
                    whole=False,
                    checksum=checksum,
                    interrupt=lambda: interruption.reschedule(loop.time()),
                )
                self._held[upload.id] = receiver
                try:
                    with self._means.batches.arriving():
                        yield receiver
                finally:
                    if self._held.get(upload.id) is receiver:
                        del self._held[upload.id]
                    await receiver.close(keep=True)
        except TimeoutError:
            if interruption.expired():
                raise taken() from None
            raise

    async def head(self, upload_id: str, principal: Principal) -> UploadRecord:
        """Where a resumable upload is: all that has arrived anywhere is safe first.

        Raises `Problem`: `NOT_FOUND`, `FORBIDDEN`, `EXPIRED`.
        """
        upload = await self._resumable(upload_id, principal)
        if upload.holder is not None and upload.state == "receiving":
            await self._ask_holder(upload, None)
            upload = await self._resumable(upload_id, principal)
        if upload.state == "receiving" and upload.size == upload.length:
            # Its length was said with no byte to follow, and the replica died before it was complete. The
            # client would take this answer for the end.
            upload = await self._completed(upload.id, upload.size, principal)
        return UploadRecord.of(upload, None)

    async def _completed(self, upload_id: str, size: int, principal: Principal) -> Upload:
        try:
            async with self.append(upload_id, offset=size, principal=principal) as sink:
                await sink.finish()
        except Problem as problem:
            if problem.kind is not problems.OFFSET_MISMATCH:  # somebody else completes it at this moment
                raise
        return await self._resumable(upload_id, principal)

    async def let_go(self, upload_id: str, offset: int | None) -> None:
        """What another replica asks (`Ask`): make safe what is here, and let go if that is at `offset`."""
        receiver = self._held.get(upload_id)
        if receiver is None:
            return
        try:
            await receiver.let_go(offset)
        except (Problem, StoreError, DatabaseUnavailable) as error:
            # Whoever asked takes the upload all the same; our own request is told by its next write.
            log.warning("an upload was not made safe for another request", upload=upload_id, error=str(error))

    async def terminate(self, upload_id: str, principal: Principal) -> None:
        """Remove a resumable upload, finished or not. Raises as `delete` does."""
        await self._resumable(upload_id, principal)
        await self.delete(upload_id, principal)

    async def _take(
        self, upload_id: str, *, offset: int, principal: Principal, length: int | None, size: int | None
    ) -> Upload:
        upload = await self._writable(upload_id, principal)
        if upload.holder is not None and upload.state == "receiving":
            await self._ask_holder(upload, offset)
            upload = await self._writable(upload_id, principal)
        if upload.size != offset:
            raise Problem(
                problems.OFFSET_MISMATCH,
                f"The upload has {upload.size} bytes; go on there.",
                extra={"offset": upload.size},
            )
        if length is not None:
            if upload.length is not None and upload.length != length:
                raise Problem(problems.LENGTH_FIXED, f"It was declared to have {upload.length} bytes.")
            if length < upload.size:
                raise Problem(problems.LENGTH_FIXED, f"It has {upload.size} bytes already.")
            if length > self.options.max_size:
                raise too_large(self.options.max_size)
        bound = upload.length if length is None else length
        if size is not None and bound is not None and offset + size > bound:
            raise over_length(bound)
        if size is not None and bound is None and offset + size > self.options.max_size:
            raise too_large(self.options.max_size)
        if upload.state != "receiving":
            return upload
        if upload.epoch >= rows.MAX_EPOCHS:
            raise Problem(
                problems.TOO_MANY_PIECES,
                f"It came in {rows.MAX_EPOCHS} requests; begin again.",
            )
        await self._drafts.check_room((length or upload.length or offset) - offset)
        async with self._database.transaction() as session:
            mine = await rows.take(session, upload, replica=self._replica, length=length, limits=self.options)
        if mine is None:
            raise taken()
        return mine

    async def _writable(self, upload_id: str, principal: Principal) -> Upload:
        upload = await self._resumable(upload_id, principal)
        if upload.parts is not None:
            raise Problem(problems.UPLOAD_IS_FINAL, "Its bytes are those of its parts.")
        return upload

    async def _resumable(self, upload_id: str, principal: Principal) -> Upload:
        found = None
        if is_id(upload_id):
            async with self._database.session() as session:
                found = await rows.get_resumable(session, upload_id)
        if found is None:
            raise Problem(problems.NOT_FOUND, f"There is no upload {upload_id[:64]!r} that can be resumed.")
        upload, is_over = found
        _check_owner(upload.owner, principal)
        if is_over:
            raise Problem(problems.EXPIRED, "Begin it again.")
        return upload

    async def _ask_holder(self, upload: Upload, offset: int | None) -> None:
        if upload.holder == self._replica:
            await self.let_go(upload.id, offset)
        elif upload.holder is not None and self._ask is not None:
            try:
                async with asyncio.timeout(_ASK_TIMEOUT):
                    await self._ask(upload.holder, upload.id, offset)
            except TimeoutError:
                log.warning("a replica did not let go of an upload", upload=upload.id, replica=upload.holder)

    async def _made_of(self, parts: Sequence[str], owner: str | None) -> UploadRecord | None:
        async with self._database.session() as session:
            part = await rows.get(session, parts[0]) if parts else None
            whole = await rows.get(session, part[0].part_of) if part and part[0].part_of else None
        if whole is None or whole[0].parts != " ".join(parts) or whole[0].owner != owner:
            return None
        return UploadRecord.of(*whole)

    # What is there

    async def page(self, limit: int, before: rows.Cursor | None, principal: Principal) -> list[UploadRecord]:
        """Up to `limit` uploads that `principal` may read, of every state, newest first, older than `before`.

        Anonymous users share a name, and are told of nobody's: each knows the ids of its own.
        """
        owner = None if principal.trusted or self._open_to_all else principal.user
        if owner == "":
            return []
        async with self._database.session() as session:
            return await rows.page(session, limit, before, owner)

    async def get(self, upload_id: str, principal: Principal) -> UploadRecord:
        """Raises `Problem(NOT_FOUND)`, `Problem(FORBIDDEN)`."""
        return UploadRecord.of(*await self._readable(upload_id, principal))

    async def may_read(self, upload_id: str, principal: Principal) -> bool:
        """Whether `get` would answer. Raises `DatabaseUnavailable`."""
        try:
            await self._readable(upload_id, principal)
        except Problem:
            return False
        return True

    async def _readable(self, upload_id: str, principal: Principal) -> tuple[Upload, UploadLog | None]:
        upload, entry = await self._find(upload_id)
        if not self._open_to_all:
            _check_owner(upload.owner, principal)
        return upload, entry

    async def open(self, upload_id: str, principal: Principal) -> tuple[UploadRecord, Reader]:
        """The upload and its content; the caller closes the reader.

        Raises `Problem`: `NOT_FOUND`, `FORBIDDEN`, `UPLOAD_NOT_STORED`; `StoreError`.
        """
        upload, entry = await self._readable(upload_id, principal)
        record, key = UploadRecord.of(upload, entry), upload.storage_key
        if record.state != "stored" or key is None:
            why = f" {record.error}" if record.error else ""
            raise Problem(problems.UPLOAD_NOT_STORED, f"The upload is {record.state}.{why}")
        return record, await self._store.open(key)

    async def delete(self, upload_id: str, principal: Principal) -> None:
        """Remove an upload in any state; its log entry stays. Its owner and the API key's holder may.

        Raises `Problem(NOT_FOUND)`, `Problem(FORBIDDEN)`, `StoreError` (call again then).
        """
        upload, _ = await self._find(upload_id)
        _check_owner(upload.owner, principal)
        if not await self._removal.remove((col(Upload.id) == upload_id) & col(Upload.part_of).is_(None)):
            found, _ = await self._find(upload_id)
            if found.part_of is not None:
                raise Problem(problems.FORBIDDEN, f"It is part of {found.part_of}; delete that one.")

    async def sweep(self) -> None:
        """Remove what was left: uploads whose time is over, and bytes of none."""
        await self._removal.sweep()

    async def _find(self, upload_id: str) -> tuple[Upload, UploadLog | None]:
        found = None
        if is_id(upload_id):
            async with self._database.session() as session:
                found = await rows.get(session, upload_id)
        if found is None:
            raise Problem(problems.NOT_FOUND, f"There is no upload {upload_id[:64]!r}.")
        return found


def _check_owner(owner: str | None, principal: Principal) -> None:
    if not principal.trusted and owner != principal.user:
        raise Problem(problems.FORBIDDEN, "Only who began an upload may do that, or the API key's holder.")
