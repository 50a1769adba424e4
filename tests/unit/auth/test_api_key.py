"""The comparison behind `X-API-Key`."""

from __future__ import annotations

import pytest

from bongsu.auth import same_secret


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("key", "key", True),
        (b"key", "key", True),
        ("key", b"key", True),
        ("열쇠", "열쇠", True),
        ("key", "Key", False),
        ("key ", "key", False),
        ("ke", "key", False),
        ("", "key", False),
        ("", "", False),
        (b"", b"", False),
        ("key", "", False),
        ("\udcff", "key", False),
        (b"\xff", "key", False),
    ],
)
def test_only_the_very_secret_is_the_same(given: str | bytes, expected: str | bytes, same: bool) -> None:
    assert same_secret(given, expected) is same
