"""Bytes in the store that belong to no upload: what fenced writers, lost attempts and crashes left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from sqlalchemy import select
from sqlmodel import col

from bongsu.db.models import Upload
from bongsu.db.session import Database
from bongsu.uploads.stores.base import Listable, Store

__all__ = ["ListableStore", "remove_orphans"]

# As `segment_key` and `object_key` make them. What has another form is not ours to remove.
_KEY: Final = re.compile(r"(segments|objects/[0-9a-f]{2})/([0-9a-f]{32})\.[0-9]+", re.ASCII)
_TOGETHER: Final = 500  # keys that one question to the database is about


class ListableStore(Store, Listable, Protocol):
    """A store that can say what it holds."""


async def remove_orphans(database: Database, store: ListableStore, *, older_than: float) -> int:
    """Remove what no row needs and is older than `older_than` seconds; how many keys that were.

    A row is made before its first byte, so bytes without one are rubbish. The age keeps away from what is
    made at this moment, and from mistakes: a database that was restored from yesterday's backup does not
    know today's uploads. Raises `StoreError`, `DatabaseUnavailable`; may be repeated.
    """
    removed = 0
    some: list[str] = []
    async for kept in store.kept():
        if kept.age > older_than and _KEY.fullmatch(kept.key):
            some.append(kept.key)
        if len(some) >= _TOGETHER:
            removed += await _remove(database, store, some)
            some = []
    return removed + await _remove(database, store, some)


async def _remove(database: Database, store: Store, keys: Sequence[str]) -> int:
    ids = {key: key.rpartition("/")[2].partition(".")[0] for key in keys}
    wanted = select(col(Upload.id), col(Upload.state), col(Upload.storage_key)).where(
        col(Upload.id).in_(set(ids.values()))
    )
    async with database.session() as session:
        known = {row.id: row for row in (await session.execute(wanted)).all()}
    removed = 0
    for key, upload_id in ids.items():
        row = known.get(upload_id)
        # Of a stored upload only the winner's object is needed; of any other that is here everything may be.
        if row is None or row.state == "expired" or (row.state == "stored" and row.storage_key != key):
            await store.delete(key)
            removed += 1
    return removed
