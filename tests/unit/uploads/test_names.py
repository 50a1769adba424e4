"""File names and types as clients send them, and what is made of them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.uploads.names import clean_content_type, clean_filename


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\사진.jpg", "사진.jpg"),
        (unicodedata.normalize("NFD", "파일.txt"), "파일.txt"),
        ("a\x00b\r\nc\x7f.txt", "abc.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("zero\u200bwidth\u2028.txt", "zerowidth.txt"),
        ("a\u00a0b\u3000c", "a b c"),
        ('what: "this"?*<>|.txt', "what_ _this______.txt"),
        ("  .hidden. . ", ".hidden"),
        ("nul.txt", "_nul.txt"),
        ("COM1", "_COM1"),
        ("CON .txt", "_CON .txt"),
        ("CONIN$", "_CONIN$"),
        ("e\u200d\u0301.txt", "\u00e9.txt"),
        ("\u1100\u200b\u1161.txt", "가.txt"),
        ("console.log", "console.log"),
        ("..", ""),
        ("dir/", ""),
        ("", ""),
        ("x" * 300 + ".tar", "x" * 251 + ".tar"),
        ("파" * 100 + ".png", "파" * 83 + ".png"),
        ("a." + "y" * 300, "a." + "y" * 253),
    ],
)
def test_a_file_name_is_cleaned(sent: str, shown: str) -> None:
    assert clean_filename(sent) == shown


@given(st.text(max_size=400))
def test_a_cleaned_name_is_safe_and_stays_as_it_is(name: str) -> None:
    cleaned = clean_filename(name)
    assert len(cleaned.encode()) <= 255
    assert cleaned not in (".", "..")
    assert not set('/\\:*?"<>|') & set(cleaned)
    assert all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in cleaned)
    assert clean_filename(cleaned) == cleaned


@pytest.mark.parametrize(
    ("declared", "kept"),
    [
        ("image/PNG", "image/png"),
        ("text/plain; charset=utf-8", "text/plain"),
        ("", "application/octet-stream"),
        ("text", "application/octet-stream"),
        ("text/html\r\nx: y", "application/octet-stream"),
        ("a/" + "b" * 64, "application/octet-stream"),
    ],
)
def test_a_declared_type_is_kept_only_when_it_is_one(declared: str, kept: str) -> None:
    assert clean_content_type(declared) == kept
