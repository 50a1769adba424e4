"""Where interrupted uploads go on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bongsu.cli.unfinished import Unfinished, fingerprint

SERVER = "http://127.0.0.1:8000"


def test_an_address_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    unfinished = Unfinished(tmp_path / "a" / "b")
    assert unfinished.find("key") is None
    unfinished.keep("key", "/files/1")
    unfinished.keep("key", "/files/2")
    assert Unfinished(tmp_path / "a" / "b").find("key") == "/files/2"
    unfinished.forget("key")
    unfinished.forget("key")
    assert unfinished.find("key") is None
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_only_its_user_reads_it(tmp_path: Path) -> None:
    Unfinished(tmp_path / "a").keep("key", "/files/1")
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    assert (tmp_path / "a" / "key").stat().st_mode & 0o077 == 0


def test_addresses_that_no_server_keeps_any_more_are_dropped(tmp_path: Path) -> None:
    unfinished = Unfinished(tmp_path)
    unfinished.keep("old", "/files/1")
    unfinished.keep("older", "/files/2")
    month_ago = time.time() - 31 * 86400
    os.utime(tmp_path / "older", (month_ago, month_ago))
    unfinished.keep("new", "/files/3")
    assert (unfinished.find("old"), unfinished.find("older")) == ("/files/1", None)


def test_the_address_of_what_a_file_was_before_is_dropped(tmp_path: Path) -> None:
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    unfinished = Unfinished(tmp_path / "kept")
    for changing in (other, file):
        changing.write_text("a")
        unfinished.keep(fingerprint(SERVER, changing), "/files/1")
    before = fingerprint(SERVER, file)
    file.write_text("ab")
    unfinished.keep(fingerprint(SERVER, file), "/files/2")
    assert unfinished.find(before) is None
    assert unfinished.find(fingerprint(SERVER, file)) == "/files/2"
    assert unfinished.find(fingerprint(SERVER, other)) == "/files/1"


def test_without_a_place_for_it_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    unfinished = Unfinished(tmp_path / "file")
    unfinished.keep("key", "/files/1")
    unfinished.forget("key")
    assert unfinished.find("key") is None
    assert Unfinished(tmp_path).find("file") is None


def test_it_is_where_the_user_keeps_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for said, place in (
        (str(tmp_path / "x"), "x/bongsu/uploads"),
        ("relative", ".local/state/bongsu/uploads"),
        ("", ".local/state/bongsu/uploads"),
    ):
        monkeypatch.setenv("XDG_STATE_HOME", said)
        Unfinished().keep("key", "/files/1")
        assert (tmp_path / place / "key").read_text() == "/files/1"


def test_another_server_or_content_has_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a")
    os.utime(file, ns=(1, 1))
    first = fingerprint(SERVER, file)
    monkeypatch.chdir(tmp_path)
    assert fingerprint(SERVER, Path("a.txt")) == first
    assert fingerprint(f"{SERVER}/other", file) != first
    os.utime(file, ns=(1, 2))
    assert fingerprint(SERVER, file) != first
    file.write_text("ab")
    os.utime(file, ns=(1, 1))
    assert fingerprint(SERVER, file) != first
    with pytest.raises(FileNotFoundError):
        fingerprint(SERVER, tmp_path / "absent")
