"""Hooks of the embedding application: what must say yes to an upload before its content is served."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from bongsu.db.session import DatabaseUnavailable
from bongsu.jobs.worker import Rejected, TimeLimitExceeded, Unavailable, contained
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores.base import BATCH, Reader, Store, StoreError

__all__ = ["Hook", "HookFailed", "Hooks", "ReceivedFile"]

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}", re.ASCII)


class HookFailed(Exception):
    """A hook raised, or took too long. The message names it and is for the caller; the cause for the log."""


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """A complete file that nobody is served yet, as a hook gets it.

    `key` is the same whenever this hook runs for this upload: a hook runs at least once, so give the key to
    whatever must not happen twice. `upload` has the hash and the size; its `content_type` is only what the
    client said.
    """

    key: str
    upload: UploadRecord
    _reader: Reader

    async def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end. Raises `StoreError`."""
        wanted = min(size, self.upload.size - offset)
        found = []
        while wanted > 0:
            data = await self._reader.read(offset, min(wanted, BATCH))
            found.append(data)
            offset += len(data)
            wanted -= len(data)
        return b"".join(found)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content from the beginning, 1 MiB at a time. Raises `StoreError`."""
        for offset in range(0, self.upload.size, BATCH):
            yield await self.read(offset, BATCH)


Hook: TypeAlias = Callable[[ReceivedFile], Awaitable[None]]
_HookT = TypeVar("_HookT", bound=Hook)


class Hooks:
    """The hooks of this replica, in the order in which they were registered. `time_limit` in seconds."""

    def __init__(self, *, time_limit: float = 600.0) -> None:
        self._time_limit = time_limit
        self._hooks: dict[str, tuple[Hook, float]] = {}

    def register(self, name: str, *, time_limit: float | None = None) -> Callable[[_HookT], _HookT]:
        """Decorator of `async def hook(file: ReceivedFile)`. Raises ValueError for a bad or a used name."""
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"a hook's name has 1 to 60 letters, digits, _, . and -: {name!r} is none")
        if name in self._hooks:
            raise ValueError(f"a hook {name!r} is registered already")

        def decorate(hook: _HookT) -> _HookT:
            self._hooks[name] = hook, self._time_limit if time_limit is None else time_limit
            return hook

        return decorate

    async def run(self, upload: UploadRecord, store: Store, key: str) -> None:
        """Ask each about the file at `key` in `store`. Raises `Rejected`, `HookFailed`, `StoreError`,
        and `Unavailable`, whose message is for the caller.
        """
        if not self._hooks:
            return
        reader = await store.open(key)
        try:
            for name, (hook, limit) in self._hooks.items():
                try:
                    async with contained(time_limit=limit):
                        await hook(ReceivedFile(f"{upload.id}:{name}", upload, reader))
                except (Rejected, StoreError):
                    raise
                except (Unavailable, DatabaseUnavailable) as error:
                    raise Unavailable(f"the hook “{name}” waits for something that is away") from error
                except TimeLimitExceeded as error:
                    raise HookFailed(f"the hook “{name}” took longer than {limit:g} seconds") from error
                except Exception as error:
                    raise HookFailed(f"the hook “{name}” failed") from error
        finally:
            await reader.close()
