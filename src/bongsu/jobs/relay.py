"""The relay of one replica: publishes what was committed to the outbox, in order, once.

A replica may be killed or frozen at any line here. Then the rows are still there, the turn becomes another
relay's, and the broker tells apart what it was given already (`Relayed`).
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import structlog

from bongsu.brokers.base import BrokerError, Relayed, StaleTerm
from bongsu.db.models import Outbox
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs.retry import RetryPolicy
from bongsu.jobs.turns import BATCH, Superseded, Turn, turns_of
from bongsu.metrics import Metrics

__all__ = ["PublishRelayed", "Relay", "Settle", "Unpublishable"]

log = structlog.stdlib.get_logger(__name__)

PublishRelayed: TypeAlias = Callable[[str, bytes, Relayed], Awaitable[Any]]
"""Publishes (channel, data): queued in the order of the calls, before it returns. What it returns is awaited
and fails with `BrokerError`; the call itself may raise `Unpublishable`.
"""

Settle: TypeAlias = Callable[[str, Sequence[str]], Awaitable[None]]
"""Forgets keys of a channel, as `Streams.settle`."""

_TURNS: Final = 8  # in a row on one partition, before the others are looked at


class Unpublishable(Exception):
    """There is no such channel here. The message is for the operator."""


class Relay:
    """Looks at the outbox when it is rung and every `poll` seconds, for what others left behind.

    `limit`: seconds after which a relay that froze loses the partition that it was at. Half of that is for
    the broker's answers.
    """

    def __init__(
        self,
        database: Database,
        publish: PublishRelayed,
        settle: Settle,
        metrics: Metrics,
        owner: str,
        *,
        poll: float = 1.0,
        limit: float = 10.0,
    ) -> None:
        self._turns = turns_of(database, owner, limit)
        self._patience = limit / 2
        self._publish = publish
        self._settle = settle
        self._metrics = metrics
        self._poll = poll
        self._retry = RetryPolicy(first_delay=0.2, longest_delay=5.0)
        self._failures = 0
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.trouble: str | None = None
        """Why nothing is published at the moment (the broker or the database is away), or None."""

    @property
    def alive(self) -> bool:
        """Whether the loop runs. False after an unexpected error: the replica should stop being ready."""
        return self._task is not None and not self._task.done()

    def ring(self) -> None:
        """Something was committed to the outbox: look at once. From the event loop's own thread."""
        self._bell.set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox relay")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """What is not published yet stays for other replicas, or for the next start."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})  # if it broke before, `_ended` has said so

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the outbox relay of this replica has died", exc_info=error)

    async def _run(self) -> None:
        freed = False
        while True:
            self._bell.clear()
            try:
                if not freed:
                    await self._turns.free()
                    freed = True
                trouble = await self._look()
            except DatabaseUnavailable as error:
                trouble = str(error)
            self._note(trouble)
            if trouble is not None:
                # Not the bell: every commit rings, and each would try a broker that is known to be away.
                await asyncio.sleep(self._retry.delay(self._failures, chance=random.random()))
                continue
            try:
                async with asyncio.timeout(self._poll * random.uniform(0.75, 1.25)):
                    await self._bell.wait()
            except TimeoutError:
                pass

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:  # once per outage
            log.warning("publications wait in the outbox", error=trouble)
        self._failures = 0 if trouble is None else self._failures + 1
        self.trouble = trouble
        self._metrics.outbox_trouble.set(trouble is not None)

    async def _look(self) -> str | None:
        """Publish what there is; what stood in the way, or None."""
        partitions = await self._turns.waiting()
        random.shuffle(partitions)  # replicas that were rung together must not all begin with the same one
        more: list[int] = []
        while partitions:
            for partition in partitions:
                for _ in range(_TURNS):
                    rows, trouble = await self._turn(partition)
                    if trouble is not None:
                        return trouble
                    if rows < BATCH:
                        break
                else:
                    more.append(partition)
            partitions, more = more, []
        return None

    async def _turn(self, partition: int) -> tuple[int, str | None]:
        """One turn: how many rows there were for this relay, and what stood in the way."""
        try:
            async with self._turns.take(partition) as turn:
                if turn is None or not turn.rows:
                    return 0, None
                trouble = await self._relay(turn)
        except Superseded as error:
            log.info("another relay took a partition of the outbox over", reason=str(error))
            self._metrics.outbox_published.labels("superseded").inc()
            return 0, None
        self._metrics.outbox_published.labels("ok").inc(len(turn.published))
        self._metrics.outbox_published.labels("held").inc(len(turn.held))
        await self._forget(turn)
        return len(turn.rows), trouble

    async def _relay(self, turn: Turn) -> str | None:
        """Publish the rows of `turn`; an error of the broker, or None. Raises `Superseded`."""
        sent: list[tuple[Outbox, Awaitable[Any]]] = []
        for row in turn.rows:
            try:
                sent.append((row, self._publish(row.channel, row.data, Relayed(turn.term, _key(row)))))
            except Unpublishable as error:
                log.error("a publication is held in the outbox", id=row.id, error=str(error))
                turn.held.append(_id(row))
        answers = asyncio.gather(*[answer for _, answer in sent], return_exceptions=True)
        try:
            async with asyncio.timeout(self._patience):
                outcomes = await answers
        except TimeoutError:
            return f"the broker has not answered within {self._patience:g} s"
        trouble: str | None = None
        for (row, _), outcome in zip(sent, outcomes, strict=True):
            match outcome:
                case StaleTerm():
                    raise Superseded(str(outcome))
                case BrokerError():
                    trouble = str(outcome)
                case BaseException():
                    raise outcome
                case _:
                    turn.published.append(_id(row))
        return trouble

    async def _forget(self, turn: Turn) -> None:
        """After the commit: no relay will publish these rows again."""
        keys: defaultdict[str, list[str]] = defaultdict(list)
        published = set(turn.published)
        for row in turn.rows:
            if row.id in published:
                keys[row.channel].append(_key(row))
        settled = [self._settle(channel, of_channel) for channel, of_channel in keys.items()]
        for error in await asyncio.gather(*settled, return_exceptions=True):
            if isinstance(error, BrokerError):
                log.debug("keys of relayed publications are left to expire", error=str(error))
            elif isinstance(error, BaseException):
                raise error


def _key(row: Outbox) -> str:
    """Names the row also beside those of another database: one that was set up anew counts from 1 again."""
    return f"{row.id}-{row.created_at.timestamp():.6f}"


def _id(row: Outbox) -> int:
    assert row.id is not None, "the row was read"
    return row.id
