"""Storage in a directory: local, or a file system that all replicas share."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from bongsu.uploads.stores.base import ObjectMissing, StoreError, StoreFull, StoreUnavailable

__all__ = ["LocalStore"]

T = TypeVar("T")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS})


class LocalStore:
    """Files below `root`, which is made (readable by its owner only) when it does not exist.

    Disk calls run in a few threads of its own: a slow disk holds up neither the event loop nor the
    default executor, where name look-ups run.
    """

    def __init__(self, root: str | os.PathLike[str], *, threads: int = 8) -> None:
        # Absolute at once: the process may change its working directory later.
        self.root = Path(root).absolute()
        self._threads = _Threads(threads)

    async def start(self) -> None:
        await self._threads.run(self._prepare)

    def _prepare(self) -> None:
        for name in ("segments", "objects"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.root / "segments", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the storage directory cannot be written to")

    async def stop(self) -> None:
        self._threads.close()

    async def open_segment(self, key: str) -> FileWriter:
        path = self._path(key)
        descriptor = await self._threads.run(
            lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        )
        return FileWriter(path, descriptor, self._threads)

    async def compose(self, segments: Sequence[str], key: str) -> None:
        sources, target = [self._path(segment) for segment in segments], self._path(key)
        await self._threads.run(lambda: _compose(sources, target))

    async def open(self, key: str) -> FileReader:
        path = self._path(key)
        descriptor = await self._threads.run(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return FileReader(descriptor, os.fstat(descriptor).st_size, self._threads)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._threads.run(lambda: path.unlink(missing_ok=True))

    def _path(self, key: str) -> Path:
        path = self.root / key
        # Keys are ours; if one ever came from outside, it must not lead out of the directory.
        if not path.is_relative_to(self.root) or ".." in path.parts:
            raise ValueError(f"not a storage key: {key!r}")
        return path


class FileWriter:
    """A segment that is being written: an open file."""

    def __init__(self, path: Path, descriptor: int, threads: _Threads) -> None:
        self._path = path
        self._descriptor = descriptor
        self._threads = threads
        self._named = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._threads.run(lambda: self._write(memoryview(data)))

    def _write(self, data: memoryview) -> None:
        while data:  # a nearly full disk takes a part, and only the next call says ENOSPC
            data = data[os.write(self._descriptor, data) :]

    async def commit(self) -> None:
        await self._threads.run(self._commit)

    def _commit(self) -> None:
        os.fdatasync(self._descriptor)
        if not self._named:  # without it the file itself may be missing after a power failure
            _sync_directory(self._path.parent)
            self._named = True

    async def close(self) -> None:
        await self._threads.run(lambda: os.close(self._descriptor))


class FileReader:
    """An open file."""

    def __init__(self, descriptor: int, size: int, threads: _Threads) -> None:
        self.size = size
        self._descriptor = descriptor
        self._threads = threads

    async def read(self, offset: int, length: int) -> bytes:
        return await self._threads.run(lambda: os.pread(self._descriptor, length, offset))

    async def close(self) -> None:
        await self._threads.run(lambda: os.close(self._descriptor))


class _Threads:
    """Runs blocking calls, and turns what they raise into the store's errors."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="bongsu-store")

    async def run(self, call: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        with _translated():
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                # The thread cannot be cancelled. If the caller closed the file under it, the number
                # could already be another file's, and these bytes would end up there.
                await asyncio.gather(future, return_exceptions=True)
                raise

    def close(self) -> None:
        self._pool.shutdown(wait=False)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing("there is no such object in the store") from error
    except FileExistsError as error:
        raise StoreError("the segment exists already") from error
    except OSError as error:
        # strerror only: the full text holds the path, which is nobody's business outside.
        if error.errno in _FULL:
            raise StoreFull(f"the storage is full ({error.strerror})") from error
        raise StoreUnavailable(f"the storage does not work ({error.strerror})") from error


def _compose(sources: Sequence[Path], target: Path) -> None:
    try:
        target.parent.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        _sync_directory(target.parent.parent)
    target.unlink(missing_ok=True)
    if len(sources) != 1 or not _link(sources[0], target):
        _copy(sources, target)
    _sync_directory(target.parent)


def _link(source: Path, target: Path) -> bool:
    """Give the file a second name: no byte is read. False where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _copy(sources: Sequence[Path], target: Path) -> None:
    try:
        with target.open("xb") as out:
            target.chmod(0o600)
            for source in sources:
                with source.open("rb") as part:
                    shutil.copyfileobj(part, out, 1024 * 1024)
            out.flush()
            os.fdatasync(out.fileno())
    except BaseException:
        with suppress(OSError):
            target.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
