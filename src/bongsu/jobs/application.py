"""Jobs of the embedding application: functions that it registers, enqueued in its own transactions."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.bells import ring_after_commit
from bongsu.db.columns import clock
from bongsu.db.models import Job, new_id
from bongsu.db.session import Database
from bongsu.jobs.queue import Lease, Queue
from bongsu.jobs.worker import Handler, contained

__all__ = ["JobRun", "Jobs"]

MAX_PAYLOAD: Final = 256 * 1024
"""Most bytes of a payload as JSON: what is larger belongs in a table or in the storage."""

_PREFIX: Final = "app:"  # of their kinds: the jobs of uploads stand in the same table
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}", re.ASCII)
_MAX_KEY: Final = 255


@dataclass(slots=True)
class JobRun:
    """One attempt at a job, as its function gets it.

    `id` is the same in every attempt: the key for what must not happen twice elsewhere. `attempt` counts
    from 1, also those that were cut off.
    """

    id: str
    name: str
    payload: Any
    attempt: int
    _complete: Callable[[AsyncSession], Awaitable[None]]
    _database: Database
    _completed: bool = field(default=False, init=False)

    @asynccontextmanager
    async def completing(self) -> AsyncIterator[AsyncSession]:
        """The transaction that ends the job: what is written in it takes effect exactly once.

        Everything else that the function does may happen again, when the replica dies before the end.
        Raises `LeaseLost` when another replica has the job now: let it pass, nothing was committed.
        """
        async with self._database.transaction() as session:
            await self._complete(session)
            yield session
        self._completed = True


JobFunction: TypeAlias = Callable[[JobRun], Awaitable[None]]
_Function = TypeVar("_Function", bound=JobFunction)


class Jobs:
    """`bongsu.jobs`: where the application registers its functions, and enqueues.

    `handlers` is what its worker runs; it grows with `register`.
    """

    def __init__(self, database: Database, queue: Queue, *, time_limit: float = 600.0) -> None:
        self._database = database
        self._queue = queue
        self._time_limit = time_limit
        self._handlers: dict[str, Handler] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return self._handlers

    def register(self, name: str, *, time_limit: float | None = None) -> Callable[[_Function], _Function]:
        """Decorator: run `async def function(job: JobRun)` for jobs of that name, on this replica.

        An attempt is cancelled, and has failed, after `time_limit` seconds (None: BONGSU_JOBS__TIME_LIMIT).
        Up to 60 letters, digits, `_`, `.` and `-`. Raises ValueError for another name, or one that is
        registered already.
        """
        kind = _kind(name)
        if kind in self._handlers:
            raise ValueError(f"a job {name!r} is registered already")

        def decorate(function: _Function) -> _Function:
            limit = self._time_limit if time_limit is None else time_limit
            self._handlers[kind] = _Runner(name, function, limit, self._database, self._queue)
            return function

        return decorate

    async def enqueue(
        self,
        session: AsyncSession,
        name: str,
        payload: object = None,
        *,
        key: str | None = None,
        delay: float = 0.0,
    ) -> str | None:
        """Have the job run once `session` is committed, and not before `delay` seconds; its id.

        `payload` is anything JSON. With `key` there is one job of that name and key: None, and nothing is
        enqueued, while an earlier one is kept (BONGSU_JOBS__KEPT after it was done; until it is dropped or
        retried when it is dead). Which replicas know the name is not checked: it waits for one that does.

        Raises ValueError for a wrong name, key, delay or too large a payload, TypeError for what is not JSON,
        and what `session.execute` raises.
        """
        text = msgspec.json.encode(payload).decode()
        if len(text) > MAX_PAYLOAD:
            raise ValueError(f"a payload has at most {MAX_PAYLOAD} bytes, not {len(text)}")
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise ValueError(f"a key has 1 to {_MAX_KEY} characters, not {len(key)}")
        if delay < 0:
            raise ValueError(f"a delay is not negative: {delay}")
        # The two have the same clause with the same meaning, and SQLAlchemy a class for each. Imported late:
        # the dialect in use is loaded anyhow, the other takes a twentieth of a start.
        if session.get_bind().dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        statement = (
            insert(Job)
            .values(
                id=new_id(),
                kind=_kind(name),
                unique_key=key,
                payload=text,
                state="queued",
                run_after=clock(delay),
                created_at=clock(),
            )
            .on_conflict_do_nothing(index_elements=["kind", "unique_key"])
            .returning(col(Job.id))
        )
        added: str | None = (await session.execute(statement)).scalar_one_or_none()
        ring_after_commit(session, self._queue.ring)
        return added


class _Runner:
    """The `Handler` of one function."""

    def __init__(
        self, name: str, function: JobFunction, limit: float, database: Database, queue: Queue
    ) -> None:
        self._name = name
        self._function = function
        self._limit = limit
        self._database = database
        self._queue = queue

    async def run(self, lease: Lease) -> None:
        async def complete(session: AsyncSession) -> None:
            await self._queue.complete(session, lease)

        payload = None if lease.payload is None else msgspec.json.decode(lease.payload)
        run = JobRun(lease.job_id, self._name, payload, lease.attempt, complete, self._database)
        async with contained(time_limit=self._limit):
            await self._function(run)
        if not run._completed:
            async with run.completing():
                pass

    async def give_up(self, session: AsyncSession, lease: Lease, error: Exception) -> None:
        """The job's row says it all."""

    async def gave_up(self, lease: Lease) -> None:
        """Nobody waits for it."""


def _kind(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"a job's name has 1 to 60 letters, digits, _, . and -: {name!r} is none")
    return _PREFIX + name
