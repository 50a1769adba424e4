"""The streams in memory let go of what has expired. What else they promise is asked in the contract suite."""

from __future__ import annotations

import gc

from bongsu.brokers.base import IDEMPOTENCY_TTL, StreamOptions
from bongsu.brokers.memory_streams import MemoryStreams
from bongsu.protocol.messages import Publication

OPTIONS = StreamOptions(size=10, ttl=60.0, meta_ttl=3600.0)


def kept(streams: MemoryStreams) -> int:
    """How many objects `streams` holds on to."""
    seen: set[int] = set()
    todo: list[object] = [streams]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, type):
            continue
        seen.add(id(found))
        todo += gc.get_referents(found)
    return len(seen)


def test_expired_windows_positions_and_keys_take_no_memory() -> None:
    streams = MemoryStreams()
    empty = kept(streams)
    for number in range(200):
        for lap in range(20):
            streams.append(
                f"channel {number}",
                Publication(b"%d of lap %d" % (number, lap)),
                OPTIONS,
                idempotency_key=f"key {lap}",
                now=1000.0 + lap,
            )
        streams.read(f"only read {number}", limit=0, meta_ttl=OPTIONS.meta_ttl, now=1020.0)
    full = kept(streams)
    streams.expire(1020.0 + OPTIONS.ttl)
    windowless = kept(streams)
    streams.expire(1020.0 + IDEMPOTENCY_TTL)
    keyless = kept(streams)
    streams.expire(1020.0 + OPTIONS.meta_ttl)
    assert empty + 200 < keyless < windowless - 4000 < full - 2000
    assert kept(streams) <= empty + 20


def test_a_busy_stream_is_not_watched_once_for_each_publication() -> None:
    streams = MemoryStreams()
    for number in range(100):
        streams.append("news", Publication(b"x"), OPTIONS, now=1000.0 + number / 1000)
    then = kept(streams)
    for number in range(100, 3000):
        streams.append("news", Publication(b"x"), OPTIONS, now=1000.0 + number / 1000)
    assert kept(streams) <= then + 5


def test_what_expires_earlier_than_was_thought_at_first_goes_in_time() -> None:
    """First only read, so that nothing but the position expires, in an hour; then appended to."""
    streams = MemoryStreams()
    streams.read("news", limit=0, meta_ttl=3600.0, now=1000.0)
    streams.append("news", Publication(b"1"), OPTIONS, now=1001.0)
    before = kept(streams)
    streams.expire(1001.0 + OPTIONS.ttl)
    assert kept(streams) < before
    page = streams.read("news", limit=-1, meta_ttl=3600.0, now=1062.0)
    assert (page.publications, page.offset) == ([], 1)
