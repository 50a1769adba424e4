"""Storage in a directory: local, or a file system that all replicas share."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from bongsu.uploads.stores.base import (
    BATCH,
    Kept,
    ObjectMissing,
    Piece,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

__all__ = ["LocalStore"]

T = TypeVar("T")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS})
# Old kernels, and file systems where the kernel cannot copy by itself.
_NO_COPY: Final = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM})

_STEP: Final = 32 * 1024 * 1024  # bytes copied between two chances to cancel
_BLOCK: Final = 1024 * 1024  # bytes read at a time where we copy ourselves


class LocalStore:
    """Files below `root`, which is made (readable by its owner only) when it does not exist.

    Disk calls run in a few threads of its own: a slow disk holds up neither the event loop nor the
    default executor, where name look-ups run.
    """

    batch: Final = BATCH

    def __init__(self, root: str | os.PathLike[str], *, threads: int = 8) -> None:
        # Absolute at once: the process may change its working directory later.
        self.root = Path(root).absolute()
        self._threads = _Threads(threads)

    async def start(self) -> None:
        await self._threads.run(self._prepare)

    def _prepare(self) -> None:
        for name in ("segments", "objects"):
            try:
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"the storage directory cannot be made ({error.strerror})") from error
        if not os.access(self.root / "segments", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the storage directory cannot be written to")

    async def stop(self) -> None:
        self._threads.close()

    async def open_segment(self, key: str) -> FileWriter:
        path = self._path(key)
        descriptor = await self._threads.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        return FileWriter(path, descriptor, self._threads)

    async def compose(self, pieces: Sequence[Piece], key: str) -> None:
        try:
            await self._compose(pieces, self._path(key))
        except ObjectMissing:
            if await self._threads.run((self.root / "segments").is_dir):
                raise
            # Nothing is lost: a file system that is not mounted looks like an empty one.
            raise StoreUnavailable("the storage directory is away") from None

    async def _compose(self, pieces: Sequence[Piece], target: Path) -> None:
        await self._threads.run(lambda: _make_room(target))
        filled = [piece for piece in pieces if piece.size]
        # Only the last segment can be shared: a frozen writer of an earlier one still has its file open, and
        # when it thaws its bytes would grow the finished object.
        if len(filled) == 1 and filled[0] is pieces[-1]:
            source = self._path(filled[0].key)
            if await self._threads.run(lambda: _link(source, target, filled[0].size)):
                return
        await self._copy(filled, target)

    async def _copy(self, pieces: Sequence[Piece], target: Path) -> None:
        out = await self._threads.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            for piece in pieces:
                await self._append(piece, out)
            await self._threads.run(lambda: _sync(out, target))
        except BaseException:
            with suppress(StoreError):  # the next try replaces it, and the sweep finds it
                await self._threads.run(lambda: target.unlink(missing_ok=True))
            raise
        finally:
            await self._threads.run(lambda: os.close(out))

    async def _append(self, piece: Piece, out: int) -> None:
        source = await self._threads.open(self._path(piece.key), os.O_RDONLY)
        try:
            left = piece.size
            while left:
                copied = await self._threads.run(partial(_copy_some, source, out, min(left, _STEP)))
                if not copied:
                    raise ObjectMissing("a segment has fewer bytes in the store than were committed")
                left -= copied
        finally:
            await self._threads.run(lambda: os.close(source))

    async def open(self, key: str) -> FileReader:
        descriptor = await self._threads.open(self._path(key), os.O_RDONLY)
        return FileReader(descriptor, os.fstat(descriptor).st_size, self._threads)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._threads.run(lambda: path.unlink(missing_ok=True))

    async def free(self) -> int | None:
        def bytes_left() -> int:
            disk = os.statvfs(self.root)
            return disk.f_bavail * disk.f_frsize

        return await self._threads.run(bytes_left)

    async def kept(self) -> AsyncIterator[Kept]:
        for directory in await self._threads.run(self._directories):
            for kept in await self._threads.run(partial(self._files, directory)):
                yield kept

    def _directories(self) -> list[Path]:
        return [self.root / "segments", *sorted((self.root / "objects").iterdir())]

    def _files(self, directory: Path) -> list[Kept]:
        now = time.time()
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # deleted since
                    age = max(0.0, now - entry.stat().st_mtime)
                    found.append(Kept(str(Path(entry.path).relative_to(self.root)), age))
        return found

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
        await self._threads.run(lambda: _write_all(self._descriptor, memoryview(data)))

    async def commit(self) -> None:
        await self._threads.run(self._commit)

    def _commit(self) -> None:
        if self._named:
            os.fdatasync(self._descriptor)
        else:  # once is enough for the name; without it the file itself may be missing
            _sync(self._descriptor, self._path)
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

    async def open(self, path: Path, flags: int) -> int:
        return await self.run(lambda: os.open(path, flags | os.O_CLOEXEC, 0o600), undo=os.close)

    async def run(self, call: Callable[[], T], *, undo: Callable[[T], None] | None = None) -> T:
        """What `call` returns. `undo` takes it back when the caller was cancelled and cannot."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        with _translated():
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                # The thread cannot be cancelled. If the caller closed the file under it, the number
                # could already be another file's, and these bytes would end up there.
                await asyncio.gather(future, return_exceptions=True)
                if undo is not None and future.exception() is None:
                    undo(future.result())
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


def _make_room(target: Path) -> None:
    """Have the object's directory, and no object in it from an earlier try."""
    try:
        target.parent.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        _sync_directory(target.parent.parent)
    target.unlink(missing_ok=True)


def _link(source: Path, target: Path, size: int) -> bool:
    """Give the file a second name: no byte is read. False where it has more bytes, or links do not exist."""
    if source.stat().st_size != size:
        return False
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    _sync_directory(target.parent)
    return True


def _copy_some(source: int, out: int, count: int) -> int:
    """Copy up to `count` bytes between the files' positions; 0 only at the end of `source`."""
    if hasattr(os, "copy_file_range"):  # Linux: no byte comes to us, and some file systems share the blocks
        try:
            return os.copy_file_range(source, out, count)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
    block = os.read(source, min(count, _BLOCK))
    _write_all(out, memoryview(block))
    return len(block)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:  # a nearly full disk takes a part, and only the next call says ENOSPC
        data = data[os.write(descriptor, data) :]


def _sync(descriptor: int, path: Path) -> None:
    """Have the file and its name survive a power failure."""
    os.fdatasync(descriptor)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
