"""The tables. A change here comes with a migration; a test compares the two on both databases."""

from __future__ import annotations

import re
import secrets
import time
from datetime import datetime
from typing import ClassVar, Final, Literal

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, SQLModel

from bongsu.db.columns import ErrorText, UTCDateTime

__all__ = [
    "Job",
    "JobState",
    "Outbox",
    "OutboxRelay",
    "Table",
    "Upload",
    "UploadLog",
    "UploadSegment",
    "UploadState",
    "UploadUsage",
    "is_id",
    "new_id",
]

UploadState = Literal["receiving", "received", "processing", "stored", "failed", "expired"]
JobState = Literal["queued", "running", "done", "dead"]

_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def new_id() -> str:
    """A fresh id, 32 hex digits in the layout of UUID version 7 (RFC 9562 §5.7).

    Sorts by the millisecond of its making (this machine's clock, so only roughly between replicas) and
    holds 74 random bits: nobody can guess somebody else's upload.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    value |= 0b10 << 62 | secrets.randbits(62)
    return f"{value:032x}"


def is_id(text: str) -> bool:
    """Whether `text` can be an id. To ask before the database: PostgreSQL refuses a NUL with an error."""
    return _ID.fullmatch(text) is not None


class Table(SQLModel):
    """Base of our tables. Its own metadata: an application that embeds us has SQLModel tables too."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Upload(Table, table=True):
    """One file on its way in, and then in the store. This row is the truth; bytes without it are rubbish.

    `epoch` is the fence of whoever receives: a writer owns the upload while the row still has its epoch.
    """

    __tablename__ = "upload"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "expires_at"),
        Index(None, "part_of"),
        Index(None, "idempotency", unique=True),
    )

    id: str = Field(primary_key=True, sa_type=String(32))
    filename: str = Field(sa_type=String(255), description="For display only; never part of a storage key")
    content_type: str = Field(sa_type=String(127), description="As the client declared it")
    media_type: str | None = Field(
        default=None, sa_type=String(127), description="What its first bytes say; known once stored"
    )
    state: str = Field(sa_type=String(16), description="An UploadState")
    epoch: int = Field(default=1)
    holder: str | None = Field(
        default=None, sa_type=String(255), description="Replica that receives at this moment"
    )
    size: int = Field(default=0, sa_type=BigInteger, description="Committed bytes; final once received")
    length: int | None = Field(
        default=None, sa_type=BigInteger, description="Bytes it will have, as declared; NULL: not said yet"
    )
    reserved: int = Field(
        default=0,
        sa_type=BigInteger,
        sa_column_kwargs={"server_default": text("0")},
        description="Bytes it counts in UploadUsage",
    )
    resumable: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    upload_metadata: str | None = Field(
        default=None, sa_type=Text, description="tus's Upload-Metadata, byte for byte"
    )
    partial: bool = Field(
        default=False,
        sa_column_kwargs={"server_default": false()},
        description="A part of a concatenation",
    )
    parts: str | None = Field(default=None, sa_type=Text, description="Ids of what it concatenates, in order")
    part_of: str | None = Field(default=None, sa_type=String(32), description="The whole it belongs to")
    part_number: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    idempotency: str | None = Field(
        default=None, sa_type=String(64), description="Digest of owner and Idempotency-Key"
    )
    sha256: str | None = Field(default=None, sa_type=String(64), description="Hex; known once stored")
    storage_key: str | None = Field(default=None, sa_type=String(255), description="Where the winner put it")
    owner: str | None = Field(
        default=None, sa_type=Text, description='User id; "" when anonymous, NULL for the API key'
    )
    received_by: str = Field(sa_type=String(255), description="Replica that received the bytes")
    finished_by: str | None = Field(default=None, sa_type=String(255), description="Replica that stored them")
    error: str | None = Field(default=None, sa_type=ErrorText, description="Why it failed, for the caller")
    created_at: datetime = Field(sa_type=UTCDateTime)
    touched_at: datetime = Field(sa_type=UTCDateTime, description="Last sign of life while receiving")
    expires_at: datetime | None = Field(
        default=None, sa_type=UTCDateTime, description="When the sweep may remove it; NULL: never"
    )
    received_at: datetime | None = Field(default=None, sa_type=UTCDateTime)
    stored_at: datetime | None = Field(default=None, sa_type=UTCDateTime)


