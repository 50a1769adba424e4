"""The statements that move an upload from state to state. Each carries its fence: no row, no right.

Every change of an upload's row is here, so that what may follow what can be read in one place:
receiving → received → processing → stored | failed, and from any of them → expired, which is on its way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Float,
    Select,
    Update,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.models import Job, Upload, UploadLog, UploadSegment, new_id
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.quotas import charge
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores.base import Piece, segment_key

__all__ = [
    "MAX_EPOCHS",
    "Cursor",
    "Draft",
    "claim_parts",
    "create",
    "expire",
    "fail",
    "find",
    "forget",
    "get",
    "get_resumable",
    "hold",
    "is_arriving",
    "is_gone",
    "is_receiving",
    "is_stale",
    "page",
    "parts_of",
    "pieces",
    "process",
    "progress",
    "receive",
    "reopen",
    "store",
    "take",
]

Cursor = tuple[datetime, str]

MAX_EPOCHS: Final = 10_000
"""Requests that may bring the bytes of one upload: each leaves a segment and a row."""

_SEGMENT = text(
    "INSERT INTO upload_segment (upload_id, epoch, size) VALUES (:upload_id, :epoch, :size) "
    "ON CONFLICT (upload_id, epoch) DO UPDATE SET size = excluded.size"
)

# Made once: it is executed 128 times a GiB, and making it and finding it compiled is half of its cost.
_PROGRESS: Final = (
    update(Upload)
    .where(
        col(Upload.id) == bindparam("of"),
        col(Upload.state) == "receiving",
        col(Upload.epoch) == bindparam("of_epoch"),
    )
    .values(
        size=bindparam("now_size"),
        holder=bindparam("now_holder"),
        reserved=bindparam("now_reserved"),
        touched_at=clock(),
        expires_at=clock(bindparam("lifetime", type_=Float())),
    )
    .returning(Upload)
    .execution_options(synchronize_session=False, populate_existing=True)
)


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of an upload before its first byte."""

    filename: str
    content_type: str
    owner: str | None
    received_by: str
    lifetime: float
    """Seconds without a byte after which it expires."""
    length: int | None = None
    reserved: int = 0
    resumable: bool = False
    holder: str | None = None
    metadata: str | None = None
    partial: bool = False
    idempotency: str | None = None


async def create(session: AsyncSession, draft: Draft, limits: UploadOptions) -> Upload:
    """A new row in `receiving`, of epoch 1. Raises `Problem(QUOTA_EXCEEDED)`, and `IntegrityError` when there
    is an upload of this idempotency key.
    """
    upload = await _insert(session, draft)
    await charge(session, draft.owner, size=draft.reserved, files=1, limits=limits)
    return upload


async def _insert(session: AsyncSession, draft: Draft) -> Upload:
    statement = insert(Upload).values(
        id=new_id(),
        filename=draft.filename,
        content_type=draft.content_type,
        state="receiving",
        holder=draft.holder,
        length=draft.length,
        reserved=draft.reserved,
        resumable=draft.resumable,
        upload_metadata=draft.metadata,
        partial=draft.partial,
        idempotency=draft.idempotency,
        owner=draft.owner,
        received_by=draft.received_by,
        created_at=clock(),
        touched_at=clock(),
        expires_at=clock(draft.lifetime),
    )
    return (await session.execute(statement.returning(Upload))).scalar_one()


async def take(
    session: AsyncSession, upload: Upload, *, replica: str, length: int | None, limits: UploadOptions
) -> Upload | None:
    """Make `replica` the one that receives, from where `upload` is. None: somebody else was faster.

    `length` is what it will have, where that is said only now. Raises `Problem(QUOTA_EXCEEDED)`.
    """
    taken = await _update(
        session,
        is_receiving(upload) & (col(Upload.size) == upload.size),
        epoch=col(Upload.epoch) + 1,
        holder=replica,
        received_by=replica,
        length=upload.length if length is None else length,
        reserved=upload.reserved if length is None else length,
        touched_at=clock(),
        expires_at=clock(limits.expire_after),
    )
    if taken is not None and taken.reserved != upload.reserved:
        await charge(session, upload.owner, size=taken.reserved - upload.reserved, limits=limits)
    return taken


async def progress(
    session: AsyncSession,
    upload: Upload,
    *,
    size: int,
    segment: int,
    holder: str | None,
    lifetime: float,
    limits: UploadOptions,
) -> Upload | None:
    """Note that `size` bytes are safe, `segment` of them in the segment of this epoch.

    `holder` None: nobody receives for now, and who comes next needs to ask nobody.

    None: the writer of this epoch does not own the upload any more. Raises `Problem(QUOTA_EXCEEDED)` when the
    upload has no length and has outgrown what was reserved for it.
    """
    result = await session.execute(
        _PROGRESS,
        {
            "of": upload.id,
            "of_epoch": upload.epoch,
            "now_size": size,
            "now_holder": holder,
            "now_reserved": max(size, upload.reserved),
            "lifetime": lifetime,
        },
    )
    current = result.scalar_one_or_none()
    if current is None:
        return None
    if segment:
        await _note_segment(session, upload, segment)
    if current.reserved > upload.reserved:
        await charge(session, upload.owner, size=current.reserved - upload.reserved, limits=limits)
    return current


