"""The job queue: rows in the shared database, taken by lease.

A job is enqueued in the transaction of what it belongs to. A worker claims it in one statement and owns it
while the row is `running` with the worker's attempt; every later statement carries that fence, so a
worker that froze and thaws after its lease was taken changes nothing. All times are the database's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Update, case, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.models import Job, new_id
from bongsu.db.session import Database

__all__ = ["Lease", "LeaseLost", "Queue"]


class LeaseLost(Exception):
    """Somebody else has this job now, or it is gone. What this worker did for it must not count."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One attempt at one job. `upload_id` is None for a job of the embedding application."""

    job_id: str
    upload_id: str | None
    kind: str
    attempt: int
    failures: int
    expiries: int
    payload: str | None = None
    away: float = 0.0
    """Seconds since something it needs was found to be away for the first time."""


class Queue:
    """The queue as one replica (`owner`) sees it. `lease` is how long a claim lasts unrenewed, in seconds."""

    def __init__(self, database: Database, owner: str, *, lease: float = 30.0) -> None:
        self.lease_duration = lease
        self._database = database
        self._owner = owner
        self._bell = asyncio.Event()

    async def add(self, session: AsyncSession, *, upload_id: str, kind: str) -> None:
        """Enqueue within `session`'s transaction. Raises `IntegrityError` when it has this job already."""
        await session.execute(
            insert(Job).values(
                id=new_id(),
                upload_id=upload_id,
                kind=kind,
                state="queued",
                run_after=clock(),
                created_at=clock(),
            )
        )

    def ring(self) -> None:
        """Tell this replica's worker that there may be work: it looks at once, not at its next poll."""
        self._bell.set()

    async def wait(self, timeout: float) -> None:
        """Until somebody rings, at most `timeout` seconds. A ring between two waits is not lost."""
        try:
            async with asyncio.timeout(timeout):
                await self._bell.wait()
        except TimeoutError:
            return
        self._bell.clear()

    async def claim(self, kinds: Collection[str]) -> Lease | None:
        """Take the job that has waited longest, or one whose lease ran out; None when there is nothing."""
        waiting = (col(Job.state) == "queued") & (col(Job.run_after) <= clock())
        abandoned = (col(Job.state) == "running") & (col(Job.lease_until) <= clock())
        # A scalar subquery: PostgreSQL evaluates it once. As IN (…) it may run again for each row of a
        # join and lock, and so hide from the others, more jobs than the one that is returned.
        chosen = (
            select(col(Job.id))
            .where(or_(waiting, abandoned), col(Job.kind).in_(kinds))
            .order_by(col(Job.run_after), col(Job.id))
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        statement = (
            update(Job)
            .where(col(Job.id) == chosen)
            .values(
                state="running",
                attempts=col(Job.attempts) + 1,
                expiries=col(Job.expiries) + case((col(Job.state) == "running", 1), else_=0),
                lease_owner=self._owner,
                lease_until=clock(self.lease_duration),
            )
            .returning(
                col(Job.id),
                col(Job.upload_id),
                col(Job.kind),
                col(Job.attempts),
                col(Job.failures),
                col(Job.expiries),
                col(Job.payload),
                col(Job.away_since),
                clock(),
            )
            .execution_options(synchronize_session=False)
        )
        async with self._database.transaction() as session:
            row = (await session.execute(statement)).one_or_none()
        if row is None:
            return None
        job_id, upload_id, kind, attempts, failures, expiries, payload, since, now = row
        away = 0.0 if since is None else (now - since).total_seconds()
        return Lease(job_id, upload_id, kind, attempts, failures, expiries, payload, away)

    async def renew(self, lease: Lease) -> None:
        """Extend the lease from now. Raises `LeaseLost`."""
        async with self._database.transaction() as session:
            await self._change(session, lease, _held(lease).values(lease_until=clock(self.lease_duration)))

    async def complete(self, session: AsyncSession, lease: Lease) -> None:
        """Mark the job done within `session`'s transaction, which holds its results. Raises `LeaseLost`."""
        await self._change(session, lease, _ended(lease, "done").values(last_error=None))

    async def bury(self, session: AsyncSession, lease: Lease, error: str) -> None:
        """Give the job up within `session`'s transaction: it stays, dead. Raises `LeaseLost`."""
        await self._change(session, lease, _ended(lease, "dead").values(last_error=error))

    async def retry(self, lease: Lease, *, delay: float, error: str) -> None:
        """Count a failure and let the job run again in `delay` seconds. Raises `LeaseLost`."""
        again = _ended(lease, "queued").values(
            failures=lease.failures + 1, run_after=clock(delay), last_error=error
        )
        async with self._database.transaction() as session:
            await self._change(session, lease, again)

    async def postpone(self, lease: Lease, *, delay: float, error: str) -> None:
        """Let the job run again in `delay` seconds: what it needs is away. Raises `LeaseLost`."""
        since = func.coalesce(col(Job.away_since), clock())
        again = _ended(lease, "queued").values(away_since=since, run_after=clock(delay), last_error=error)
        async with self._database.transaction() as session:
            await self._change(session, lease, again)

    async def release(self, lease: Lease) -> None:
        """Give the lease back unused, no failure counted: others may take it now. Raises `LeaseLost`."""
        async with self._database.transaction() as session:
            await self._change(session, lease, _ended(lease, "queued").values(run_after=clock()))

    async def _change(self, session: AsyncSession, lease: Lease, statement: Update) -> None:
        if (await session.execute(statement.returning(col(Job.id)))).one_or_none() is None:
            raise LeaseLost(f"job {lease.job_id}: attempt {lease.attempt} is not the current one")


def _held(lease: Lease) -> Update:
    """An update of the job that takes effect only while `lease` holds it."""
    return (
        update(Job)
        .where(
            col(Job.id) == lease.job_id,
            col(Job.attempts) == lease.attempt,
            col(Job.state) == "running",
        )
        .execution_options(synchronize_session=False)
    )


def _ended(lease: Lease, state: str) -> Update:
    ended = _held(lease).values(state=state, lease_owner=None, lease_until=None)
    return ended if state == "queued" else ended.values(finished_at=clock())
