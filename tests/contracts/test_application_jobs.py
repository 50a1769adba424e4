"""Jobs of the embedding application: committed with its rows, run by some replica, once as far as rows go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from bongsu.db import outbox
from bongsu.db.columns import clock
from bongsu.db.migrate import migrate
from bongsu.db.models import Job, Outbox
from bongsu.db.session import Database
from bongsu.jobs import admin
from bongsu.jobs.application import JobRun, Jobs
from bongsu.jobs.queue import LeaseLost, Queue
from bongsu.jobs.retry import RetryPolicy
from bongsu.jobs.worker import Rejected, Worker

DEADLINE = 30.0


class World:
    """One replica's jobs and their worker, on a database of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.queue = Queue(database, "r1")
        self.jobs = Jobs(database, self.queue)
        self.worker = Worker(
            database,
            self.queue,
            self.jobs.handlers,
            poll=0.05,
            retry=RetryPolicy(first_delay=0, max_failures=3),
        )

    async def enqueue(self, name: str, payload: object = None, **options: Any) -> str | None:
        async with self.database.transaction() as session:
            return await self.jobs.enqueue(session, name, payload, **options)

    async def all(self) -> list[Job]:
        async with self.database.session() as session:
            return list((await session.execute(select(Job).order_by(col(Job.id)))).scalars())

    async def run_until(self, ended: Callable[[list[Job]], bool]) -> None:
        """Let the worker run until `ended` is true of the rows."""
        await self.worker.start()
        async with asyncio.timeout(DEADLINE):
            while not ended(await self.all()):  # noqa: ASYNC110  # a row in a database is no event
                await asyncio.sleep(0.02)
        await self.worker.stop()


def all_done(jobs: list[Job]) -> bool:
    return all(job.state == "done" for job in jobs)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    await migrate(database_url)
    database = Database(database_url)
    yield World(database)
    await database.stop()


async def test_a_job_runs_with_its_payload_once_it_was_committed(world: World) -> None:
    runs: list[JobRun] = []

    @world.jobs.register("resize")
    async def resize(job: JobRun) -> None:
        runs.append(job)

    async with world.database.session() as session:
        await world.jobs.enqueue(session, "resize", {"width": 1})
        await session.rollback()
    assert await world.all() == []
    payload = {"width": 640, "이름": [None, 1.5]}
    job_id = await world.enqueue("resize", payload)
    await world.run_until(all_done)
    assert [(run.id, run.name, run.payload, run.attempt) for run in runs] == [(job_id, "resize", payload, 1)]
    assert (await world.all())[0].finished_at is not None


async def test_a_commit_rings_for_the_worker_of_its_own_replica(world: World) -> None:
    ran = asyncio.Event()

    @world.jobs.register("now")
    async def now(job: JobRun) -> None:
        ran.set()

    worker = Worker(world.database, world.queue, world.jobs.handlers, poll=3600)
    await worker.start()
    await world.enqueue("now")
    async with asyncio.timeout(DEADLINE):
        await ran.wait()
    await worker.stop()


async def test_of_jobs_with_one_key_only_the_first_is_enqueued(world: World) -> None:
    first = await world.enqueue("mail", 1, key="order-1")
    assert first is not None
    assert await world.enqueue("mail", 2, key="order-1") is None
    assert await world.enqueue("mail", 3, key="order-2") is not None
    assert await world.enqueue("other", 4, key="order-1") is not None
    assert await world.enqueue("mail", 5) is not None
    assert await world.enqueue("mail", 6) is not None
    assert [job.payload for job in await world.all()] == ["1", "3", "4", "5", "6"]


async def test_a_job_that_hangs_is_ended_and_has_failed(world: World) -> None:
    """It kept one of the replica's few slots, and renewed its lease, for ever."""
    ended = []

    @world.jobs.register("hang", time_limit=0.05)
    async def hang(job: JobRun) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(job.attempt)

    @world.jobs.register("quick", time_limit=600)
    async def quick(job: JobRun) -> None:
        raise TimeoutError("of its own")

    await world.enqueue("hang")
    await world.enqueue("quick")
    await world.run_until(lambda jobs: all(job.state == "dead" for job in jobs))
    assert ended == [1, 2, 3]
    assert [(job.failures, job.last_error) for job in await world.all()] == [
        (2, "TimeLimitExceeded: it took longer than 0.05 seconds"),
        (2, "TimeoutError: of its own"),
    ]


async def test_a_job_that_ignores_the_end_of_its_time_has_failed_all_the_same(world: World) -> None:
    """One that took its cancellation for nothing and returned was `done`."""
    ran = []

    @world.jobs.register("stubborn", time_limit=0.05)
    async def stubborn(job: JobRun) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ran.append(job.attempt)
        if job.attempt == 2:
            raise Rejected("nothing was found out")

    await world.enqueue("stubborn")
    await world.run_until(lambda jobs: jobs[0].state == "dead")
    assert ran == [1, 2, 3]
    assert (await world.all())[0].last_error == "TimeLimitExceeded: it took longer than 0.05 seconds"