async def receive(
    session: AsyncSession,
    upload: Upload,
    *,
    size: int,
    segment: int,
    sha256: str | None,
    lifetime: float,
    limits: UploadOptions,
) -> Upload | None:
    """receiving → received. None, and raises: as `progress`. A part of a concatenation may still expire.

    `segment` is noted even when it is empty: it is the last, and its writer, we, writes no more to it.
    """
    received = await _update(
        session,
        is_receiving(upload),
        state="received",
        holder=None,
        size=size,
        length=size,
        reserved=size,
        sha256=sha256,
        received_at=clock(),
        touched_at=clock(),
        expires_at=clock(lifetime) if upload.partial else None,
    )
    if received is None:
        return None
    await _note_segment(session, upload, segment)
    if size != upload.reserved:
        outgrown = limits if size > upload.reserved else None
        await charge(session, upload.owner, size=size - upload.reserved, limits=outgrown)
    return received


async def claim_parts(session: AsyncSession, draft: Draft, parts: Sequence[str]) -> Upload | None:
    """The concatenation of `parts`, complete at once; None when one of them cannot be used, or there is none.

    They must be received, of the draft's owner, and part of nothing else. From here on they count
    as one file, which has their bytes: no quota can refuse that. When it is None the transaction must be
    rolled back. Raises `IntegrityError` as `create` does.
    """
    if not parts:
        return None
    whole = await _insert(session, draft)
    size = 0
    # By id: two that claim the same parts in another order would wait for each other.
    for part_id, number in sorted(zip(parts, range(len(parts)), strict=True)):
        mine = col(Upload.owner).is_not_distinct_from(draft.owner) & col(Upload.part_of).is_(None)
        part = await _update(
            session,
            _is(part_id, "received") & col(Upload.partial) & mine,
            part_of=whole.id,
            part_number=number,
            reserved=0,
            expires_at=None,
        )
        if part is None:
            return None
        size += part.size
    received = await _update(
        session,
        _is(whole.id, "receiving"),
        state="received",
        parts=" ".join(parts),
        size=size,
        length=size,
        reserved=size,
        received_at=clock(),
        expires_at=None,
    )
    await charge(session, draft.owner, size=0, files=1 - len(parts))
    return received


async def process(session: AsyncSession, upload_id: str) -> Upload | None:
    """received → processing; again after a failed attempt. None: it is gone, or on its way out."""
    return await _update(session, _is(upload_id, "received", "processing"), state="processing")


async def store(
    session: AsyncSession, upload_id: str, *, key: str, sha256: str, media_type: str, finished_by: str
) -> Upload | None:
    """processing → stored; its parts may go. None: it is gone, or on its way out."""
    parts = update(Upload).where(col(Upload.part_of) == upload_id).values(expires_at=clock())
    await session.execute(parts.execution_options(synchronize_session=False))
    return await _update(
        session,
        _is(upload_id, "processing"),
        state="stored",
        storage_key=key,
        sha256=sha256,
        media_type=media_type,
        finished_by=finished_by,
        stored_at=clock(),
        error=None,
    )


async def hold(session: AsyncSession, upload_id: str, reason: str) -> Upload | None:
    """Say why it is still `processing`. None: it is not."""
    return await _update(session, _is(upload_id, "processing"), error=reason)


async def fail(session: AsyncSession, upload_id: str, *, error: str, finished_by: str) -> Upload | None:
    """received, processing → failed. None: it is gone, or on its way out."""
    return await _update(
        session,
        _is(upload_id, "received", "processing"),
        state="failed",
        error=error,
        finished_by=finished_by,
    )


async def reopen(session: AsyncSession, upload_id: str) -> Upload | None:
    """failed → received, for a job that is to be tried again. None: it is gone, or on its way out."""
    return await _update(session, _is(upload_id, "failed"), state="received", error=None, finished_by=None)


async def expire(
    session: AsyncSession, condition: ColumnElement[bool], *, lifetime: float
) -> tuple[Upload, str, int] | None:
    """Any state → expired, where `condition` holds; also the state before, and its job's attempts so far.

    The raised epoch and the state fence off whoever receives or finishes it. What it counts is given back.
    The row may stay for `lifetime` seconds, to tell who asks. None: the condition is false.
    """
    locked = (
        select(
            col(Upload.id), col(Upload.owner), col(Upload.state), col(Upload.reserved), col(Upload.part_of)
        )
        .where(condition)
        .with_for_update()
    )
    before = (await session.execute(locked)).one_or_none()
    if before is None:
        return None
    upload = await _update(
        session,
        col(Upload.id) == before.id,
        state="expired",
        epoch=col(Upload.epoch) + 1,
        holder=None,
        idempotency=None,
        reserved=0,
        touched_at=clock(),
        expires_at=clock(lifetime),
    )
    assert upload is not None  # it is locked
    attempts = await session.execute(select(func.max(Job.attempts)).where(col(Job.upload_id) == upload.id))
    if before.state != "expired":
        files = -1 if before.part_of is None else 0  # parts count with their whole
        await charge(session, before.owner, size=-before.reserved, files=files)
    return upload, before.state, attempts.scalar_one() or 0


