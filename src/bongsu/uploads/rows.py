"""The statements that move an upload from state to state. Each carries its fence: no row, no right.

Every change of an upload's row is here, so that what may follow what can be read in one place:
receiving → received → processing → stored | failed, and from any of them → expired, which is on its way out.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Select, Update, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.models import Job, Upload, UploadLog, new_id
from bongsu.uploads.record import UploadRecord

__all__ = [
    "Cursor",
    "create",
    "expire",
    "fail",
    "forget",
    "get",
    "is_receiving",
    "is_stale",
    "page",
    "process",
    "receive",
    "store",
    "touch",
]

Cursor = tuple[datetime, str]


async def create(
    session: AsyncSession, *, filename: str, content_type: str, owner: str | None, received_by: str
) -> Upload:
    """A new row in `receiving`, of epoch 1."""
    statement = insert(Upload).values(
        id=new_id(),
        filename=filename,
        content_type=content_type,
        state="receiving",
        owner=owner,
        received_by=received_by,
        created_at=clock(),
        touched_at=clock(),
    )
    return (await session.execute(statement.returning(Upload))).scalar_one()


async def touch(session: AsyncSession, upload: Upload, size: int) -> bool:
    """Note progress. False: the writer of this epoch does not own the upload any more."""
    return await _update(session, is_receiving(upload), size=size, touched_at=clock()) is not None


async def receive(session: AsyncSession, upload: Upload, size: int) -> Upload | None:
    """receiving → received. None: as in `touch`."""
    return await _update(
        session, is_receiving(upload), state="received", size=size, received_at=clock(), touched_at=clock()
    )


async def process(session: AsyncSession, upload_id: str) -> Upload | None:
    """received → processing; again after a failed attempt. None: it is gone, or on its way out."""
    return await _update(session, _is(upload_id, "received", "processing"), state="processing")


async def store(
    session: AsyncSession, upload_id: str, *, key: str, sha256: str, finished_by: str
) -> Upload | None:
    """processing → stored. None: it is gone, or on its way out."""
    return await _update(
        session,
        _is(upload_id, "processing"),
        state="stored",
        storage_key=key,
        sha256=sha256,
        finished_by=finished_by,
        stored_at=clock(),
        error=None,
    )


async def fail(session: AsyncSession, upload_id: str, *, error: str, finished_by: str) -> Upload | None:
    """received, processing → failed. None: it is gone, or on its way out."""
    return await _update(
        session,
        _is(upload_id, "received", "processing"),
        state="failed",
        error=error,
        finished_by=finished_by,
    )


async def expire(session: AsyncSession, condition: ColumnElement[bool]) -> tuple[Upload, int] | None:
    """Any state → expired, where `condition` holds; also the number of its job's attempts so far.

    The raised epoch and the state fence off whoever receives or finishes it. None: the condition is false.
    """
    upload = await _update(
        session, condition, state="expired", epoch=col(Upload.epoch) + 1, touched_at=clock()
    )
    if upload is None:
        return None
    attempts = await session.execute(select(func.max(Job.attempts)).where(col(Job.upload_id) == upload.id))
    return upload, attempts.scalar_one() or 0


async def forget(session: AsyncSession, upload_id: str) -> bool:
    """Delete the row and its jobs. False: somebody else has done so."""
    await session.execute(delete(Job).where(col(Job.upload_id) == upload_id))
    gone = delete(Upload).where(_is(upload_id, "expired")).returning(col(Upload.id))
    return (await session.execute(gone)).one_or_none() is not None


async def get(session: AsyncSession, upload_id: str) -> tuple[Upload, UploadLog | None] | None:
    """The row and its log entry."""
    row = (await session.execute(_with_log().where(col(Upload.id) == upload_id))).one_or_none()
    return None if row is None else (row[0], row[1])


async def page(session: AsyncSession, limit: int, before: Cursor | None) -> list[UploadRecord]:
    """Up to `limit` uploads, newest first, older than the cursor."""
    newest = _with_log().order_by(col(Upload.created_at).desc(), col(Upload.id).desc()).limit(limit)
    if before is not None:
        moment = before[0].astimezone(UTC)
        newest = newest.where(tuple_(col(Upload.created_at), col(Upload.id)) < tuple_(moment, before[1]))
    return [UploadRecord.of(upload, entry) for upload, entry in (await session.execute(newest)).all()]


def is_receiving(upload: Upload) -> ColumnElement[bool]:
    """Whether the writer that made, or took, `upload` still owns it."""
    return _is(upload.id, "receiving") & (col(Upload.epoch) == upload.epoch)


def is_stale(abandoned_after: float) -> ColumnElement[bool]:
    """Uploads whose receiver, or remover, has not been heard of for that many seconds."""
    left = or_(col(Upload.state) == "receiving", col(Upload.state) == "expired")
    return left & (col(Upload.touched_at) < clock(-abandoned_after))


def _is(upload_id: str, *states: str) -> ColumnElement[bool]:
    return (col(Upload.id) == upload_id) & col(Upload.state).in_(states)


def _with_log() -> Select[Upload, UploadLog]:
    return select(Upload, UploadLog).outerjoin(UploadLog, col(UploadLog.upload_id) == col(Upload.id))


async def _update(session: AsyncSession, condition: ColumnElement[bool], **values: object) -> Upload | None:
    statement: Update = update(Upload).where(condition).values(**values)
    result = await session.execute(
        statement.returning(Upload).execution_options(synchronize_session=False, populate_existing=True)
    )
    return result.scalar_one_or_none()
