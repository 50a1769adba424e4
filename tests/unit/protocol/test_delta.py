"""Deltas: what they make, how small they are, and what is not one."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bongsu.protocol import delta
from bongsu.protocol.delta import DeltaError

texts = st.text(max_size=200).map(str.encode)


def edited(base: bytes, seed: int) -> bytes:
    """`base` with pieces removed, doubled, moved and replaced."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 6)):
        i, j = sorted(chance.randrange(len(base) + 1) for _ in range(2))
        piece = chance.choice([b"", base[i:j] * 2, chance.randbytes(chance.randrange(40)), base[j:]])
        base = base[:i] + piece[:4096] + base[j:]
    return base


def test_the_format_is_fossils() -> None:
    # setup: a text, and the same with two characters changed
    base = b"The quick brown fox jumps over the lazy dog, again and again."
    target = b"The quick brown cat jumps over the lazy dog, again and again!"
    # expect: by hand from the format. 61 = "y": digits are 0-9 A-Z _ a-z ~. Copy 16 from 0, insert 3, copy 41
    # from 19, insert 1, and the sum of the words: 4,123,206,360 = "3qlnBO"
    words = sum(int.from_bytes((target + bytes(3))[i : i + 4], "big") for i in range(0, 64, 4)) % 2**32
    assert words == 4123206360
    assert delta.create(base, target) == b"y\nG@0,3:cate@J,1:!3qlnBO;"


def test_a_counter_in_front_and_the_last_character_changed_still_make_a_small_delta() -> None:
    """centrifuge-js tests this: common prefix and suffix alone find nothing to copy here."""
    text = "".join(random.Random(1).choices("abcdefghijklmnop", k=500))
    base, target = f"9{text}x".encode(), f"10{text}y".encode()
    assert target[:1] != base[:1]
    assert target[-1:] != base[-1:]
    patch = delta.patch(base, target)
    assert patch is not None
    assert len(patch) < 40
    assert delta.apply(base, patch) == target


def test_blocks_that_changed_places_are_found() -> None:
    chance = random.Random(2)
    blocks = [chance.randbytes(64) for _ in range(16)]
    base = b"".join(blocks)
    chance.shuffle(blocks)
    assert len(delta.create(base, b"".join(blocks))) < 200


def test_of_equal_blocks_the_copy_takes_the_one_that_keeps_its_place() -> None:
    rows = [f'{{"price":"0000000000","size":{n:06}}},' for n in range(50)]
    base = "".join(rows).encode()
    target = base.replace(b"000030", b"999999")
    assert len(delta.create(base, target)) < 40


def test_long_new_text_is_skimmed_and_what_follows_it_is_found() -> None:
    chance = random.Random(3)
    base = chance.randbytes(4096)
    target = chance.randbytes(8192) + base
    assert len(delta.create(base, target)) < 8192 + 64


@pytest.mark.parametrize(
    ("base", "target"),
    [(b"", b"a new document"), (b"short", b"shorter"), (b"x" * 100, b""), (b"a" * 100, b"b" * 100)],
)
def test_where_a_patch_is_not_smaller_there_is_none(base: bytes, target: bytes) -> None:
    assert delta.patch(base, target) is None
    assert delta.apply(base, delta.create(base, target)) == target


@given(base=st.binary(min_size=1, max_size=3000), seed=st.integers(0, 2**32))
@example(base=bytes(3000), seed=0)
@example(base=b"\x80" * 3000, seed=1)
@example(base=b"ab" * 1500, seed=2)
def test_any_edit_survives_the_way_through_a_delta(base: bytes, seed: int) -> None:
    target = edited(base, seed)
    assert delta.apply(base, delta.create(base, target)) == target


@given(pieces=st.lists(texts, min_size=1, max_size=8), seed=st.integers(0, 2**32))
def test_a_delta_to_a_text_is_a_text(pieces: list[bytes], seed: int) -> None:
    """Cut between the bytes of a character, a patch could not be a JSON string."""
    chance = random.Random(seed)
    base = b"".join(chance.choices(pieces, k=8))
    target = b"".join(chance.choices(pieces, k=8))
    patch = delta.create(base, target)
    assert json.loads(json.dumps(patch.decode())).encode() == patch
    assert delta.apply(base, patch) == target


def test_characters_that_share_their_first_bytes_are_not_cut() -> None:
    # expect: 가 and 각 differ in their last byte only; the copies stop before and go on after the character
    base = ("봉수대의 불은 " * 4 + "가" + " 다음 언덕으로 " * 4).encode()
    target = base.replace("가".encode(), "각".encode())
    patch = delta.create(base, target)
    assert "3:각".encode() in patch
    assert delta.apply(base, patch) == target


def test_characters_that_share_their_last_byte_are_not_cut_either() -> None:
    # expect: 가 (ea b0 80) and 뀀 (eb 80 80) end alike, but the copy begins after the character
    base = ("가" + "다음 언덕으로 " * 4).encode()
    target = base.replace("가".encode(), "뀀".encode())
    patch = delta.create(base, target)
    assert "3:뀀".encode() in patch
    assert delta.apply(base, patch) == target


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_bytes_that_are_no_delta_raise_only_delta_errors(base: bytes, patch: bytes) -> None:
    try:
        delta.apply(base, patch)
    except DeltaError:
        return
    assert patch.endswith(b";")


BASE = b"0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("patch", "complaint"),
    [
        (b"", "a number is missing"),
        (b"4", "newline"),
        (b"4\n", "a number is missing"),
        (b"4\n4?0,", "unknown command"),
        (b"4\n4@0;", "not ended by a comma"),
        (b"4\n4@~~~,", "beyond its source"),
        (b"4\n4:ab", "beyond its source"),
        (b"4\n5@0,", "larger than announced"),
        (b"4\n4@0,0;", "another base"),
        (b"5\n4@0,0;", "another base"),
        (b"0\n0;x", "bytes follow"),
        (b"~~~~~~\n", "larger than allowed"),
    ],
)
def test_each_way_to_break_a_delta_is_told(patch: bytes, complaint: str) -> None:
    with pytest.raises(DeltaError, match=complaint):
        delta.apply(BASE, patch)


def test_a_delta_grows_no_further_than_allowed() -> None:
    # setup: 20 copies of the whole base, a few bytes each
    base = BASE * 16
    patch = delta.create(base, base * 20)
    assert len(patch) < 200
    with pytest.raises(DeltaError, match="larger than allowed"):
        delta.apply(base, patch, max_size=len(base) * 20 - 1)
