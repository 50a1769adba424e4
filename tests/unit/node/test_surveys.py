"""Pages of channels out of the answers of several replicas, against the plain sum."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bongsu.node import surveys
from bongsu.node.control import AskChannels, Channels
from bongsu.node.surveys import ChannelsPage, list_channels, merge


class Holding:
    """A replica with these channels."""

    def __init__(self, channels: dict[str, int]) -> None:
        self.channels = channels

    def channel_names(self) -> list[str]:
        return list(self.channels)

    def num_clients(self, channel: str) -> int:
        return self.channels.get(channel, 0)


async def page(replicas: list[Holding], pattern: str, cursor: str, limit: int) -> ChannelsPage:
    question = AskChannels(id="1", pattern=pattern, cursor=cursor, limit=limit)
    answers = [await list_channels(replica, question) for replica in replicas]
    return merge(answers, limit=limit, missing=[])


async def everything(replicas: list[Holding], pattern: str, limit: int) -> dict[str, int]:
    found: dict[str, int] = {}
    cursor = ""
    while True:
        channels, next_cursor, _ = await page(replicas, pattern, cursor, limit)
        assert len(channels) <= limit
        assert list(channels) == sorted(channels)
        assert not found.keys() & channels.keys()
        found |= channels
        if not next_cursor:
            return found
        assert next_cursor > cursor
        cursor = next_cursor


@given(
    st.lists(st.dictionaries(st.text("ab", min_size=1, max_size=4), st.integers(0, 3)), max_size=4),
    st.integers(1, 7),
)
def test_all_pages_together_are_the_sum_of_all_replicas(held: list[dict[str, int]], limit: int) -> None:
    expected: Counter[str] = Counter()
    for channels in held:
        expected.update(channels)
    found = asyncio.run(everything([Holding(channels) for channels in held], "", limit))
    assert found == {name: count for name, count in expected.items() if count}


async def test_a_pattern_is_a_glob_over_the_whole_name() -> None:
    replica = Holding({"news": 1, "news:kr": 2, "news:us": 3, "old news": 4, "ns:[x]": 5})
    for pattern, names in {
        "news": ["news"],
        "news*": ["news", "news:kr", "news:us"],
        "news:?s": ["news:us"],
        "ns:[[]x]": ["ns:[x]"],
        "nothing": [],
    }.items():
        assert list(await everything([replica], pattern, 100)) == names


async def test_a_name_of_one_replica_before_the_cut_of_another_is_not_skipped() -> None:
    """A page of two: `b` has more after its second name, so `a`'s later ones must wait for the next page."""
    a, b = Holding({"a": 1, "z": 1}), Holding({"b": 1, "c": 1, "d": 1})
    assert await page([a, b], "", "", 2) == ({"a": 1, "b": 1}, "b", [])
    assert await everything([a, b], "", 2) == {"a": 1, "b": 1, "c": 1, "d": 1, "z": 1}


async def test_a_long_list_is_gone_through_in_slices_of_the_loop() -> None:
    replica = Holding({f"{number:06}": 1 for number in range(4 * surveys.MAX_NAMES)})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    answer: Channels = await list_channels(replica, AskChannels(id="1", limit=10**6))
    counting.cancel()
    assert turns >= 4
    assert len(answer.channels) == surveys.MAX_NAMES
    assert answer.more
