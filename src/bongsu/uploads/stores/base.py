"""The seam between the upload lifecycle and what keeps the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

__all__ = [
    "BATCH",
    "ObjectMissing",
    "Reader",
    "SegmentWriter",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "object_key",
    "segment_key",
]

BATCH: Final = 1024 * 1024  # bytes a caller gives or asks for at a time; all that an upload holds in memory


class StoreError(Exception):
    """Base of what a store raises; the text may be shown to a client and holds no path."""


class StoreFull(StoreError):
    """There is no room (or no quota) for these bytes."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or does not work; the caller may try again."""


class ObjectMissing(StoreError):
    """Nothing is under this key."""


def segment_key(upload_id: str, epoch: int) -> str:
    """Where the writer of one epoch puts its bytes. Private to it: two writers never share a segment."""
    return f"segments/{upload_id}.{epoch}"


def object_key(upload_id: str, attempt: int) -> str:
    """Where one attempt puts the finished file. A frozen attempt that thaws cannot touch the winner's.

    Spread by the id's last two digits, which are random: a directory with millions of names is slow.
    """
    return f"objects/{upload_id[-2:]}/{upload_id}.{attempt}"


class SegmentWriter(Protocol):
    """Appends to one segment. One call at a time; `close` exactly once, also after an error."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. `data` must not change before this returns. Raises `StoreFull`, `StoreUnavailable`."""
        ...

    async def commit(self) -> None:
        """Return when all that was written, and the segment's name, survive a power failure."""
        ...

    async def close(self) -> None:
        """Let go of it. What was committed stays."""
        ...


class Reader(Protocol):
    """Reads one finished object, which stays readable even when it is deleted meanwhile."""

    @property
    def size(self) -> int:
        """Bytes in the object."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end. Raises `StoreUnavailable`."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """Keeps segments and objects under keys made by `segment_key` and `object_key`, never by a client.

    All calls may run concurrently for different keys. A call that is cancelled has ended when the
    `CancelledError` arrives: no thread of it works on.
    """

    async def start(self) -> None:
        """Prove that the store can be written to. Raises `StoreUnavailable`."""
        ...

    async def stop(self) -> None: ...

    async def open_segment(self, key: str) -> SegmentWriter:
        """Begin a segment. Raises `StoreError` when it exists: an epoch has one writer."""
        ...

    async def compose(self, segments: Sequence[str], key: str) -> None:
        """Make the object `key` of the segments, in order; it survives a power failure on return.

        The segments stay, and need not be read again for a single one. An object left under `key` by an
        earlier try is replaced. Raises `ObjectMissing` when a segment is not there.
        """
        ...

    async def open(self, key: str) -> Reader:
        """Open a segment or an object. Raises `ObjectMissing`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove it; nothing happens when it is not there."""
        ...
