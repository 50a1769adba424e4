"""The job queue and its worker, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.migrate import migrate
from bongsu.db.models import Job, Upload, new_id
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.queue import Lease, LeaseLost, Queue
from bongsu.jobs.retry import RetryPolicy
from bongsu.jobs.worker import Unavailable, Worker

KIND = "finish"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url)
    database = Database(database_url)
    await database.start()
    yield database
    await database.stop()


async def add_job(database: Database, kind: str = KIND) -> str:
    upload_id = new_id()
    async with database.transaction() as session:
        await session.execute(
            insert(Upload).values(
                id=upload_id,
                filename="a",
                content_type="text/plain",
                state="received",
                received_by="r",
                created_at=clock(),
                touched_at=clock(),
            )
        )
        await Queue(database, "adder").add(session, upload_id=upload_id, kind=kind)
    return upload_id


async def only_job(database: Database) -> Job:
    async with database.session() as session:
        return (await session.execute(select(Job))).scalar_one()


async def claimed(queue: Queue) -> Lease:
    lease = await queue.claim([KIND])
    assert lease is not None
    return lease


async def let_leases_run_out(database: Database) -> None:
    """As if the time had passed: the database's clock cannot be set."""
    async with database.transaction() as session:
        await session.execute(update(Job).values(lease_until=clock(-1)))


async def test_each_job_is_claimed_by_exactly_one_of_many_replicas(
    database: Database, database_url: str
) -> None:
    added = [await add_job(database) for _ in range(20)]
    replicas = [Database(database_url) for _ in range(3)]

    async def take_all(queue: Queue) -> list[str]:
        taken = []
        while (lease := await queue.claim([KIND])) is not None:
            taken.append(str(lease.upload_id))
        return taken

    taken = await asyncio.gather(*(take_all(Queue(d, f"r{n}")) for n, d in enumerate(replicas) for _ in "ab"))
    for replica in replicas:
        await replica.stop()
    assert sorted(upload_id for some in taken for upload_id in some) == sorted(added)


async def test_jobs_are_claimed_in_the_order_in_which_they_wait_and_only_of_known_kinds(
    database: Database,
) -> None:
    first, second = await add_job(database), await add_job(database)
    await add_job(database, kind="of-a-newer-version")
    queue = Queue(database, "r1")
    assert [(await claimed(queue)).upload_id, (await claimed(queue)).upload_id] == [first, second]
    assert await queue.claim([KIND]) is None


async def test_a_job_rolled_back_with_its_upload_does_not_exist(database: Database) -> None:
    upload_id = await add_job(database)
    queue = Queue(database, "r1")
    with pytest.raises(IntegrityError):
        await add_twice(database, queue, upload_id)
    assert (await only_job(database)).kind == KIND


async def test_a_lease_that_ran_out_is_taken_over_and_its_first_holder_is_fenced(database: Database) -> None:
    """
    Setup: a replica claims a job and freezes; its lease runs out; another one claims the job.
    Do: the first one thaws and does all that it could do.
    Expect: each is refused, nothing it wrote with it stays, and the second one finishes.
    """
    await add_job(database)
    frozen, other = Queue(database, "frozen"), Queue(database, "other")
    old = await claimed(frozen)
    assert await other.claim([KIND]) is None
    await let_leases_run_out(database)
    new = await claimed(other)
    assert (new.attempt, new.expiries, new.failures) == (2, 1, 0)

    with pytest.raises(LeaseLost):
        await frozen.renew(old)
    with pytest.raises(LeaseLost):
        await frozen.retry(old, delay=0, error="late")
    with pytest.raises(LeaseLost):
        await frozen.release(old)
    async with AsyncSession(database.engine) as session:
        with pytest.raises(LeaseLost):
            await frozen.complete(session, old)
        with pytest.raises(LeaseLost):
            await frozen.bury(session, old, "late")

    async with database.transaction() as transaction:
        await other.complete(transaction, new)
    assert (await only_job(database)).state == "done"
    assert await frozen.claim([KIND]) is None


