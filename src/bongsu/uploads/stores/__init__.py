"""Where the bytes are: one small interface, its implementations, and the URL that chooses between them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Final
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

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
# What no program on the way encodes in its own manner.
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.!*'()/-]{1,200}", re.ASCII)

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
    "file_directory",
    "s3_address",
    "store_from_url",
]


def store_from_url(url: str) -> Store:
    """The store that `url` names. Raises `ValueError` for one that cannot be; the text says what to do.

    `file://` is followed by a directory, percent-encoded where needed: `file:///srv/uploads` is absolute,
    `file://var/uploads` is relative to the working directory. There is no host part. `s3://` is followed by
    a bucket and, if wanted, a prefix. `memory://` is all there is of that one.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        return LocalStore(file_directory(url))
    if separator and scheme == "s3":
        bucket, prefix = s3_address(url)
        # Late: its libraries are many, and only for those who want it.
        from bongsu.uploads.stores.s3.store import S3Store

        return S3Store(bucket, prefix)
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    raise ValueError("unknown storage; use file:///absolute/directory, s3://bucket/prefix or memory://")


def file_directory(url: str) -> str:
    """The directory of a `file://` URL. Raises `ValueError` with what is wrong with it."""
    rest = url.removeprefix("file://")
    if "?" in rest or "#" in rest:
        raise ValueError("has no query and no fragment; write ? as %3F and # as %23")
    path = unquote(rest)
    if not path.strip("/") or "\0" in path:
        raise ValueError("names no directory; use file:///absolute/directory")
    return path


def s3_address(url: str) -> tuple[str, str]:
    """Bucket and prefix of an `s3://` URL. Raises `ValueError` with what is wrong with it.

    Checks too that the packages are there, and imports none of them.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if "@" in bucket:
        raise ValueError("holds credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if _BUCKET.fullmatch(bucket) is None:
        raise ValueError("names no bucket; write s3://bucket/prefix")
    if prefix and (_PREFIX.fullmatch(prefix) is None or {"", ".", ".."} & set(prefix.split("/"))):
        raise ValueError("may have letters, digits and _.!*'()- in its prefix, between single slashes")
    if not all(map(find_spec, ("aiobotocore", "obstore"))):
        raise ValueError("needs more packages for S3: pip install 'bongsu[s3]'")
    return bucket, prefix
