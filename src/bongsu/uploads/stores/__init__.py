"""Where the bytes are: one small interface, its implementations, and the URL that chooses between them."""

from __future__ import annotations

from urllib.parse import unquote

from bongsu.uploads.stores.base import (
    HasRoom,
    Kept,
    Listable,
    ObjectMissing,
    Piece,
    Reader,
    SegmentWriter,
    Store,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from bongsu.uploads.stores.local import LocalStore
from bongsu.uploads.stores.memory import MemoryStore

__all__ = [
    "HasRoom",
    "Kept",
    "Listable",
    "LocalStore",
    "MemoryStore",
    "ObjectMissing",
    "Piece",
    "Reader",
    "SegmentWriter",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "store_from_url",
]


def store_from_url(url: str) -> Store:
    """The store that `url` names. Raises `ValueError` for one that is not supported.

    `file://` is followed by a directory, percent-encoded where needed: `file:///srv/uploads` is absolute,
    `file://var/uploads` is relative to the working directory. There is no host part. `memory://` is all
    there is of that one.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    if scheme != "file" or not separator:
        raise ValueError(f"storage {scheme!r} is not supported; use file:///absolute/directory or memory://")
    if "?" in rest or "#" in rest:
        raise ValueError("a storage URL has no query and no fragment; write ? as %3F and # as %23")
    path = unquote(rest)
    if not path.strip("/") or "\0" in path:
        raise ValueError("the storage URL names no directory; use file:///absolute/directory")
    return LocalStore(path)
