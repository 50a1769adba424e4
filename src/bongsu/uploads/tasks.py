"""The background job of an upload: hash it, put it in its final place, and log it, exactly once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.db.models import Upload, UploadLog
from bongsu.db.session import Database
from bongsu.jobs.queue import Lease, LeaseLost, Queue
from bongsu.jobs.worker import Rejected, Unavailable
from bongsu.uploads import rows
from bongsu.uploads.events import tell_changed
from bongsu.uploads.hooks import HookFailed, Hooks
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores.base import (
    BATCH,
    Piece,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
    object_key,
    segment_key,
)
from bongsu.uploads.types import HEAD, is_allowed, sniff

__all__ = ["FINISH", "FinishUpload", "not_allowed"]

log = structlog.stdlib.get_logger(__name__)

FINISH: Final = "finish"


class FinishUpload:
    """received → stored. The `Handler` of jobs of the kind `finish`.

    Each attempt works under a key of its own; the transaction at the end names the winner. Whoever loses
    removes only what is his.
    """

    def __init__(
        self,
        database: Database,
        store: Store,
        jobs: Queue,
        hooks: Hooks,
        replica: str,
        allowed_types: Sequence[str] = (),
    ) -> None:
        self._database = database
        self._store = store
        self._jobs = jobs
        self._hooks = hooks
        self._replica = replica
        self._allowed_types = allowed_types

    async def run(self, lease: Lease) -> None:
        try:
            await self._attempt(lease)
        except (StoreFull, StoreUnavailable) as error:
            raise Unavailable(str(error)) from error

    async def _attempt(self, lease: Lease) -> None:
        async with self._database.transaction() as session:
            upload = await rows.process(session, _upload(lease))
            if upload is None:
                raise LeaseLost(f"upload {lease.upload_id} is gone")
            pieces = await rows.pieces(session, upload.id)
            if lease.attempt == 1:
                await tell_changed(session, upload)
        key = object_key(upload.id, lease.attempt)
        try:
            await self._store.compose(pieces, key)
            media_type, sha256 = await self._examine(key, upload)
            if not is_allowed(media_type, self._allowed_types):
                raise Rejected(not_allowed(media_type))
            await self._ask_hooks(upload, key, sha256, media_type)
            await self._commit(lease, key, sha256, media_type)
        except (LeaseLost, Rejected, HookFailed, Unavailable):
            # Only where it is certain that this is not the winner: a commit may have happened whose answer
            # was lost.
            await self._store.delete(key)
            raise
        # Only now: until that commit the segments are what the next attempt starts from.
        await self._clean(upload, pieces, before=lease.attempt)

    async def _examine(self, key: str, upload: Upload) -> tuple[str, str]:
        """What the object is, and its SHA-256 in hex. Raises `StoreError` unless it has the upload's size."""
        size = upload.size
        digest = hashlib.sha256()
        reader = await self._store.open(key)
        try:
            if reader.size != size:
                raise StoreError(f"the file has {reader.size} bytes in the store instead of {size}")
            media_type = sniff(await reader.read(0, HEAD), upload.content_type)
            if upload.sha256 is not None:  # made while it was received: one request brought all of it
                return media_type, upload.sha256
            for offset in range(0, size, BATCH):
                await asyncio.to_thread(digest.update, await reader.read(offset, BATCH))
        finally:
            await reader.close()
        return media_type, digest.hexdigest()

    async def _ask_hooks(self, upload: Upload, key: str, sha256: str, media_type: str) -> None:
        """Raises as `Hooks.run` does. Until the next attempt the upload says which hook failed."""
        known = {"sha256": sha256, "media_type": media_type}
        record = UploadRecord.of(upload, None).model_copy(update=known)
        try:
            await self._hooks.run(record, self._store, key)
        except (HookFailed, Unavailable) as error:
            async with self._database.transaction() as session:
                held = await rows.hold(session, upload.id, f"Held: {error}; it is tried again.")
                if held is not None:
                    await tell_changed(session, held)
            raise

    async def _commit(self, lease: Lease, key: str, sha256: str, media_type: str) -> None:
        """The one transaction: job done, upload stored, log row and event written. Raises `LeaseLost`."""
        async with self._database.transaction() as session:
            await self._jobs.complete(session, lease)
            upload = await rows.store(
                session,
                _upload(lease),
                key=key,
                sha256=sha256,
                media_type=media_type,
                finished_by=self._replica,
            )
            if upload is None:
                raise LeaseLost(f"upload {lease.upload_id} is gone")
            assert upload.received_at is not None
            assert upload.stored_at is not None
            entry = UploadLog(
                job_id=lease.job_id,
                upload_id=upload.id,
                filename=upload.filename,
                size=upload.size,
                sha256=sha256,
                owner=upload.owner,
                received_by=upload.received_by,
                finished_by=self._replica,
                created_at=upload.created_at,
                received_at=upload.received_at,
                stored_at=upload.stored_at,
                duration=(upload.stored_at - upload.created_at).total_seconds(),
                attempts=lease.attempt,
            )
            session.add(entry)
            await tell_changed(session, upload, entry)

    async def _clean(self, upload: Upload, pieces: Sequence[Piece], *, before: int) -> None:
        """Remove the segments, also those that nobody named: of replicas that died before their first commit.

        A part's go with the part.
        """
        segments = {piece.key for piece in pieces}
        segments.update(segment_key(upload.id, epoch) for epoch in range(1, upload.epoch + 1))
        try:
            for key in segments:
                await self._store.delete(key)
            for attempt in range(1, before):
                await self._store.delete(object_key(upload.id, attempt))
        except StoreError as error:
            # The upload is stored; to fail its job now would be a lie. The rest goes with the upload.
            log.warning("what an upload left could not be removed", upload=upload.id, error=str(error))

    async def give_up(self, session: AsyncSession, lease: Lease, error: Exception) -> None:
        # These are written for the caller; anything else is for the log and the job's row.
        fit = isinstance(error, StoreError | HookFailed | Unavailable)
        reason = str(error) if fit else "an unexpected error, see the server's log"
        upload = await rows.fail(
            session,
            _upload(lease),
            error=f"Rejected: {error}"
            if isinstance(error, Rejected)
            else f"Given up after {lease.failures + 1} failures: {reason}.",
            finished_by=self._replica,
        )
        if upload is not None:
            await tell_changed(session, upload)

    async def gave_up(self, lease: Lease) -> None:
        """Nothing is left to do: the event went with the transaction."""


def not_allowed(media_type: str) -> str:
    """Why a file of that type is refused, for its sender."""
    return f"The content is {media_type}, and that is not accepted here."


def _upload(lease: Lease) -> str:
    assert lease.upload_id is not None, "a job of this kind is enqueued with its upload"
    return lease.upload_id
