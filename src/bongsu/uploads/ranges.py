"""The `Range` of a request for content. Pure. Source: RFC 9110 §14."""

from __future__ import annotations

import re
from typing import Final

from bongsu.protocol import problems

__all__ = ["parse_range"]

# Digits are bounded: int() of a header of any length is quadratic.
_SINGLE: Final = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last, or None when the whole is to be sent.

    Several ranges, other units and malformed ones are ignored, as §14.2 allows. Raises
    `Problem(RANGE_NOT_SATISFIABLE)` for a range that begins behind the end (§15.5.17).
    """
    match = _SINGLE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    elif last:  # the last n bytes
        start, end = max(0, size - int(last)), size
    else:
        return None
    if start >= size:
        raise problems.Problem(
            problems.RANGE_NOT_SATISFIABLE, f"The file has {size} bytes; the range asks for none of them."
        )
    return start, end
