"""An upload as the world sees it: in the API's answers and in the events of `uploads:feed`."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict

from bongsu.db.models import Upload, UploadLog, UploadState

__all__ = ["FEED", "UploadRecord", "changed_event", "deleted_event"]

FEED: Final = "uploads:feed"


class UploadRecord(BaseModel):
    """One upload with its log entry. Times are ISO 8601 in UTC, from the database's clock."""

    model_config = ConfigDict(frozen=True)

    id: str
    filename: str
    size: int
    """Bytes; those received so far while `receiving`."""
    sha256: str | None
    content_type: str
    state: UploadState
    owner: str | None
    """User id; "" when anonymous, null for the API key's holder."""
    received_by: str
    finished_by: str | None
    created_at: datetime
    received_at: datetime | None
    stored_at: datetime | None
    duration: float | None
    """Seconds from the first byte to stored; from the log, like `attempts`."""
    attempts: int | None
    error: str | None

    @classmethod
    def of(cls, upload: Upload, entry: UploadLog | None) -> UploadRecord:
        return cls(
            **upload.model_dump(include=cls.model_fields.keys() - {"duration", "attempts"}),
            duration=entry and entry.duration,
            attempts=entry and entry.attempts,
        )


def changed_event(record: UploadRecord) -> bytes:
    """`{"event":"changed","upload":{…}}`: an upload is new or in another state."""
    return _event("changed", record.model_dump(mode="json"))


def deleted_event(upload_id: str) -> bytes:
    """`{"event":"deleted","upload":{"id":…}}`: an upload is gone, finished or not."""
    return _event("deleted", {"id": upload_id})


def _event(name: Literal["changed", "deleted"], upload: dict[str, object]) -> bytes:
    return msgspec.json.encode({"event": name, "upload": upload})
