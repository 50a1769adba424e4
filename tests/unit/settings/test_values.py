"""How durations, sizes and lists are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.settings.values import parse_duration, parse_list, parse_size, without_password


def _outcome(parse: Callable[[str], object], text: str) -> str:
    try:
        return str(parse(text))
    except ValueError as error:
        return str(error)


@given(st.text())
def test_any_text_is_a_duration_a_size_or_refused_in_words(text: str) -> None:
    for parse in (parse_duration, parse_size):
        assert _outcome(parse, text).startswith((*"0123456789", "must be a"))


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d", ""]))
def test_a_whole_number_with_a_unit_is_a_duration(number: int, unit: str) -> None:
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}[unit]
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * seconds)


@given(st.text())
def test_any_text_is_a_list_or_refused_in_words(text: str) -> None:
    assert _outcome(parse_list, text).startswith(("[", "must be JSON"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://user:p@h:1/0", "redis://user:***@h:1/0"),
        ("redis://:p/w@x@h", "redis://:***@h"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        (
            "at redis://u:p@h and postgresql+asyncpg://u:q@h/d",
            "at redis://u:***@h and postgresql+asyncpg://u:***@h/d",
        ),
        ("no url: a:b@c", "no url: a:b@c"),
    ],
)
def test_the_password_of_a_url_is_masked_wherever_it_stands(text: str, masked: str) -> None:
    assert without_password(text) == masked


@given(st.text(st.characters(exclude_characters="\"'", exclude_categories=["Z", "C"]), min_size=8))
def test_no_password_survives_masking_whatever_characters_it_has(password: str) -> None:
    assert password not in without_password(f"redis://user:{password}@host/0")
