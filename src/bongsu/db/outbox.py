"""The transactional outbox: what is to be published is written beside the rows that it is about.

A publication sent before the commit may speak of rows that never come to be, one sent after it is lost when
the process dies in between. A row in `outbox` is committed with the others or not at all, and the relays
(`bongsu.jobs.relay`) publish what was committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from zlib import crc32

import msgspec
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.db import models
from bongsu.db.bells import ring_after_commit
from bongsu.db.columns import clock

__all__ = ["BELL", "MAX_DATA", "PARTITIONS", "Outbox", "partition_of", "publish"]

PARTITIONS: Final = 16
"""Fixed for ever: each is relayed by one relay at a time, and a channel is always in the same one."""

BELL: Final = "bongsu.outbox.bell"
"""Key in `Session.info` of the function that is called once a publication has been committed."""

MAX_DATA: Final = 1024 * 1024
"""Most bytes of one publication: a relay holds many of them at once."""


def partition_of(channel: str) -> int:
    """Not `hash()`: every replica must come to the same answer."""
    return crc32(channel.encode()) % PARTITIONS


async def publish(session: AsyncSession, channel: str, data: bytes) -> None:
    """Publish `data` on `channel` when the transaction of `session` is committed, and only then.

    `data` is what subscribers get: JSON, unless the channel is a binary one. Neither is checked here.

    Publications of one channel arrive in the order in which their transactions were committed, where one
    was committed before the next began to publish; each once. Raises ValueError for more than `MAX_DATA`
    bytes, and what `session.execute` raises.
    """
    if len(data) > MAX_DATA:
        raise ValueError(f"a publication has at most {MAX_DATA} bytes, not {len(data)}")
    await session.execute(
        insert(models.Outbox).values(
            partition=partition_of(channel), channel=channel, data=data, created_at=clock()
        )
    )
    ring: Callable[[], None] | None = session.info.get(BELL)
    if ring is not None:  # without the bell the relays find the row at their next look
        ring_after_commit(session, ring)


class Outbox:
    """Publishes in the transactions of the application that embeds Bongsu: `bongsu.outbox`.

    A program that only shares the database, such as a Celery worker, makes one of its own, without
    arguments; relays of the replicas find what it has committed.
    """

    def __init__(
        self, *, check: Callable[[str], None] | None = None, ring: Callable[[], None] | None = None
    ) -> None:
        """`check(channel)` raises for a channel that nobody could publish on; `ring` wakes a relay here."""
        self._check = check
        self._ring = ring

    async def publish(self, session: AsyncSession, channel: str, data: object) -> None:
        """Publish `data`, anything JSON, on `channel` when `session` is committed, and only then.

        `session` is any SQLAlchemy or SQLModel `AsyncSession` on Bongsu's database. Order and delivery are
        those of `bongsu.db.outbox.publish`. Raises TypeError for what is not JSON, ValueError for what is too
        large, `BadChannelName`, `UnknownNamespace`, and what `session.execute` raises.
        """
        if self._check is not None:
            self._check(channel)
        if self._ring is not None:
            session.info[BELL] = self._ring
        await publish(session, channel, msgspec.json.encode(data))
