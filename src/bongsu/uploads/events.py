"""What is told of uploads: changes of state with the transaction that makes them, progress at most once."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.db import outbox
from bongsu.db.models import Upload, UploadLog
from bongsu.uploads.record import UploadRecord

__all__ = ["FEED", "channel_of", "progress_event", "tell_changed", "tell_deleted"]

FEED: Final = "uploads:feed"


def channel_of(upload_id: str) -> str:
    """The channel of one upload: its changes of state, and its progress while it is received."""
    return f"uploads:{upload_id}"


async def tell_changed(session: AsyncSession, upload: Upload, entry: UploadLog | None = None) -> None:
    """`{"event":"changed","upload":{…}}`: an upload is new or in another state.

    Of a part of a concatenation nothing is told: the log does not show it either.
    """
    if not upload.partial:
        record = UploadRecord.of(upload, entry).model_dump(mode="json")
        await _publish(session, upload.id, _event("changed", record))


async def tell_deleted(session: AsyncSession, upload: Upload) -> None:
    """`{"event":"deleted","upload":{"id":…}}`: an upload is gone, finished or not."""
    if not upload.partial:
        await _publish(session, upload.id, _event("deleted", {"id": upload.id}))


def progress_event(upload_id: str, *, size: int, length: int | None) -> bytes:
    """`{"event":"progress","upload":{"id":…,"size":…,"length":…}}`: bytes have arrived."""
    return _event("progress", {"id": upload_id, "size": size, "length": length})


async def _publish(session: AsyncSession, upload_id: str, event: bytes) -> None:
    await outbox.publish(session, FEED, event)
    await outbox.publish(session, channel_of(upload_id), event)


def _event(name: Literal["changed", "deleted", "progress"], upload: dict[str, object]) -> bytes:
    return msgspec.json.encode({"event": name, "upload": upload})