class UploadSegment(Table, table=True):
    """What the writer of one epoch has committed: the first `size` bytes of its segment, and no more.

    The segments of an upload in the order of their epochs are its content.
    """

    __tablename__ = "upload_segment"

    upload_id: str = Field(
        primary_key=True, sa_type=String(32), sa_column_args=(ForeignKey("upload.id", ondelete="CASCADE"),)
    )
    epoch: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    size: int = Field(sa_type=BigInteger)


class UploadUsage(Table, table=True):
    """What counts against a quota. Changed in the transaction that changes the uploads it sums up.

    A counter, not a sum over the uploads: its row is the lock that replicas queue at, and it stays cheap.
    """

    __tablename__ = "upload_usage"

    scope: str = Field(primary_key=True, sa_type=Text, description="`total`, `key`, or `user:` and the id")
    size: int = Field(sa_type=BigInteger, description="Bytes that are stored or reserved")
    files: int = Field(sa_type=BigInteger)


class Job(Table, table=True):
    """A piece of work that must be done, whatever dies. Of one upload, or of the embedding application.

    `attempts` counts claims and is the fence: a worker owns the job while the row still has its attempt.
    `failures` and `expiries` bound it, counted apart: that a replica was killed is not the job's fault, nor
    that the storage is away, which is bounded by time.
    """

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("upload_id", "kind"),
        UniqueConstraint("kind", "unique_key"),
        Index(None, "state", "run_after"),
    )

    id: str = Field(primary_key=True, sa_type=String(32))
    upload_id: str | None = Field(
        default=None, sa_type=String(32), sa_column_args=(ForeignKey("upload.id", ondelete="CASCADE"),)
    )
    kind: str = Field(sa_type=String(64))
    unique_key: str | None = Field(
        default=None, sa_type=String(255), description="No second job of this kind while this one is kept"
    )
    payload: str | None = Field(default=None, sa_type=Text, description="JSON; of the application's jobs")
    state: str = Field(sa_type=String(16), description="A JobState")
    attempts: int = Field(default=0)
    failures: int = Field(default=0)
    expiries: int = Field(default=0)
    lease_owner: str | None = Field(default=None, sa_type=String(255))
    lease_until: datetime | None = Field(default=None, sa_type=UTCDateTime)
    run_after: datetime = Field(sa_type=UTCDateTime)
    away_since: datetime | None = Field(
        default=None, sa_type=UTCDateTime, description="When something it needs was first found away"
    )
    last_error: str | None = Field(default=None, sa_type=ErrorText, description="For the operator")
    created_at: datetime = Field(sa_type=UTCDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UTCDateTime, description="Done or dead since")


class Outbox(Table, table=True):
    """A publication that was committed with other rows and waits for the relay of its partition.

    The row is deleted when the broker has it. `id` is never used twice, not even when the table was empty.
    """

    __tablename__ = "outbox"
    __table_args__ = (Index(None, "partition", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(
        default=None, primary_key=True, sa_type=BigInteger().with_variant(Integer, "sqlite")
    )
    partition: int = Field(sa_type=SmallInteger)
    channel: str = Field(sa_type=Text)
    data: bytes = Field(sa_type=LargeBinary)
    created_at: datetime = Field(sa_type=UTCDateTime)


class OutboxRelay(Table, table=True):
    """Who relays a partition of the outbox, one row each.

    `term` is the fence and only grows. The lease counts on SQLite; on PostgreSQL an advisory lock stands in
    for it.
    """

    __tablename__ = "outbox_relay"

    partition: int = Field(primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"autoincrement": False})
    term: int = Field(default=0, sa_type=BigInteger)
    owner: str | None = Field(default=None, sa_type=String(255))
    lease_until: datetime | None = Field(default=None, sa_type=UTCDateTime)


class UploadLog(Table, table=True):
    """What was stored: one row per stored upload, exactly (the key is the job's id); outlives the upload."""

    __tablename__ = "upload_log"
    __table_args__ = (UniqueConstraint("upload_id"),)

    job_id: str = Field(primary_key=True, sa_type=String(32))
    upload_id: str = Field(sa_type=String(32))
    filename: str = Field(sa_type=String(255))
    size: int = Field(sa_type=BigInteger)
    sha256: str = Field(sa_type=String(64))
    owner: str | None = Field(default=None, sa_type=Text)
    received_by: str = Field(sa_type=String(255))
    finished_by: str = Field(sa_type=String(255))
    created_at: datetime = Field(sa_type=UTCDateTime)
    received_at: datetime = Field(sa_type=UTCDateTime)
    stored_at: datetime = Field(sa_type=UTCDateTime)
    duration: float = Field(description="Seconds from the first byte to stored")
    attempts: int = Field(description="Claims of the job that it took")
