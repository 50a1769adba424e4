"""Doorbells: wake whoever waits for rows once they have been committed, whosever the transaction is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

__all__ = ["ring_after_commit"]

_WAITING: Final = "bongsu.bells"


def ring_after_commit(session: AsyncSession, ring: Callable[[], None]) -> None:
    """Call `ring` once after the commit of `session`'s transaction, however often this is said in it.

    After a rollback it is called with the next commit, if there is one: a bell may ring for nothing.
    """
    waiting: list[Callable[[], None]] = session.info.setdefault(_WAITING, [])
    if not waiting:
        event.listen(session.sync_session, "after_commit", _ring, once=True)
    if ring not in waiting:
        waiting.append(ring)


def _ring(session: Session) -> None:
    for ring in session.info.pop(_WAITING, ()):
        ring()
