"""What files are taken for by their first bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.uploads import types
from bongsu.uploads.types import HEAD, is_allowed, is_utf8, sniff

PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(50)
ZIP = b"PK\x03\x04\x0a\x00\x00\x00" + bytes(50)
MP3 = b"\xff\xfb\x90\x00" + bytes(50)
UNKNOWN = b"\x01\x02\x03\x04" * 20
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
OCTETS = "application/octet-stream"


@pytest.mark.parametrize(
    ("head", "declared", "media_type"),
    [
        (PNG, "image/png", "image/png"),
        (PNG, "text/html", "image/png"),
        (JPEG, OCTETS, "image/jpeg"),
        (b"GIF89a" + bytes(20), OCTETS, "image/gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(20), OCTETS, "image/webp"),
        (b"%PDF-1.7\nmostly text", OCTETS, "application/pdf"),
        (b"MZ\x90\x00" + bytes(50), "image/png", "application/vnd.microsoft.portable-executable"),
        # Formats that begin in the same way: the sender knows.
        (ZIP, "application/zip", "application/zip"),
        (ZIP, DOCX, DOCX),
        (MP3, "audio/mpeg", "audio/mpeg"),
        # Two bytes prove nothing.
        (MP3, "image/png", OCTETS),
        # What a browser would run is never called anything else.
        (b"<!DOCTYPE html><title>x", "image/png", "text/html"),
        (b"\xef\xbb\xbf \n<ScRiPt >", "text/plain", "text/html"),
        (b"<!-- x --><p>", "text/plain", "text/html"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "image/png", "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg ", "text/plain", "image/svg+xml"),
        (b"<?xml version='1.0'?><feed/>", "text/plain", "text/xml"),
        # Text has no signature.
        (b"id,name\n1,x\n", "text/csv", "text/csv"),
        (b'{"a": 1}', "application/json", "application/json"),
        (b"import os\n", "text/x-python", "text/x-python"),
        ("안녕하세요".encode(), OCTETS, "text/plain"),
        (b"plain", "text/html", "text/plain"),
        (b"plain", "image/png", "text/plain"),
        (b"", OCTETS, "text/plain"),
        # Nobody can tell.
        (UNKNOWN, "image/png", OCTETS),
        (UNKNOWN, "text/plain", OCTETS),
        (UNKNOWN, "application/x-thing", OCTETS),
    ],
)
def test_the_bytes_say_what_a_file_is_and_the_sender_only_where_they_agree(
    head: bytes, declared: str, media_type: str
) -> None:
    assert sniff(head, declared) == media_type


def test_comments_without_end_cost_no_time() -> None:
    """Tried in all ways in which they can be divided, these would take longer than the universe."""
    assert sniff(b"<?xml?>" + b"<!---->" * 500 + b"<", "text/plain") == "text/xml"


@pytest.mark.parametrize("space", [b" ", b"\n\r\r\n", b" <?xml?>\n"])
def test_space_is_not_divided_in_all_ways(space: bytes) -> None:
    """What may stand before the markup may stand within it, too: 4 KiB took a third of a second, and more of
    it more by the square. This would take hours.
    """
    assert types._SVG.match(space * 2**18) is None


def test_only_the_beginning_is_looked_at() -> None:
    assert sniff(b"x" * HEAD + bytes(5), "text/plain") == "text/plain"


@pytest.mark.parametrize(
    ("head", "utf8"),
    [
        (b"", True),
        ("안녕하세요".encode(), True),
        ("안녕하세요".encode("cp949"), False),
        ("안녕".encode()[:-1], False),  # that is all there is, and its last character is cut
        (b"x" * (HEAD - 1) + "안".encode(), True),  # the look ends within a character
        (b"x" * HEAD + b"\xff", True),
    ],
)
def test_text_is_utf8_as_far_as_its_first_bytes_tell(head: bytes, utf8: bool) -> None:
    assert is_utf8(head) is utf8


@given(st.binary(max_size=200), st.sampled_from(["image/png", "text/plain", OCTETS]))
def test_any_bytes_are_of_some_type(head: bytes, declared: str) -> None:
    media_type = sniff(head, declared)
    assert media_type == media_type.lower()
    assert media_type.count("/") == 1


@pytest.mark.parametrize(
    ("media_type", "patterns", "allowed"),
    [
        ("image/png", [], True),
        ("image/png", ["image/png"], True),
        ("image/png", ["text/*", "image/*"], True),
        ("image/png", ["*/*"], True),
        ("image/png", ["image/jpeg", "text/*"], False),
        ("text/html", ["text/plain"], False),
    ],
)
def test_a_list_of_types_allows_what_it_names(media_type: str, patterns: list[str], allowed: bool) -> None:
    assert is_allowed(media_type, patterns) is allowed
