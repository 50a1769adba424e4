"""Backoff."""

from __future__ import annotations

import pytest

from bongsu.jobs.retry import RetryPolicy

POLICY = RetryPolicy(first_delay=1, longest_delay=60, max_failures=3, max_expiries=5)


@pytest.mark.parametrize(
    ("failures", "shortest", "longest"), [(1, 0.5, 1), (2, 1, 2), (5, 8, 16), (7, 30, 60), (5000, 30, 60)]
)
def test_the_delay_doubles_up_to_a_limit_and_is_spread_over_its_upper_half(
    failures: int, shortest: float, longest: float
) -> None:
    assert POLICY.delay(failures, chance=0.0) == shortest
    assert POLICY.delay(failures, chance=1.0) == longest
    assert shortest < POLICY.delay(failures, chance=0.5) < longest


@pytest.mark.parametrize(("away", "shortest", "longest"), [(0, 0.5, 1), (8, 4, 8), (80_000, 30, 60)])
def test_what_is_away_is_looked_for_again_after_about_as_long_as_it_has_been(
    away: float, shortest: float, longest: float
) -> None:
    assert POLICY.wait(away, chance=0.0) == shortest
    assert POLICY.wait(away, chance=1.0) == longest


def test_what_is_away_is_waited_for_for_a_day() -> None:
    assert POLICY.waits(86_399)
    assert not POLICY.waits(86_400)


@pytest.mark.parametrize(
    ("failures", "expiries", "dead"), [(0, 0, False), (2, 4, False), (3, 0, True), (0, 5, True)]
)
def test_failures_and_expiries_are_bounded_apart(failures: int, expiries: int, dead: bool) -> None:
    assert POLICY.exhausted(failures=failures, expiries=expiries) is dead
