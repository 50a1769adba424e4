"""What only the store in a directory can get wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from bongsu.uploads.stores import LocalStore, Piece, StoreFull, StoreUnavailable, store_from_url
from bongsu.uploads.stores.base import object_key, segment_key
from bongsu.uploads.stores.local import FileWriter, _Threads

ID = "01a20b9add5377cdbe9f6b0cc99be853"


async def test_a_full_disk_is_reported_as_full() -> None:
    threads = _Threads(1)
    writer = FileWriter(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY), threads)
    with pytest.raises(StoreFull, match="No space left on device"):
        await writer.write(b"x")
    await writer.close()
    threads.close()


async def test_a_directory_that_cannot_be_made_is_unavailable_and_not_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret-file").touch()
    store = LocalStore(tmp_path / "secret-file" / "below")
    with pytest.raises(StoreUnavailable) as caught:
        await store.start()
    assert "secret-file" not in str(caught.value)
    await store.stop()


async def test_files_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    await store.start()
    writer = await store.open_segment(segment_key(ID, 1))
    await writer.close()
    await store.compose([Piece(segment_key(ID, 1), 0)], object_key(ID, 1))
    await store.stop()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.root.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.root.iterdir()} == {0o700}


async def test_a_file_system_without_hard_links_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(tmp_path)
    await store.start()
    await _segment(store, 1, b"bytes")
    await store.compose([Piece(segment_key(ID, 1), 5)], object_key(ID, 1))
    await store.stop()
    assert (tmp_path / object_key(ID, 1)).read_bytes() == b"bytes"
    assert (tmp_path / object_key(ID, 1)).stat().st_nlink == 1


async def test_an_upload_of_one_segment_is_not_copied(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.start()
    await _segment(store, 1, b"bytes")
    await store.compose([Piece(segment_key(ID, 1), 5)], object_key(ID, 1))
    await store.stop()
    assert (tmp_path / object_key(ID, 1)).samefile(tmp_path / segment_key(ID, 1))


async def test_where_the_kernel_cannot_copy_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    store = LocalStore(tmp_path)
    await store.start()
    content = os.urandom(5 * 1024 * 1024)
    await _segment(store, 1, content + b"more than was committed")
    await _segment(store, 2, b"the rest")
    pieces = [Piece(segment_key(ID, 1), len(content)), Piece(segment_key(ID, 2), 8)]
    await store.compose(pieces, object_key(ID, 1))
    await store.stop()
    assert (tmp_path / object_key(ID, 1)).read_bytes() == content + b"the rest"


async def test_the_room_that_is_left_is_the_disks(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.start()
    free = await store.free()
    await store.stop()
    disk = await asyncio.to_thread(shutil.disk_usage, tmp_path)
    assert free is not None
    assert 0 < free < disk.total


async def test_a_cancelled_write_has_ended_when_it_says_so(tmp_path: Path) -> None:
    """If its thread worked on, closing the segment would let it write into another upload's file."""
    size = 64 * 1024 * 1024
    store = LocalStore(tmp_path)
    await store.start()
    writer = await store.open_segment(segment_key(ID, 1))
    writing = asyncio.create_task(writer.write(bytes(size)))
    await asyncio.sleep(0)  # one turn of the loop: the write is on its way
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (tmp_path / segment_key(ID, 1)).stat().st_size in (0, size)
    await writer.close()
    await store.stop()


async def _segment(store: LocalStore, epoch: int, content: bytes) -> None:
    writer = await store.open_segment(segment_key(ID, epoch))
    await writer.write(content)
    await writer.commit()
    await writer.close()


async def test_a_key_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    await store.start()
    for key in ("../outside", "/etc/passwd", "segments/../../outside"):
        with pytest.raises(ValueError, match="not a storage key"):
            await store.delete(key)
    await store.stop()


async def test_the_directory_stays_the_same_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_from_url("file://var/uploads")
    monkeypatch.chdir("/")
    await store.start()
    await store.stop()
    assert await asyncio.to_thread((tmp_path / "var/uploads/segments").is_dir)


@pytest.mark.parametrize(
    ("url", "path"), [("file:///srv/up", "/srv/up"), ("file:///a%20b%3Fc/%ED%8C%8C", "/a b?c/파")]
)
def test_a_file_url_names_a_directory(url: str, path: str) -> None:
    store = store_from_url(url)
    assert isinstance(store, LocalStore)
    assert str(store.root) == path


@pytest.mark.parametrize(
    "url",
    [
        *("", "file://", "file:///", "file:/srv", "/srv", "file:///a?b", "file:///a#b"),
        *("memory://x", "ftp://host/directory"),
    ],
)
def test_an_unusable_storage_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"storage|names no directory|no query and no fragment"):
        store_from_url(url)