async def test_a_job_that_ignores_the_stop_of_its_worker_is_run_again(world: World) -> None:
    started = asyncio.Event()

    @world.jobs.register("stubborn")
    async def stubborn(job: JobRun) -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    await world.enqueue("stubborn")
    await world.worker.start()
    async with asyncio.timeout(DEADLINE):
        await started.wait()
        await world.worker.stop(grace=0)
    (job,) = await world.all()
    assert (job.state, job.failures) == ("queued", 0)


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        SystemExit(3),
        KeyboardInterrupt(),
        BaseExceptionGroup("several", [SystemExit(3)]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_ends_a_task_or_a_process_is_a_failure_of_the_job_that_raises_it(
    world: World, error: BaseException
) -> None:
    """A CancelledError was taken for the worker's own: the job was tried again at once, without end. The
    others ended the server, and the next one that claimed the job.
    """
    attempts = []

    @world.jobs.register("exit")
    async def leave(job: JobRun) -> None:
        attempts.append(job.attempt)
        raise error

    await world.enqueue("exit")
    await world.run_until(lambda jobs: jobs[0].state == "dead")
    assert attempts == [1, 2, 3]
    assert (await world.all())[0].last_error == f"Interrupted: it raised {type(error).__name__}"


async def test_a_key_is_free_again_when_its_job_has_been_done_for_long_enough(world: World) -> None:
    @world.jobs.register("mail")
    async def mail(job: JobRun) -> None:
        pass

    await world.enqueue("mail", key="order-1")
    await world.run_until(all_done)
    for kept, left in ((3600.0, 1), (0.0, 0)):
        async with world.database.transaction() as session:
            await admin.forget_done(session, kept=kept)
        assert len(await world.all()) == left
    assert await world.enqueue("mail", key="order-1") is not None


async def test_a_delayed_job_waits(world: World) -> None:
    await world.enqueue("later", delay=3600)
    assert await world.queue.claim(["app:later"]) is None


async def test_what_is_written_in_the_completing_transaction_counts_once(world: World) -> None:
    """
    Setup: a job whose first attempt froze after its work; its lease ran out, and another one took it.
    Expect: the first one's rows are not committed, the second one's are.
    """
    await world.enqueue("count")
    old = await world.queue.claim(["app:count"])
    assert old is not None
    async with world.database.transaction() as session:
        await session.execute(update(Job).values(lease_until=clock(-1)))

    @world.jobs.register("count")
    async def count(job: JobRun) -> None:
        async with job.completing() as session:
            await outbox.publish(session, "news", b"%d" % job.attempt)

    await world.run_until(all_done)
    with pytest.raises(LeaseLost):
        await world.jobs.handlers["app:count"].run(old)
    async with world.database.session() as session:
        assert list((await session.execute(select(col(Outbox.data)))).scalars()) == [b"2"]


async def test_a_job_that_fails_is_tried_again_and_then_is_dead_until_it_is_retried(world: World) -> None:
    attempts: list[int] = []
    broken = True

    @world.jobs.register("flaky")
    async def flaky(job: JobRun) -> None:
        attempts.append(job.attempt)
        if broken:
            raise RuntimeError("no luck")

    job_id = await world.enqueue("flaky")
    await world.run_until(lambda jobs: jobs[0].state == "dead")
    assert attempts == [1, 2, 3]
    (dead,) = await world.all()
    assert (dead.failures, dead.last_error) == (2, "RuntimeError: no luck")
    async with world.database.session() as session:
        assert {name: each.jobs for name, each in (await admin.summary(session)).items()} == {"dead": 1}
        assert [job.id for job in await admin.listed(session, state="dead", limit=10)] == [job_id]

    broken = False
    async with world.database.transaction() as session:
        assert [job.id for job in await admin.revive(session, None)] == [job_id]
    await world.run_until(all_done)
    assert attempts == [1, 2, 3, 4]


async def test_a_rejection_is_final(world: World) -> None:
    attempts: list[int] = []

    @world.jobs.register("judge")
    async def judge(job: JobRun) -> None:
        attempts.append(job.attempt)
        raise Rejected("not this one")

    await world.enqueue("judge")
    await world.run_until(lambda jobs: jobs[0].state == "dead")
    assert attempts == [1]


async def test_only_dead_jobs_are_retried_or_dropped(world: World) -> None:
    waiting, dead = await world.enqueue("a"), await world.enqueue("b")
    assert waiting is not None
    assert dead is not None
    async with world.database.transaction() as session:
        await session.execute(update(Job).where(col(Job.id) == dead).values(state="dead"))
    async with world.database.transaction() as session:
        assert await admin.revive(session, [waiting, "unknown"]) == []
        assert await admin.drop(session, [waiting, dead, "unknown"]) == [dead]
    assert [job.id for job in await world.all()] == [waiting]


async def test_a_job_that_no_function_is_there_for_waits(world: World) -> None:
    await world.enqueue("of-a-newer-version")

    @world.jobs.register("known")
    async def known(job: JobRun) -> None:
        pass

    await world.enqueue("known")
    await world.run_until(lambda jobs: jobs[1].state == "done")
    assert (await world.all())[0].state == "queued"


@pytest.mark.parametrize("name", ["", "a b", "a" * 61, "이름", "a:b"])
async def test_a_name_that_is_none_is_refused(world: World, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        world.jobs.register(name)
    with pytest.raises(ValueError, match="name"):
        await world.enqueue(name)


async def test_bad_jobs_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="at most"):
        await world.enqueue("a", "x" * 256 * 1024)
    with pytest.raises(ValueError, match="key"):
        await world.enqueue("a", key="")
    with pytest.raises(ValueError, match="negative"):
        await world.enqueue("a", delay=-1)
    with pytest.raises(TypeError):
        await world.enqueue("a", object())
    assert await world.all() == []


async def test_a_name_is_registered_once(world: World) -> None:
    @world.jobs.register("one")
    async def one(job: JobRun) -> None:
        pass

    with pytest.raises(ValueError, match="already"):
        world.jobs.register("one")
