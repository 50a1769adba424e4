"""Tasks that belong to somebody: they end with their owner, none dies unheard. And work that needs none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar, cast

import structlog

log = structlog.get_logger("bongsu.node")


_T = TypeVar("_T")


def begin(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Do `work` up to where it has to wait. What is left of it then, for a task; None: it is done.

    A task costs more than most commands. Up to its first wait the work runs as part of whoever calls:
    it must not ask which task it is, as `asyncio.timeout` does, and what it raises is raised here.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return _rest(work, waits_for)


@coroutine
def _rest(work: Coroutine[Any, Any, _T], waits_for: Any) -> Generator[Any, Any, _T]:
    while True:
        cancelled: BaseException | None = None
        try:
            yield waits_for
        except BaseException as error:  # the work's to judge
            cancelled = error
        try:
            waits_for = work.send(None) if cancelled is None else work.throw(cancelled)
        except StopIteration as end:
            return cast("_T", end.value)


async def in_time(seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns. As `asyncio.timeout`, for work that seldom has to wait: only then it has a timer.

    Raises TimeoutError.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        return cast("_T", end.value)
    async with asyncio.timeout(seconds):
        return await _rest(work, waits_for)


async def within(seconds: float, future: asyncio.Future[_T]) -> _T:
    """As `asyncio.wait_for`, also in no task: see `begin`. Raises TimeoutError."""
    if not future.done():
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            expired = future.cancel()
        if expired:
            raise TimeoutError
    return future.result()


class Tasks:
    """The tasks of one owner."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self.failed = False
        """Whether one has died of an exception: a bug."""

    def __len__(self) -> int:
        return len(self._running)

    def run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)

    async def stop(self) -> None:
        """Cancel those that are left, and return when they have ended."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failed = True
            log.critical("a task died", task=task.get_name(), exc_info=task.exception())
