"""Random steps against a model of one channel: nothing lost, doubled or reordered, `recovered` always true.

A failure prints the steps, as few and as simple as they could be made, as a list: `replay` takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.model.world import MemoryWorld, RedisWorld, Step, World
from tests.scale import scaled
from tests.servers import RedisServer

from bongsu.node import channel, healing, hub

pytestmark = pytest.mark.soak

_replica = st.integers(0, 1)
_subscriber = st.integers(0, 3)


def _step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), *arguments)


_PEACEFUL = [
    _step("turns", st.integers(1, 6)),
    _step("publish", _replica, st.integers(1, 4)),
    _step("publish", _replica, st.sampled_from([1, 2, 3, 12])),
    _step("subscribe", _subscriber, st.booleans(), st.booleans()),
    _step("subscribe", _subscriber, st.just(False), st.just(False)),
    _step("miss", _subscriber, _replica, st.integers(0, 10)),
    _step("connect", _subscriber, _replica),
    _step("drop", _subscriber),
    _step("unsubscribe", _subscriber),
    _step("history", _subscriber, st.integers(-1, 10), st.booleans(), st.booleans()),
    _step("stall", _subscriber),
    _step("flow", _subscriber),
    _step("settle"),
    _step("check_positions"),
]
# Most publications of one recovery: fewer than are kept, or more.
_limit = st.sampled_from([6, 12])
_FORGETFUL = [_step("remove_history"), _step("expire"), _step("begin_anew")]
_LOSSY = [_step("lose", _replica, st.booleans()), _step("lose", _replica, st.booleans())]


def sequences(*steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.one_of(*steps), min_size=10, max_size=60)


def model(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def replay(make: Callable[[], World], steps: Sequence[Step]) -> None:
    async def run() -> None:
        await make().run(steps)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound is met often: rings overflow, gaps are read in pages, and each write ends a slice."""
    monkeypatch.setattr(channel, "RING_SIZE", 4)
    monkeypatch.setattr(healing, "PAGE", 3)
    monkeypatch.setattr(hub, "SLICE", 0.0)
    monkeypatch.setattr(hub, "_WRITES_PER_CLOCK_READ", 1)


@model(scaled(300, 10_000))
@given(steps=sequences(*_PEACEFUL, *_FORGETFUL), limit=_limit)
def test_over_a_broker_that_forgets_but_loses_nothing(steps: list[Step], limit: int) -> None:
    replay(lambda: MemoryWorld(limit=limit, joins=True), steps)


@model(scaled(300, 10_000))
@given(steps=sequences(*_PEACEFUL, *_FORGETFUL, *_LOSSY), limit=_limit)
def test_over_a_broker_that_loses_messages(steps: list[Step], limit: int) -> None:
    replay(lambda: MemoryWorld(limit=limit), steps)


@model(scaled(40, 10_000))
@given(steps=sequences(*_PEACEFUL, *_FORGETFUL, *_LOSSY, _step("cut")), limit=_limit)
def test_with_two_replicas_on_a_redis_whose_connections_are_lost(
    redis_server: RedisServer, steps: list[Step], limit: int
) -> None:
    replay(lambda: RedisWorld(redis_server.url, limit=limit), steps)