async def forget(session: AsyncSession, upload_id: str) -> bool:
    """Delete the row and its jobs. False: somebody else has done so."""
    await session.execute(delete(Job).where(col(Job.upload_id) == upload_id))
    gone = delete(Upload).where(_is(upload_id, "expired")).returning(col(Upload.id))
    return (await session.execute(gone)).one_or_none() is not None


async def get(session: AsyncSession, upload_id: str) -> tuple[Upload, UploadLog | None] | None:
    """The row and its log entry."""
    row = (await session.execute(_with_log().where(col(Upload.id) == upload_id))).one_or_none()
    return None if row is None else (row[0], row[1])


async def get_resumable(session: AsyncSession, upload_id: str) -> tuple[Upload, bool] | None:
    """The row of an upload that can be resumed, and whether its time is over."""
    wanted = (col(Upload.id) == upload_id) & col(Upload.resumable)
    row = (await session.execute(select(Upload, is_stale()).where(wanted))).one_or_none()
    return None if row is None else (row[0], bool(row[1]) or row[0].state == "expired")


async def is_gone(session: AsyncSession, upload_id: str) -> bool:
    """Whether the upload is removed, or on its way out: nothing brings it back."""
    here = (col(Upload.id) == upload_id) & (col(Upload.state) != "expired")
    return (await session.execute(select(col(Upload.id)).where(here))).one_or_none() is None


async def find(session: AsyncSession, idempotency: str) -> tuple[Upload, bool] | None:
    """The upload that was made with this idempotency key, and whether its time is over."""
    wanted = select(Upload, is_stale()).where(col(Upload.idempotency) == idempotency)
    row = (await session.execute(wanted)).one_or_none()
    return None if row is None else (row[0], bool(row[1]))


async def pieces(session: AsyncSession, upload_id: str) -> list[Piece]:
    """What the upload consists of, in order; a concatenation of what its parts consist of."""
    segments = (
        select(col(UploadSegment.upload_id), col(UploadSegment.epoch), col(UploadSegment.size))
        .join(Upload, col(Upload.id) == col(UploadSegment.upload_id))
        .where(or_(col(Upload.id) == upload_id, col(Upload.part_of) == upload_id))
        .order_by(col(Upload.part_number), col(UploadSegment.epoch))
    )
    return [Piece(segment_key(row[0], row[1]), row[2]) for row in (await session.execute(segments)).all()]


async def parts_of(session: AsyncSession, upload_id: str) -> list[str]:
    """Ids of the uploads that it is the concatenation of, while they are here."""
    parts = select(col(Upload.id)).where(col(Upload.part_of) == upload_id).order_by(col(Upload.part_number))
    return list((await session.execute(parts)).scalars())


async def page(
    session: AsyncSession, limit: int, before: Cursor | None, owner: str | None
) -> list[UploadRecord]:
    """Up to `limit` uploads of `owner` (None: of all), newest first, older than the cursor.

    Parts of concatenations are not told.
    """
    newest = _with_log().where(col(Upload.partial).is_(False))
    if owner is not None:
        newest = newest.where(col(Upload.owner) == owner)
    newest = newest.order_by(col(Upload.created_at).desc(), col(Upload.id).desc()).limit(limit)
    if before is not None:
        moment = before[0].astimezone(UTC)
        newest = newest.where(tuple_(col(Upload.created_at), col(Upload.id)) < tuple_(moment, before[1]))
    return [UploadRecord.of(upload, entry) for upload, entry in (await session.execute(newest)).all()]


def is_arriving(upload_id: str) -> ColumnElement[bool]:
    """Whether not all of the upload is here, whoever brings it."""
    return _is(upload_id, "receiving")


def is_receiving(upload: Upload) -> ColumnElement[bool]:
    """Whether the writer that made, or took, `upload` still owns it."""
    return _is(upload.id, "receiving") & (col(Upload.epoch) == upload.epoch)


def is_stale() -> ColumnElement[bool]:
    """Uploads whose time is over: nobody has brought a byte, or finished removing them, for long enough."""
    return col(Upload.expires_at) < clock()


def _is(upload_id: str, *states: str) -> ColumnElement[bool]:
    return (col(Upload.id) == upload_id) & col(Upload.state).in_(states)


def _with_log() -> Select[Upload, UploadLog]:
    return select(Upload, UploadLog).outerjoin(UploadLog, col(UploadLog.upload_id) == col(Upload.id))


async def _note_segment(session: AsyncSession, upload: Upload, size: int) -> None:
    await session.execute(_SEGMENT, {"upload_id": upload.id, "epoch": upload.epoch, "size": size})


async def _update(session: AsyncSession, condition: ColumnElement[bool], **values: object) -> Upload | None:
    statement: Update = update(Upload).where(condition).values(**values)
    result = await session.execute(
        statement.returning(Upload).execution_options(synchronize_session=False, populate_existing=True)
    )
    return result.scalar_one_or_none()
