"""What waits for a client that takes no more, and what gives way."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from pydantic import ValidationError

from bongsu.node.backlog import Backlog, Policy, Waiting
from bongsu.node.channels import ChannelOptions
from bongsu.node.variants import ClientVariant, Form
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.messages import Publication

DROP_OLDEST = Policy(conflates=False)
CONFLATE = Policy(conflates=True)
BY_SYMBOL = Policy(conflates=True, key="symbol")

VARIANT = ClientVariant(JSON, Form("line", lambda message: message + b"\n"))


class Kept:
    """A backlog, and what it called."""

    def __init__(self, bound: int = 1000) -> None:
        self.over = 0
        self.dropped: Counter[Policy] = Counter()
        self.backlog = Backlog(bound, over=self._over, on_drop=self._on_drop)

    def _over(self) -> None:
        self.over += 1

    def _on_drop(self, policy: Policy) -> None:
        self.dropped[policy] += 1

    def publish(self, policy: Policy, data: object, channel: str = "news", **tags: str) -> None:
        publication = Publication(msgspec.json.encode(data), tags=tags or None)
        (chunk,) = VARIANT.render(channel, [publication], None)
        self.backlog.hold(Waiting(policy, channel, VARIANT, publication, chunk))

    def read(self) -> list[tuple[object, str]]:
        """Data and told drops of each publication that waits; b"..." for other chunks."""
        found = []
        for line in b"".join(self.backlog.chunks()).splitlines():
            publication = msgspec.json.decode(line)["push"]["pub"]
            found.append((publication["data"], publication.get("tags", {}).get("bongsu_dropped", "")))
        return found


def test_below_the_bound_nothing_is_given_up() -> None:
    kept = Kept()
    for number in range(5):
        kept.publish(DROP_OLDEST, number)
    assert kept.read() == [(number, "") for number in range(5)]
    assert not kept.dropped


def test_the_oldest_give_way_and_the_first_that_is_left_tells_how_many() -> None:
    kept = Kept(bound=10 * 48)
    for number in range(100, 150):
        kept.publish(DROP_OLDEST, number)
    got = kept.read()
    assert [data for data, _ in got] == list(range(150 - len(got), 150))
    assert [told for _, told in got] == [str(50 - len(got))] + [""] * (len(got) - 1)
    assert kept.dropped == {DROP_OLDEST: 50 - len(got)}
    assert kept.backlog.size <= 10 * 48
    assert not kept.over


def test_holes_are_told_in_the_channel_that_has_them() -> None:
    kept = Kept()
    kept.publish(CONFLATE, 1, "a")
    kept.publish(CONFLATE, 2, "b")
    kept.publish(CONFLATE, 3, "a")
    kept.publish(CONFLATE, 4, "a")
    assert kept.read() == [(2, ""), (4, "2")]


def test_only_the_latest_of_each_key_waits_in_the_order_of_the_latest() -> None:
    kept = Kept()
    kept.publish(BY_SYMBOL, "a1", symbol="a")
    kept.publish(BY_SYMBOL, "b1", symbol="b")
    kept.publish(BY_SYMBOL, "a2", symbol="a")
    kept.publish(BY_SYMBOL, "without 1")
    kept.publish(BY_SYMBOL, "without 2")
    assert [data for data, _ in kept.read()] == ["b1", "a2", "without 2"]
    assert kept.dropped == {BY_SYMBOL: 2}


def test_a_long_pause_keeps_no_trace_of_what_was_given_up() -> None:
    kept = Kept()
    for number in range(10_000):
        kept.publish(CONFLATE, number)
        kept.publish(DROP_OLDEST, number, "other")
    assert kept.backlog.size <= 1000
    assert len(kept.backlog._entries) < 30
    assert len(kept.backlog._oldest) < 30
    assert len(kept.backlog._by_key) == 1
    assert not kept.over


def test_what_must_not_be_given_up_makes_droppable_publications_give_way_and_then_is_too_much() -> None:
    kept = Kept(bound=300)
    kept.publish(DROP_OLDEST, "droppable")
    kept.backlog.append(b"x" * 290)
    assert kept.backlog.chunks() == [b"x" * 290]
    assert kept.over == 0
    kept.backlog.append(b"y" * 20)
    kept.backlog.append(b"z" * 20)
    kept.publish(DROP_OLDEST, "after")
    assert kept.over == 1


def test_more_keys_than_there_is_room_for_are_too_much() -> None:
    kept = Kept(bound=500)
    for number in range(100):
        kept.publish(BY_SYMBOL, number, symbol=str(number))
    assert kept.over == 1
    assert not kept.dropped


def test_the_own_tags_of_a_publication_that_tells_a_hole_stay() -> None:
    kept = Kept()
    kept.publish(BY_SYMBOL, 1, symbol="a")
    kept.publish(BY_SYMBOL, 2, symbol="a")
    (chunk,) = kept.backlog.chunks()
    assert msgspec.json.decode(chunk)["push"]["pub"]["tags"] == {"symbol": "a", "bongsu_dropped": "1"}


@pytest.mark.parametrize("policy", ["drop_oldest", "conflate"])
@pytest.mark.parametrize("promise", [{}, {"force_recovery": True}, {"allow_positioning": True}])
def test_policies_are_refused_where_history_promises_something(policy: str, promise: dict[str, bool]) -> None:
    with pytest.raises(ValidationError, match=f"slow_consumer = {policy} would break the promise of history"):
        ChannelOptions.model_validate(
            {"slow_consumer": policy, "history_size": 10, "history_ttl": 60, **promise}
        )


def test_a_key_without_conflation_is_refused() -> None:
    with pytest.raises(ValidationError, match="conflate_key needs slow_consumer = conflate"):
        ChannelOptions.model_validate({"slow_consumer": "drop_oldest", "conflate_key": "symbol"})


def test_the_policy_is_what_the_options_say() -> None:
    assert ChannelOptions().policy is None
    assert ChannelOptions(slow_consumer="drop_oldest").policy == DROP_OLDEST
    assert ChannelOptions(slow_consumer="conflate", conflate_key="symbol").policy == BY_SYMBOL
