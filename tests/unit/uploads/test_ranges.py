"""The Range header. Source: RFC 9110 §14."""

from __future__ import annotations

import pytest

from bongsu.protocol import problems
from bongsu.uploads.ranges import parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=5-", (5, 10)),
        ("bytes=5-500", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        (" Bytes= 1-2 ", (1, 3)),
        ("bytes=4-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=1-" + "9" * 5000, None),
        ("", None),
    ],
)
def test_a_range_of_ten_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_behind_the_end_cannot_be_satisfied(header: str, size: int) -> None:
    with pytest.raises(problems.Problem) as caught:
        parse_range(header, size)
    assert caught.value.kind is problems.RANGE_NOT_SATISFIABLE
