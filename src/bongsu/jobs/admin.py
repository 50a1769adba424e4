"""The job table as operators see it: what waits, what is dead, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.models import Job

__all__ = ["StateSummary", "drop", "forget_done", "listed", "revive", "summary"]

_AT_ONCE: Final = 1000  # rows that one chore deletes: a long transaction would hold up SQLite's other writers


class StateSummary(NamedTuple):
    """Jobs in one state. `oldest`: seconds since the one that has been there longest was enqueued."""

    jobs: int
    oldest: float


async def listed(session: AsyncSession, *, state: str | None, limit: int) -> Sequence[Job]:
    """Up to `limit` jobs, in `state` or all that are not done; oldest first."""
    wanted = col(Job.state) == state if state is not None else col(Job.state) != "done"
    found = await session.execute(
        select(Job).where(wanted).order_by(col(Job.created_at), col(Job.id)).limit(limit)
    )
    return found.scalars().all()


async def revive(session: AsyncSession, ids: Sequence[str] | None) -> Sequence[Job]:
    """Have dead jobs, those of `ids` or all, run again as if they had never failed. Those that were dead."""
    statement = update(Job).where(col(Job.state) == "dead")
    if ids is not None:
        statement = statement.where(col(Job.id).in_(ids))
    # Attempts go on: they are the fence against workers of the time before.
    revived = await session.execute(
        statement.values(
            state="queued", run_after=clock(), failures=0, expiries=0, away_since=None, finished_at=None
        )
        .returning(Job)
        .execution_options(synchronize_session=False)
    )
    return revived.scalars().all()


async def drop(session: AsyncSession, ids: Sequence[str]) -> Sequence[str]:
    """Delete dead jobs of the application. The ids of those that were; an upload's go with the upload."""
    dropped = await session.execute(
        delete(Job)
        .where(col(Job.id).in_(ids), col(Job.state) == "dead", col(Job.upload_id).is_(None))
        .returning(col(Job.id))
        .execution_options(synchronize_session=False)
    )
    return dropped.scalars().all()


async def forget_done(session: AsyncSession, *, kept: float) -> None:
    """Delete jobs of the application that have been done for `kept` seconds."""
    old = (
        select(col(Job.id))
        .where(col(Job.state) == "done", col(Job.upload_id).is_(None), col(Job.finished_at) <= clock(-kept))
        .limit(_AT_ONCE)
    )
    await session.execute(
        delete(Job).where(col(Job.id).in_(old)).execution_options(synchronize_session=False)
    )


async def summary(session: AsyncSession) -> dict[str, StateSummary]:
    """By state, of all jobs that are not done."""
    states = (
        select(col(Job.state), func.count(), func.min(col(Job.created_at)), clock())
        .where(col(Job.state) != "done")
        .group_by(col(Job.state))
    )
    return {
        state: StateSummary(jobs, max(0.0, (now - oldest).total_seconds()))
        for state, jobs, oldest, now in (await session.execute(states)).all()
    }
