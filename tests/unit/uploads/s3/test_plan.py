"""Which bytes make which part, without any S3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.uploads.stores.s3.plan import LARGEST, LARGEST_PART, Part, Source, plan

MIB = 1024 * 1024


def sources(*sizes: int) -> list[Source]:
    return [Source(f"s.{index}", size) for index, size in enumerate(sizes)]


def shape(parts: list[Part]) -> list[str]:
    return [f"{'copy' if part.copied else 'read'} {len(part.sources)}" for part in parts]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), []),
        ((1,), ["copy 1"]),
        ((8 * MIB, 8 * MIB, 1), ["copy 1", "copy 1", "copy 1"]),
        ((1, 8 * MIB, 8 * MIB), ["read 2", "copy 1"]),
        ((8 * MIB, 1, 2, 5 * MIB), ["copy 1", "read 3"]),
        ((3 * MIB, 3 * MIB, 3 * MIB), ["read 2", "copy 1"]),
        ((5 * MIB - 1, 5 * MIB), ["read 2"]),
    ],
)
def test_the_server_copies_what_is_large_enough_or_last(sizes: tuple[int, ...], expected: list[str]) -> None:
    assert shape(plan(sources(*sizes))) == expected


def test_what_is_not_a_whole_object_is_read() -> None:
    assert shape(plan([Source("s.0", 6 * MIB, whole=False), Source("s.1", 6 * MIB)])) == ["read 1", "copy 1"]


@given(st.lists(st.integers(1, LARGEST_PART), max_size=60))
def test_the_parts_are_the_sources_in_order_and_all_but_the_last_are_large_enough(sizes: list[int]) -> None:
    given_sources = sources(*sizes)
    parts = plan(given_sources)
    assert [source for part in parts for source in part.sources] == given_sources
    assert all(part.size >= 5 * MIB for part in parts[:-1])
    assert all(part.size < 2 * LARGEST_PART for part in parts if not part.copied)


@pytest.mark.parametrize("size", [MIB, 5 * MIB, 6 * MIB, LARGEST_PART])
def test_the_largest_file_has_no_more_parts_than_s3_takes(size: int) -> None:
    """10,000 parts, however small the commits were that it came in; those of the usual size are copied."""
    parts = plan(sources(*[size] * (LARGEST // size)))
    assert len(parts) <= 10_000
    assert all(part.copied for part in parts) == (size == LARGEST_PART)
