"""Uploads before their first byte: whether there is room for one, by limits, disk, quota, and its key."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from bongsu.db.models import Upload
from bongsu.db.session import Database
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads import rows
from bongsu.uploads.events import tell_changed
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.receiver import too_large
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.removal import Removal
from bongsu.uploads.stores.base import HasRoom, Store

__all__ = ["FULL_FOR", "AlreadyReceived", "Drafts", "digest_of", "key_reused"]

FULL_FOR: Final = 60
"""Seconds until a client may look whether there is room again."""


class AlreadyReceived(Exception):
    """This is the request of an upload that is here, sent again: the answer is its record."""

    def __init__(self, record: UploadRecord) -> None:
        super().__init__(record.id)
        self.record = record


class Drafts:
    """Makes rows of drafts."""

    def __init__(self, database: Database, store: Store, options: UploadOptions, removal: Removal) -> None:
        self._database = database
        self._room = store if isinstance(store, HasRoom) and options.min_free else None
        self._options = options
        self._removal = removal

    async def admit(self, draft: rows.Draft) -> Upload:
        """A new row. Raises `AlreadyReceived` for a request that was sent before, unless its upload never
        arrived; `DatabaseUnavailable`, `Problem`: `IDEMPOTENCY_KEY_REUSED`, `UPLOAD_TOO_LARGE`,
        `QUOTA_EXCEEDED`, `DISK_FULL`.
        """
        if draft.idempotency is not None:
            await self._find_key(draft, draft.idempotency)
        for length in (draft.length, draft.reserved):
            if length is not None and length > self._options.max_size:
                raise too_large(self._options.max_size)
        await self.check_room(draft.reserved)
        while True:
            try:
                async with self._database.transaction() as session:
                    upload = await rows.create(session, draft, self._options)
                    await tell_changed(session, upload)
                    return upload
            except IntegrityError:
                if draft.idempotency is None:
                    raise
                await self._find_key(draft, draft.idempotency)

    async def _find_key(self, draft: rows.Draft, digest: str) -> None:
        async with self._database.session() as session:
            found = await rows.find(session, digest)
        if found is None:
            return
        upload, is_over = found
        if is_over:  # the sweep has not come by yet; its address answers 410 already
            await self._removal.remove(
                (col(Upload.id) == upload.id) & rows.is_stale(), remember=upload.resumable
            )
            return
        if not _is_of(upload, draft):
            raise key_reused()
        if upload.state == "receiving" and not upload.resumable:
            # Its client has given that request up, or would not send another; we may notice only in minutes.
            await self._removal.remove(rows.is_receiving(upload))
        else:
            raise AlreadyReceived(UploadRecord.of(upload, None))

    async def check_room(self, size: int) -> None:
        """Raises `Problem(DISK_FULL)` when `size` bytes more would fall below the watermark."""
        free = None if self._room is None else await self._room.free()
        if free is not None and free - size < self._options.min_free:
            raise Problem(problems.DISK_FULL, "Try again later, or tell the operator.", retry_after=FULL_FOR)


def key_reused() -> Problem:
    """The problem of a key that came with two different requests."""
    return Problem(
        problems.IDEMPOTENCY_KEY_REUSED,
        "An upload of another kind, name or length has it. Send this one with a key of its own.",
    )


def _is_of(upload: Upload, draft: rows.Draft) -> bool:
    """Whether the request of this draft may be the one that made the upload.

    A draft without a length says nothing of it: the upload's may have become known since.
    """
    return (
        upload.resumable == draft.resumable
        and upload.partial == draft.partial
        and upload.parts is None
        and upload.filename == draft.filename
        and draft.length in (None, upload.length)
    )


def digest_of(owner: str | None, idempotency_key: str | None) -> str | None:
    """Two users' keys never meet; hashed, for a key may be of any length and is nobody else's business."""
    if idempotency_key is None:
        return None
    return hashlib.sha256(msgspec.json.encode([owner, idempotency_key])).hexdigest()
