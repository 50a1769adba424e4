"""The seam between the upload lifecycle and what keeps the bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

__all__ = [
    "BATCH",
    "HasRoom",
    "Kept",
    "Listable",
    "ObjectMissing",
    "Piece",
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


@dataclass(frozen=True, slots=True)
class Piece:
    """The first `size` bytes of the segment `key`: what its writer could commit, however much it wrote."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Something in the store. `age`: seconds since it was last written to, by the store's own clock."""

    key: str
    age: float


class SegmentWriter(Protocol):
    """Appends to one segment. One call at a time; `close` exactly once, also after an error.

    After a `write` that failed or was cancelled no other may follow: some of its bytes may be in the segment.
    `commit` may, and makes durable what the calls before it wrote.
    """

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
    """Reads one finished object. What it returns is of that object, whatever happens to the key meanwhile."""

    @property
    def size(self) -> int:
        """Bytes in the object."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end.

        Raises `StoreUnavailable`, and `ObjectMissing` when it has been deleted or replaced and the store
        cannot keep it for its readers.
        """
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """Keeps segments and objects under keys made by `segment_key` and `object_key`, never by a client.

    All calls may run concurrently for different keys. A call that is cancelled has ended when the
    `CancelledError` arrives: no thread of it works on.
    """

    @property
    def batch(self) -> int:
        """Bytes that a writer is best given at a time, up to `BATCH`: few where it gathers them itself."""
        ...

    async def start(self) -> None:
        """Prove that the store can be written to. Raises `StoreUnavailable`."""
        ...

    async def stop(self) -> None: ...

    async def open_segment(self, key: str) -> SegmentWriter:
        """Begin a segment. Raises `StoreError` when it exists: an epoch has one writer."""
        ...

    async def compose(self, pieces: Sequence[Piece], key: str) -> None:
        """Make the object `key` of the pieces, in order; it survives a power failure on return.

        Nobody writes to the last piece's segment any more: its writer has finished the upload, and its
        piece is named even when it is empty. The others' writers may be frozen, and write on when they
        thaw; the object must not show that. The segments stay. An object left under `key` by an earlier
        try is replaced. Raises `ObjectMissing` when a segment is not there, or has fewer bytes than its
        piece; then there is no object.
        """
        ...

    async def open(self, key: str) -> Reader:
        """Open an object. Raises `ObjectMissing`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object or a segment, and all that makes it up; nothing happens when it is not there."""
        ...


# What a store may offer besides. Looked up once, when the store is given to the service.


@runtime_checkable
class HasRoom(Protocol):
    """A store that can be full and knows when."""

    async def free(self) -> int | None:
        """Bytes that still fit, or None when nobody can say now."""
        ...


@runtime_checkable
class Listable(Protocol):
    """A store that can say what it holds, so that bytes whose row is gone can be found and removed."""

    def kept(self) -> AsyncIterator[Kept]:
        """Every segment and object, unfinished ones too; each once, in no order, for `Store.delete`.

        What appears or goes while it runs may be told or not. Raises `StoreUnavailable`.
        """
        ...
