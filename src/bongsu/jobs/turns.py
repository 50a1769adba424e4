"""Whose turn it is to relay a partition of the outbox, and under which term.

PostgreSQL: the turn is a transaction under an advisory lock, which ends with whoever dies. SQLite has one
writer at a time, and a relay that waits for the broker must not be that one: there the turn is a lease row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from bongsu.db.columns import clock
from bongsu.db.models import Outbox, OutboxRelay
from bongsu.db.session import Database

__all__ = ["BATCH", "Superseded", "Turn", "Turns", "turns_of"]

BATCH: Final = 256
"""Most rows of one turn."""

_LOCK: Final = 0x626F6E67  # "bong": the first half of the advisory locks' key, the partition is the second

_FLIPPED: Final = -1 - col(Outbox.partition)  # held rows are in a partition below 0, where no relay looks


class Superseded(Exception):
    """Another relay has taken the partition over. What was published is settled by its turn, not by this."""


@dataclass(slots=True)
class Turn:
    """Rows of one partition in the order of their ids, for one relay alone.

    `published` (the broker has them) and `held` (nobody can publish them) are filled by the relay, with ids,
    and take effect when the turn ends without an error.
    """

    term: int
    rows: Sequence[Outbox]
    published: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


class Turns(ABC):
    """The turns of one replica's relay. After `limit` seconds a turn is over, whatever its relay does: so
    long a frozen one holds a partition.
    """

    def __init__(self, database: Database, owner: str, limit: float) -> None:
        self._database = database
        self._owner = owner
        self._limit = limit

    @abstractmethod
    def take(self, partition: int) -> AbstractAsyncContextManager[Turn | None]:
        """The turn, for the block; None when another relay has it. Rows are deleted when the block ends.

        Raises `DatabaseUnavailable`, and at the end `Superseded`.
        """

    async def waiting(self) -> list[int]:
        """Partitions that have rows. Raises `DatabaseUnavailable`."""
        rows = select(col(Outbox.id)).where(col(Outbox.partition) == col(OutboxRelay.partition))
        async with self._database.session() as session:
            found = await session.execute(select(col(OutboxRelay.partition)).where(rows.exists()))
            return list(found.scalars())

    async def free(self) -> None:
        """Have what was held published again: the configuration may be another one since."""
        async with self._database.transaction() as session:
            await session.execute(
                update(Outbox)
                .where(col(Outbox.partition) < 0)
                .values(partition=_FLIPPED)
                .execution_options(synchronize_session=False)
            )

    async def _raise_term(self, session: AsyncSession, partition: int) -> int:
        """A term that nobody had before, on this database or on one that was here before it.

        After a restore, or on a new database beside an old broker, counting would begin again at terms that
        the broker has seen, and refuses. The clock does not.
        """
        statement = select(col(OutboxRelay.term), clock()).where(col(OutboxRelay.partition) == partition)
        term, now = (await session.execute(statement.with_for_update())).one()
        return max(int(term) + 1, int(now.timestamp() * 1_000_000))


class _AdvisoryTurns(Turns):
    """PostgreSQL."""

    def __init__(self, database: Database, owner: str, limit: float) -> None:
        super().__init__(database, owner, limit)
        self._terms: dict[int, int] = {}

    @asynccontextmanager
    async def take(self, partition: int) -> AsyncIterator[Turn | None]:
        try:
            while True:
                async with self._database.transaction() as session:
                    current = await self._locked(session, partition)
                    if current is None:
                        yield None
                        return
                    if current == self._terms.get(partition):
                        turn = Turn(current, await _rows(session, partition))
                        yield turn
                        await _end(session, turn)
                        return
                    # Another relay was here since. A term is committed before anything is published under
                    # it: rolled back with a turn that failed, it would be given to the next relay again.
                    term = await self._raise_term(session, partition)
                    await session.execute(
                        update(OutboxRelay)
                        .where(col(OutboxRelay.partition) == partition)
                        .values(term=term, owner=self._owner)
                        .execution_options(synchronize_session=False)
                    )
                self._terms[partition] = term
        except BaseException:
            # It may be another relay's now, and whether the turn was committed may be unknown: another
            # term tells the next publications from these.
            self._terms.pop(partition, None)
            raise

    async def _locked(self, session: AsyncSession, partition: int) -> int | None:
        """The partition's term, under its lock for this transaction; None when another one has it."""
        # A relay that freezes in a turn would keep the lock as long as its connection: the server ends it.
        milliseconds = int(self._limit * 1000)
        await session.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"))
        locked = await session.execute(select(func.pg_try_advisory_xact_lock(_LOCK, partition)))
        if not locked.scalar_one():
            return None
        return (
            await session.execute(
                select(col(OutboxRelay.term)).where(col(OutboxRelay.partition) == partition)
            )
        ).scalar_one()


class _LeaseTurns(Turns):
    """SQLite. Each turn has a term of its own."""

    @asynccontextmanager
    async def take(self, partition: int) -> AsyncIterator[Turn | None]:
        free = or_(col(OutboxRelay.owner).is_(None), col(OutboxRelay.lease_until) <= clock())
        async with self._database.transaction() as session:
            term = await self._raise_term(session, partition)
            taken = await session.execute(
                update(OutboxRelay)
                .where(col(OutboxRelay.partition) == partition, free)
                .values(term=term, owner=self._owner, lease_until=clock(self._limit))
                .returning(col(OutboxRelay.term))
                .execution_options(synchronize_session=False)
            )
            mine = taken.one_or_none() is not None
        if not mine:
            yield None
            return
        async with self._database.session() as session:
            turn = Turn(term, await _rows(session, partition))
        # An error leaves the lease to run out: by then, whatever it was has come to its end.
        yield turn
        async with self._database.transaction() as session:
            given_back = await session.execute(
                update(OutboxRelay)
                .where(col(OutboxRelay.partition) == partition, col(OutboxRelay.term) == term)
                .values(owner=None, lease_until=None)
                .returning(col(OutboxRelay.term))
                .execution_options(synchronize_session=False)
            )
            if given_back.one_or_none() is None:
                raise Superseded(f"term {term} of partition {partition} is over")
            await _end(session, turn)


def turns_of(database: Database, owner: str, limit: float) -> Turns:
    """`owner` is for people who look at the table: which replica relayed last."""
    return (_LeaseTurns if database.is_sqlite else _AdvisoryTurns)(database, owner, limit)


async def _rows(session: AsyncSession, partition: int) -> Sequence[Outbox]:
    # Those that are there, in order. Never those after a remembered id: a transaction that took its id early
    # and committed late would be passed over for ever.
    found = await session.execute(
        select(Outbox).where(col(Outbox.partition) == partition).order_by(col(Outbox.id)).limit(BATCH)
    )
    return found.scalars().all()


async def _end(session: AsyncSession, turn: Turn) -> None:
    if turn.published:
        await session.execute(
            delete(Outbox)
            .where(col(Outbox.id).in_(turn.published))
            .execution_options(synchronize_session=False)
        )
    if turn.held:
        await session.execute(
            update(Outbox)
            .where(col(Outbox.id).in_(turn.held))
            .values(partition=_FLIPPED)
            .execution_options(synchronize_session=False)
        )
