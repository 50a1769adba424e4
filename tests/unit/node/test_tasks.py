"""Work that begins without a task, and gets one where it has to wait."""

from __future__ import annotations

import asyncio

import pytest

from bongsu.node.tasks import begin, in_time, within


async def test_work_that_waits_for_nothing_is_done_at_once() -> None:
    done: list[str] = []

    async def work() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_result("done")
        done.append(await future)

    assert begin(work()) is None
    assert done == ["done"]


async def test_what_is_left_goes_on_in_a_task_from_where_it_waited() -> None:
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    steps: list[object] = []

    async def work() -> None:
        steps.append("begun")
        steps.append(await first)
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
            steps.append(asyncio.current_task())

    rest = begin(work())
    assert steps == ["begun"]
    assert rest is not None
    task = asyncio.create_task(rest)
    await asyncio.sleep(0)
    first.set_result("came")
    await task
    assert steps == ["begun", "came", task]


async def test_an_exception_is_raised_where_the_work_runs() -> None:
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def at_once() -> None:
        raise ValueError("at once")

    async def later() -> None:
        await failing

    with pytest.raises(ValueError, match="at once"):
        begin(at_once())
    rest = begin(later())
    assert rest is not None
    failing.set_exception(ValueError("later"))
    with pytest.raises(ValueError, match="later"):
        await asyncio.create_task(rest)


async def test_a_cancelled_task_cancels_the_work_where_it_waits() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    rest = begin(work())
    assert rest is not None
    task = asyncio.create_task(rest)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cancelled"]


async def test_within_gives_the_result_or_times_out_and_cancels() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()
    loop.call_soon(done.set_result, 7)
    assert await within(10, done) == 7
    assert await within(0, done) == 7
    never: asyncio.Future[int] = loop.create_future()
    with pytest.raises(TimeoutError):
        await within(0.01, never)
    assert never.cancelled()


async def test_in_time_gives_the_result_at_once_later_or_times_out_and_cancels() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    never: asyncio.Future[int] = loop.create_future()

    async def result_of(future: asyncio.Future[int]) -> int:
        return await future

    loop.call_soon(future.set_result, 7)
    assert await in_time(10, result_of(future)) == 7
    assert await in_time(0, result_of(future)) == 7
    with pytest.raises(TimeoutError):
        await in_time(0.01, result_of(never))
    assert never.cancelled()
