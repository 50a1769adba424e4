"""What the fuzzers feed: valid inputs, broken in small ways. The same every time.

Each fuzzer gets 2,000 inputs in `make test`, a million in `make soak`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from tests.scale import scaled

COUNT: Final = scaled(2_000, 1_000_000)

_TOKENS: Final = (
    *[
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\n",
        b"\r",
        b"\\",
        b"\\u",
        b"null",
        b"true",
        b"-1",
        b"1e999",
    ],
    *[
        b"4294967296",
        b"18446744073709551616",
        b"\x00",
        b"\x80",
        b"\xff\xff\xff\xff\x0f",
        b"\xed\xa0\x80",
        b";",
    ],
    *[b"\xef\xbb\xbf", "봉".encode(), b"[" * 200, b'{"a":' * 150, b"@0,", b"~~~~~~", b'"data":', b'"id":'],
    *[b"1e999", b";"],
)


def inputs(corpus: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """`COUNT` inputs: each of `corpus` as it is, then changed ones."""
    chance = random.Random(seed)
    yield from corpus
    for _ in range(COUNT - len(corpus)):
        octets = bytearray(chance.choice(corpus))
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            _change(octets, chance, corpus)
        yield bytes(octets[:70_000])


def _change(octets: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    i, j = sorted(chance.randrange(len(octets) + 1) for _ in range(2))
    match chance.randrange(7):
        case 0:
            del octets[i:j]
        case 1:
            octets[i:i] = octets[i:j]
        case 2:
            octets[i:j] = chance.choice(_TOKENS)
        case 3:
            octets[i:i] = chance.choice(_TOKENS)
        case 4:
            octets[i:] = chance.choice(corpus)[i:]
        case 5:
            octets[i:i] = chance.randbytes(chance.randrange(1, 5))
        case _ if octets:
            octets[i - 1] ^= 1 << chance.randrange(8)
