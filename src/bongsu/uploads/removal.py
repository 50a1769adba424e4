"""How uploads go: on request, when their time is over, and what nobody knows of any more."""

from __future__ import annotations

import math
import random
import time
from typing import Final

import structlog
from sqlalchemy import ColumnElement, select
from sqlmodel import col

from bongsu.db.models import Upload
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.uploads import rows
from bongsu.uploads.events import tell_changed, tell_deleted
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.orphans import remove_orphans
from bongsu.uploads.stores.base import Listable, Store, StoreError, object_key, segment_key

__all__ = ["Removal"]

log = structlog.stdlib.get_logger(__name__)

_ORPHANS_EVERY: Final = 3600.0  # seconds: it lists the whole store, and rubbish does no harm for a while
_SWEEP: Final = 100  # stale uploads looked at per sweep: the rest waits for the next one


class Removal:
    """Removes uploads and their bytes."""

    def __init__(self, database: Database, store: Store, options: UploadOptions) -> None:
        self._database = database
        self._store = store
        self._options = options
        self._orphans_at = 0.0 if isinstance(store, Listable) else math.inf

    async def remove(self, condition: ColumnElement[bool], *, remember: bool = False) -> bool:
        """Remove the one upload that `condition` names, bytes first: while there are any, a row says so.

        False when there is none, or somebody else is at it. After a failure it may be repeated, and the
        sweep does. `remember`: the row stays for a while, so that a client is told what became of it.
        """
        options = self._options
        lifetime = options.expire_after if remember else options.abandoned_after
        async with self._database.transaction() as session:
            expired = await rows.expire(session, condition, lifetime=lifetime)
            if expired is None:
                return False
            upload, before, attempts = expired
            if before != "expired":
                await tell_changed(session, upload)
            parts = await rows.parts_of(session, upload.id)
        for epoch in range(1, upload.epoch):  # its own is the raised one, which nobody writes
            await self._store.delete(segment_key(upload.id, epoch))
        for attempt in range(1, attempts + 1):
            await self._store.delete(object_key(upload.id, attempt))
        for part in parts:
            await self.remove(col(Upload.id) == part)
        if remember and before != "expired":
            return True
        async with self._database.transaction() as session:
            gone = await rows.forget(session, upload.id)
            if gone:
                await tell_deleted(session, upload)
        return gone

    async def discard(self, upload_id: str) -> None:
        """Remove an upload that will not arrive, unless it has. What cannot be is left to the sweep."""
        try:
            await self.remove(rows.is_arriving(upload_id))
        except (StoreError, DatabaseUnavailable) as error:
            # The row says that something is left, and the sweep goes by the rows.
            log.warning("an unfinished upload is left to the sweep", upload=upload_id, error=str(error))

    async def sweep(self) -> None:
        """Remove uploads whose time is over, finish removals that were not finished; hourly, orphans."""
        await self._sweep_stale()
        if time.monotonic() >= self._orphans_at:
            self._orphans_at = time.monotonic() + _ORPHANS_EVERY * random.uniform(0.75, 1.25)
            await self._sweep_orphans()

    async def _sweep_orphans(self) -> None:
        assert isinstance(self._store, Listable)
        try:
            removed = await remove_orphans(
                self._database, self._store, older_than=self._options.orphaned_after
            )
        except StoreError as error:
            log.warning("bytes of no upload could not be removed", error=str(error))
        else:
            if removed:
                log.info("removed bytes of no upload", keys=removed)

    async def _sweep_stale(self) -> None:
        stale = rows.is_stale()
        async with self._database.session() as session:
            columns = select(col(Upload.id), col(Upload.resumable))
            left = (await session.execute(columns.where(stale).limit(_SWEEP))).all()
        for upload_id, resumable in left:
            try:
                if await self.remove((col(Upload.id) == upload_id) & stale, remember=resumable):
                    log.info("removed an abandoned upload", upload=upload_id)
            except StoreError as error:
                log.warning("an abandoned upload could not be removed", upload=upload_id, error=str(error))