async def add_twice(database: Database, queue: Queue, upload_id: str) -> None:
    async with database.transaction() as session:
        await queue.add(session, upload_id=upload_id, kind="another")
        await queue.add(session, upload_id=upload_id, kind=KIND)


async def test_a_renewed_lease_is_not_taken_over(database: Database) -> None:
    await add_job(database)
    queue = Queue(database, "r1")
    lease = await claimed(queue)
    await let_leases_run_out(database)
    await queue.renew(lease)
    assert await Queue(database, "r2").claim([KIND]) is None


async def test_a_failed_job_waits_for_its_delay_and_counts_its_failures(database: Database) -> None:
    await add_job(database)
    queue = Queue(database, "r1")
    await queue.retry(await claimed(queue), delay=0, error="first")
    lease = await claimed(queue)
    assert (lease.attempt, lease.failures) == (2, 1)
    await queue.retry(lease, delay=3600, error="second")
    assert await queue.claim([KIND]) is None
    job = await only_job(database)
    assert (job.state, job.failures, job.last_error, job.lease_owner) == ("queued", 2, "second", None)


async def test_a_lease_given_back_can_be_taken_at_once_and_counts_as_no_failure(database: Database) -> None:
    await add_job(database)
    queue = Queue(database, "r1")
    await queue.release(await claimed(queue))
    lease = await claimed(Queue(database, "r2"))
    assert (lease.attempt, lease.failures, lease.expiries) == (2, 0, 0)


async def test_a_ring_between_two_waits_is_not_lost(database: Database) -> None:
    queue = Queue(database, "r1")
    queue.ring()
    async with asyncio.timeout(10):
        await queue.wait(3600)


class Recorder:
    """A handler that does what the test says and tells what became of it."""

    def __init__(self, database: Database, work: Callable[[Lease], Awaitable[None]]) -> None:
        self._database = database
        self._work = work
        self.queue = Queue(database, "worker")
        self.runs: list[int] = []
        self.given_up: list[str] = []
        self.ended = asyncio.Event()

    async def run(self, lease: Lease) -> None:
        self.runs.append(lease.attempt)
        await self._work(lease)
        async with self._database.transaction() as session:
            await self.queue.complete(session, lease)
        self.ended.set()

    async def give_up(self, session: AsyncSession, lease: Lease, error: Exception) -> None:
        self.given_up.append(str(error))
        await session.execute(update(Upload).values(state="failed"))

    async def gave_up(self, lease: Lease) -> None:
        self.ended.set()

    def worker(self, retry: RetryPolicy | None = None) -> Worker:
        return Worker(self._database, self.queue, {KIND: self}, poll=0.05, retry=retry)


async def nothing(_: Lease) -> None:
    return


async def forever(_: Lease) -> None:
    await asyncio.Event().wait()


async def test_a_job_found_unfinished_at_the_start_is_run(database: Database) -> None:
    await add_job(database)
    dead = Queue(database, "killed")
    await claimed(dead)
    await let_leases_run_out(database)
    recorder = Recorder(database, nothing)
    worker = recorder.worker()
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    await worker.stop()
    assert recorder.runs == [2]
    assert (await only_job(database)).state == "done"


