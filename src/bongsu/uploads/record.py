"""An upload as the world sees it: in the API's answers and in the events of its channels."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from bongsu.db.models import Upload, UploadLog, UploadState

__all__ = ["UploadRecord"]


class UploadRecord(BaseModel):
    """One upload with its log entry. Times are ISO 8601 in UTC, from the database's clock."""

    model_config = ConfigDict(frozen=True)

    id: str
    filename: str
    size: int
    """Bytes; those that are safe so far while `receiving`."""
    length: int | None
    """Bytes it will have; null while nobody has said so."""
    sha256: str | None
    content_type: str
    """As its sender declared it."""
    media_type: str | None
    """What its first bytes say it is; known once stored."""
    state: UploadState
    owner: str | None
    """User id; "" when anonymous, null for the API key's holder."""
    received_by: str
    finished_by: str | None
    created_at: datetime
    received_at: datetime | None
    stored_at: datetime | None
    expires_at: datetime | None
    """When an unfinished upload is removed unless more of it arrives; null: never."""
    duration: float | None
    """Seconds from the first byte to stored; from the log, like `attempts`."""
    attempts: int | None
    error: str | None
    metadata: str | None = Field(exclude=True)
    """tus's `Upload-Metadata`, byte for byte. This and what follows is for tus alone, not for the API."""
    partial: bool = Field(exclude=True)
    parts: tuple[str, ...] = Field(exclude=True)
    """Ids of what it is the concatenation of; empty: it is none."""

    @classmethod
    def of(cls, upload: Upload, entry: UploadLog | None) -> UploadRecord:
        return cls(
            **upload.model_dump(include=cls.model_fields.keys() - {"duration", "attempts", "parts"}),
            duration=entry and entry.duration,
            attempts=entry and entry.attempts,
            metadata=upload.upload_metadata,
            parts=tuple((upload.parts or "").split()),
        )
