"""Which bytes make which part of a finished object. Pure.

S3 itself copies a whole object into a part of another (UploadPartCopy) when that has 5 MiB or more, or is the
last part; what is smaller has to be read and sent again, together with its neighbours.
Source: Amazon S3 User Guide, "Amazon S3 multipart upload limits".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["LARGEST", "LARGEST_PART", "Part", "Source", "plan"]

_SMALLEST_PART: Final = 5 * 1024 * 1024
_MOST_PARTS: Final = 10_000

LARGEST_PART: Final = 8 * 1024 * 1024
"""Bytes of the largest object that a segment is made of: as much as a writer may hold."""

LARGEST: Final = (_MOST_PARTS - 1) * LARGEST_PART
"""Bytes of the largest file: what is larger would need parts that do not fit into memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """The first `size` bytes of the object `key`; `whole` when it has no more."""

    key: str
    size: int
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the finished object: its sources one after the other."""

    sources: tuple[Source, ...]
    copied: bool
    """Whether the server can make it, of one whole source. Otherwise it is read and sent."""

    @property
    def size(self) -> int:
        return sum(source.size for source in self.sources)


def plan(sources: Sequence[Source]) -> list[Part]:
    """The parts that `sources` make, in order; at most 10,000 if they have at most `LARGEST` bytes together.

    A part that has to be read has less than two times `LARGEST_PART` bytes.
    """
    total = sum(source.size for source in sources)
    least = max(_SMALLEST_PART, -(-total // (_MOST_PARTS - 1)))
    parts: list[Part] = []
    gathered: list[Source] = []
    size = 0
    for source in sources:
        gathered.append(source)
        size += source.size
        if size >= least:
            parts.append(_part(gathered))
            gathered, size = [], 0
    if gathered:
        parts.append(_part(gathered))
    return parts


def _part(sources: Sequence[Source]) -> Part:
    return Part(tuple(sources), copied=len(sources) == 1 and sources[0].whole)
