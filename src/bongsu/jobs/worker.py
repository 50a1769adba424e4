"""The worker of one replica: claims jobs, runs them under a renewed lease, records how they ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.queue import Lease, LeaseLost, Queue
from bongsu.jobs.retry import RetryPolicy

__all__ = [
    "Chore",
    "Handler",
    "Interrupted",
    "Rejected",
    "TimeLimitExceeded",
    "Unavailable",
    "Worker",
    "contained",
]

log = structlog.stdlib.get_logger(__name__)

Chore = Callable[[], Awaitable[None]]


class Handler(Protocol):
    """What one kind of job does.

    A job is run at least once, and may be run by two workers at the same moment when one of them froze:
    only what `run` writes in the transaction of `Queue.complete` counts, exactly once.
    """

    async def run(self, lease: Lease) -> None:
        """Do the work and end it with `Queue.complete`. Raise to fail: the job is tried again later.

        Must stop at cancellation (the lease was lost, or the replica stops), leaving no thread behind.
        """
        ...

    async def give_up(self, session: AsyncSession, lease: Lease, error: Exception) -> None:
        """Record, in the transaction that buries the job, that it will not be tried again."""
        ...

    async def gave_up(self, lease: Lease) -> None:
        """Called after that transaction has been committed."""
        ...


class Rejected(Exception):
    """The work was done and says no: to try again would change nothing. The job is dead at once.

    The message is for whoever asked for the work, such as the person who uploaded a file.
    """


class Unavailable(Exception):
    """Something that the work needs is away: a server, a storage. It says nothing about the work.

    The job is tried again, at most a minute later, and for a day this counts as no failure.
    """


class TimeLimitExceeded(Exception):
    """An attempt took too long, and was ended."""


class Interrupted(Exception):
    """An attempt ended with what ends a task or the process, though nobody had asked for that."""


@asynccontextmanager
async def contained(*, time_limit: float) -> AsyncIterator[None]:
    """Let the application's code in the block end in one of two ways: it returned, or raised an `Exception`.

    Raises `TimeLimitExceeded` when it took longer: it is cancelled then, since a call that hangs would keep
    its slot and its job for ever. Raises `Interrupted` for a `CancelledError` that nobody sent, which would
    pass for a stop of the worker, for `SystemExit` and its like, and for an error whose text cannot be had.
    The causes show where it was.
    """
    task = asyncio.current_task()
    assert task is not None
    raised: BaseException | None = None
    try:
        async with asyncio.timeout(time_limit) as limit:
            yield
    except BaseException as error:
        raised = error
    # Code that was cut off has not done its work, whatever it made of its cancellation: a return, an error.
    if task.cancelling():  # the lease was lost, or the replica stops
        raise asyncio.CancelledError from raised
    if limit.expired():
        raise TimeLimitExceeded(f"it took longer than {time_limit:g} seconds") from raised
    if isinstance(raised, Exception) and _speaks(raised):
        raise raised
    if raised is not None:
        raise Interrupted(f"it raised {type(raised).__name__}") from raised


def _speaks(error: Exception) -> bool:
    """Whether it says what happened; one that does not could not be recorded."""
    try:
        str(error)
    except Exception:
        return False
    return True


class JobAbandoned(Exception):
    """The workers that tried the job vanished, once too often."""


class Worker:
    """Runs the jobs of `handlers` (by kind), at most `concurrency` at once.

    It looks when the queue rings and every `poll` seconds: the safety net for what a dead replica, or this
    one before a restart, left behind. `chores` run at the start and every `chore_interval` seconds.
    """

    def __init__(
        self,
        database: Database,
        queue: Queue,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int = 2,
        poll: float = 5.0,
        retry: RetryPolicy | None = None,
        chores: Sequence[Chore] = (),
        chore_interval: float = 60.0,
    ) -> None:
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._slots = asyncio.Semaphore(concurrency)
        self._poll = poll
        self._retry = retry or RetryPolicy()
        self._chores = chores
        self._chore_interval = chore_interval
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.trouble: str | None = None
        """Why no jobs are taken at the moment (the database is away), or None."""

    @property
    def alive(self) -> bool:
        """Whether the loop runs. False after an unexpected error: the replica should stop being ready."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Start the loop; it takes what is unfinished at once."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="jobs")
        self._task.add_done_callback(self._ended)

    async def stop(self, *, grace: float = 10.0) -> None:
        """Take no more jobs, give running ones `grace` seconds to finish, then give their leases back."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping = True
        self._queue.ring()
        done, _ = await asyncio.wait({task}, timeout=grace)
        if not done:
            task.cancel()
            await asyncio.wait({task})  # if it broke before, `_ended` has said so

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the job worker of this replica has died", exc_info=error)

    async def _run(self) -> None:
        # The group owns the running jobs: it waits for them at a stop, and cancels them with the loop.
        async with asyncio.TaskGroup() as group:
            chores = group.create_task(self._do_chores(), name="job chores")
            while not self._stopping:
                await self._slots.acquire()
                lease = None if self._stopping else await self._claim()
                if lease is None:
                    self._slots.release()
                    if not self._stopping:
                        await self._queue.wait(self._poll * random.uniform(0.75, 1.25))
                else:
                    group.create_task(self._work(lease), name=f"job {lease.job_id}")
            chores.cancel()

    async def _claim(self) -> Lease | None:
        if not self._handlers:
            return None
        try:
            lease = await self._queue.claim(list(self._handlers))
        except DatabaseUnavailable as error:
            if self.trouble is None:  # once per outage, not per poll
                log.warning("jobs wait: the database is away", error=str(error))
            self.trouble = str(error)
            return None
        self.trouble = None
        return lease

    async def _do_chores(self) -> None:
        while True:
            for chore in self._chores:
                try:
                    await chore()
                except DatabaseUnavailable as error:
                    log.warning("a chore was put off: the database is away", error=str(error))
            await asyncio.sleep(self._chore_interval)

    async def _work(self, lease: Lease) -> None:
        """Run one job to one of its ends: done, to be tried again, dead, lost, or given back."""
        handler = self._handlers[lease.kind]
        job = log.bind(job=lease.job_id, upload=lease.upload_id, attempt=lease.attempt)
        try:
            if self._retry.exhausted(failures=lease.failures, expiries=lease.expiries):
                raise JobAbandoned(f"{lease.expiries} workers vanished while they had this job")
            await self._run_renewed(handler, lease)
        except LeaseLost as error:
            job.info("another worker has the job", reason=str(error))
        except asyncio.CancelledError:
            with suppress(LeaseLost, DatabaseUnavailable):  # then the lease runs out by itself
                await self._queue.release(lease)
            raise
        except Exception as error:
            try:
                # These are results, not bugs: nobody needs to see where in the code they were.
                expected = isinstance(error, Rejected | Unavailable)
                job.warning("a job failed", reason=_reason(error), exc_info=None if expected else error)
                await self._fail(handler, lease, error)
            except (LeaseLost, DatabaseUnavailable) as unrecorded:
                # Nothing is lost: the lease runs out and the job is claimed again.
                job.warning("the failure could not be recorded", error=str(unrecorded))
            except Exception:
                # Likewise, and that is bounded. It must not end this worker: the next one that claims the job
                # would end too, and soon no replica would finish anything.
                job.exception("the failure could not be recorded")
        finally:
            self._slots.release()
            self._queue.ring()  # a slot is free

    async def _run_renewed(self, handler: Handler, lease: Lease) -> None:
        """Run the handler and renew the lease at thirds of its time; stop the handler once it is lost."""
        task = asyncio.create_task(handler.run(lease), name=f"job {lease.job_id} at work")
        try:
            while not (await asyncio.wait({task}, timeout=self._queue.lease_duration / 3))[0]:
                try:
                    await self._queue.renew(lease)
                except DatabaseUnavailable as error:
                    # The work goes on: if the lease is lost meanwhile, the fence at its end says so.
                    log.warning("a lease was not renewed", job=lease.job_id, error=str(error))
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # its end no longer matters, its thread does
            raise
        if task.cancelled():  # not by this worker: that is above
            raise Interrupted("it was cancelled, and not by its worker")
        await task

    async def _fail(self, handler: Handler, lease: Lease, error: Exception) -> None:
        reason = _reason(error)
        if isinstance(error, Unavailable | DatabaseUnavailable) and self._retry.waits(lease.away):
            delay = self._retry.wait(lease.away, chance=random.random())
            await self._queue.postpone(lease, delay=delay, error=reason)
            return
        failures = lease.failures + 1
        tries_again = not isinstance(error, Rejected)
        if tries_again and not self._retry.exhausted(failures=failures, expiries=lease.expiries):
            delay = self._retry.delay(failures, chance=random.random())
            await self._queue.retry(lease, delay=delay, error=reason)
            return
        async with self._database.transaction() as session:
            await self._queue.bury(session, lease, reason)
            await handler.give_up(session, lease, error)
        log.error("a job is dead", job=lease.job_id, upload=lease.upload_id, error=reason)
        await handler.gave_up(lease)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