async def test_a_job_that_keeps_failing_is_tried_again_then_given_up_with_its_reason(
    database: Database,
) -> None:
    async def fail(_: Lease) -> None:
        raise RuntimeError("no luck")

    await add_job(database)
    recorder = Recorder(database, fail)
    worker = recorder.worker(RetryPolicy(first_delay=0, max_failures=3))
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    await worker.stop()
    assert (recorder.runs, recorder.given_up) == ([1, 2, 3], ["no luck"])
    job = await only_job(database)
    assert (job.state, job.last_error) == ("dead", "RuntimeError: no luck")
    async with database.session() as session:
        assert (await session.execute(select(col(Upload.state)))).scalar_one() == "failed"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\0b \x1b[2J", "a�b �[2J"),
        ("one\r\n\ttwo\u2028three", "one two three"),
        ("caf\udce9, \u202etxt.exe", "caf�, �txt.exe"),
        ("이름 👩\u200d🔬", "이름 👩\u200d🔬"),
        ("x" * 2000, "x" * (999 - len("RuntimeError: ")) + "…"),
    ],
)
async def test_whatever_a_job_says_of_its_failure_is_recorded(
    database: Database, said: str, kept: str
) -> None:
    """PostgreSQL takes no NUL and SQLite no lone surrogate. A job whose error had one ended the worker, and
    then, when its lease had run out, that of the next replica, until none was left.
    """

    async def fail(_: Lease) -> None:
        raise RuntimeError(said)

    await add_job(database)
    recorder = Recorder(database, fail)
    worker = recorder.worker(RetryPolicy(first_delay=0, max_failures=2))
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    assert worker.alive
    await worker.stop()
    job = await only_job(database)
    assert (job.state, job.last_error) == ("dead", f"RuntimeError: {kept}")


async def test_a_cancellation_that_the_worker_did_not_send_is_a_failure(database: Database) -> None:
    """It was taken for a stop of the worker: the job was given back and taken again, hot and without end."""

    async def be_cancelled(lease: Lease) -> None:
        inner = asyncio.create_task(forever(lease))
        inner.cancel()
        await inner

    await add_job(database)
    recorder = Recorder(database, be_cancelled)
    worker = recorder.worker(RetryPolicy(first_delay=0, max_failures=3))
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    await worker.stop()
    assert recorder.runs == [1, 2, 3]
    assert (await only_job(database)).last_error == "Interrupted: it was cancelled, and not by its worker"


async def test_a_failure_that_cannot_be_recorded_is_left_to_its_lease_and_other_jobs_go_on(
    database: Database,
) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("on purpose")

    async def fail_first(lease: Lease) -> None:
        if lease.upload_id == first:
            raise Unspeakable

    first, second = await add_job(database), await add_job(database)
    recorder = Recorder(database, fail_first)
    worker = recorder.worker()
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    assert worker.alive
    await worker.stop()
    async with database.session() as session:
        states = (await session.execute(select(col(Job.upload_id), col(Job.state)))).all()
    assert dict(states) == {first: "running", second: "done"}
    assert recorder.runs == [1, 1]


@pytest.mark.parametrize("error", [Unavailable("no mail server"), DatabaseUnavailable("no database")])
async def test_what_is_away_costs_a_job_none_of_its_tries(database: Database, error: Exception) -> None:
    """A storage that was away for minutes used up the 8 tries, and acknowledged uploads were `failed`."""

    async def come_back_late(lease: Lease) -> None:
        if lease.attempt <= 5:
            raise error

    await add_job(database)
    recorder = Recorder(database, come_back_late)
    worker = recorder.worker(RetryPolicy(first_delay=0, longest_wait=0, max_failures=2))
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    await worker.stop()
    job = await only_job(database)
    assert (recorder.runs, job.state, job.failures) == ([1, 2, 3, 4, 5, 6], "done", 0)
    assert job.away_since is not None


async def test_what_stays_away_for_too_long_counts_as_a_failure(database: Database) -> None:
    async def never(_: Lease) -> None:
        raise Unavailable("no mail server")

    await add_job(database)
    recorder = Recorder(database, never)
    worker = recorder.worker(RetryPolicy(first_delay=0, max_failures=2, patience=3600))
    await worker.start()
    async with asyncio.timeout(30):
        while not (await only_job(database)).away_since:  # noqa: ASYNC110  # a row in a database is no event
            await asyncio.sleep(0.02)
        async with database.transaction() as session:
            await session.execute(update(Job).values(away_since=clock(-7200), run_after=clock()))
        await recorder.ended.wait()
    await worker.stop()
    job = await only_job(database)
    assert (job.state, job.last_error) == ("dead", "Unavailable: no mail server")
    assert recorder.given_up == ["no mail server"]


async def test_a_job_that_takes_its_workers_down_is_given_up_without_being_run_again(
    database: Database,
) -> None:
    await add_job(database)
    queue = Queue(database, "killed")
    for _ in range(2):
        await claimed(queue)
        await let_leases_run_out(database)
    recorder = Recorder(database, nothing)
    worker = recorder.worker(RetryPolicy(max_expiries=2))
    await worker.start()
    async with asyncio.timeout(30):
        await recorder.ended.wait()
    await worker.stop()
    assert recorder.runs == []
    assert (await only_job(database)).state == "dead"


async def test_a_worker_that_stops_gives_the_leases_of_running_jobs_back(database: Database) -> None:
    await add_job(database)
    started = asyncio.Event()

    async def start_and_hang(lease: Lease) -> None:
        started.set()
        await forever(lease)

    worker = Recorder(database, start_and_hang).worker()
    await worker.start()
    async with asyncio.timeout(30):
        await started.wait()
        await worker.stop(grace=0)
    job = await only_job(database)
    assert (job.state, job.failures, job.lease_until) == ("queued", 0, None)


async def test_a_worker_that_stops_lets_running_jobs_finish_within_the_grace(database: Database) -> None:
    await add_job(database)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: Lease) -> None:
        started.set()
        await go_on.wait()

    worker = Recorder(database, wait).worker()
    await worker.start()
    async with asyncio.timeout(30):
        await started.wait()
        stopping = asyncio.create_task(worker.stop(grace=20))
        go_on.set()
        await stopping
    assert (await only_job(database)).state == "done"


async def test_a_handler_whose_lease_is_lost_is_stopped(database: Database) -> None:
    """
    Setup: a worker with a short lease has a job that never ends; somebody else claims it meanwhile.
    Expect: at its next renewal the worker sees that, stops the handler, and leaves the job alone.
    """
    await add_job(database)
    stopped = asyncio.Event()

    async def be_robbed(_: Lease) -> None:
        async with database.transaction() as session:
            await session.execute(update(Job).values(attempts=Job.attempts + 1, lease_owner="thief"))
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    recorder = Recorder(database, be_robbed)
    recorder.queue.lease_duration = 0.3
    worker = recorder.worker()
    await worker.start()
    async with asyncio.timeout(30):
        await stopped.wait()
    await worker.stop()
    job = await only_job(database)
    assert (job.failures, job.lease_owner) == (0, "thief")


async def test_no_more_jobs_run_at_once_than_allowed(database: Database) -> None:
    for _ in range(6):
        await add_job(database)
    running = most = 0
    pair = asyncio.Barrier(2)

    async def count(_: Lease) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await pair.wait()  # never passed by one alone
        running -= 1

    recorder = Recorder(database, count)
    worker = Worker(database, recorder.queue, {KIND: recorder}, concurrency=2, poll=0.05)
    await worker.start()
    async with asyncio.timeout(30):
        while len(recorder.runs) < 6:
            recorder.ended.clear()
            await recorder.ended.wait()
    await worker.stop()
    async with database.session() as session:
        left = await session.execute(select(func.count()).where(col(Job.state) != "done"))
        assert left.scalar_one() == 0
    assert most == 2


async def test_a_worker_whose_loop_breaks_is_not_alive_any_more(database: Database) -> None:
    class Broken(Queue):
        async def claim(self, kinds: object) -> Lease | None:
            raise RuntimeError("broken")

    worker = Worker(database, Broken(database, "r1"), {KIND: Recorder(database, nothing)})
    await worker.start()
    assert worker.alive
    task = worker._task
    assert task is not None
    with pytest.raises(ExceptionGroup):
        await task
    assert not worker.alive
    await worker.stop()
