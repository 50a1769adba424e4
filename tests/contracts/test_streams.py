"""What every broker with streams promises (`brokers/base.py: Streams`), asked of each implementation."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol, cast

import pytest
from redis.asyncio import Redis
from tests.contracts.test_brokers import DEADLINE, Listener
from tests.servers import RedisServer

from bongsu.brokers import envelope
from bongsu.brokers.base import (
    IDEMPOTENCY_TTL,
    MAX_READ,
    RELAYED_TTL,
    Appended,
    Broker,
    BrokerUnavailable,
    Page,
    Read,
    Relayed,
    StaleTerm,
    StreamOptions,
    Streams,
)
from bongsu.brokers.memory import MemoryBroker
from bongsu.brokers.redis import RedisBroker
from bongsu.protocol.messages import ClientInfo, Publication, StreamPosition

OPTIONS = StreamOptions(size=100, ttl=300.0, meta_ttl=3600.0)
META_TTL = OPTIONS.meta_ttl


class StreamBroker(Broker, Streams, Protocol):
    def send(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str = "",
        relayed: Relayed | None = None,
    ) -> asyncio.Future[None]: ...


class World:
    """Two brokers that speak to each other, what they hear, and a clock that jumps for them."""

    def __init__(self, a: StreamBroker, b: StreamBroker, jump: Callable[[float], Awaitable[None]]) -> None:
        self.a, self.b, self.jump = a, b, jump
        self.heard = Listener()
        b.listen(self.heard)

    def publications(self, channel: str) -> list[Publication]:
        messages = [envelope.decode(payload) for payload in self.heard.payloads(channel)]
        assert all(isinstance(message, Publication) for message in messages)
        return cast("list[Publication]", messages)

    async def until_heard(self, count: int) -> None:
        await self.heard.until(lambda heard: len(heard.events) >= count)

    async def fill(self, channel: str, count: int, options: StreamOptions = OPTIONS) -> list[Appended]:
        return await asyncio.gather(
            *[self.a.append(channel, Publication(b"%d" % number), options) for number in range(1, count + 1)]
        )

    async def page(
        self, channel: str, since: int | None = None, limit: int = -1, *, reverse: bool = False
    ) -> Page:
        position = None if since is None else StreamPosition(since)
        return await self.b.read(channel, since=position, limit=limit, reverse=reverse, meta_ttl=META_TTL)

    async def offsets(
        self, channel: str, since: int | None = None, limit: int = -1, *, reverse: bool = False
    ) -> list[int]:
        page = await self.page(channel, since, limit, reverse=reverse)
        assert all(item.data == b"%d" % item.offset for item in page.publications)
        assert {item.epoch for item in page.publications} <= {page.epoch}
        return [item.offset for item in page.publications]


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        if request.param == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            redis = await stack.enter_async_context(Redis.from_url(server.url))

            async def jump(seconds: float) -> None:
                """Every key is that much older: PEXPIRE with nothing left deletes."""
                for key in cast("list[bytes]", await redis.keys("*")):
                    left = await redis.pttl(key)
                    await redis.pexpire(key, left - int(seconds * 1000))

            world = World(RedisBroker(server.url), RedisBroker(server.url), jump)
        else:
            now = 1000.0
            broker = MemoryBroker(clock=lambda: now)

            async def jump(seconds: float) -> None:
                nonlocal now
                now += seconds

            world = World(broker, broker, jump)
        for broker_here in {world.a, world.b}:
            await broker_here.connect()
            stack.push_async_callback(broker_here.disconnect)
        yield world


async def test_both_brokers_have_streams(world: World) -> None:
    assert isinstance(world.a, Streams)
    for name in ("append", "read", "read_many", "remove", "send", "settle"):
        ours, promised = (inspect.signature(getattr(one, name)) for one in (type(world.a), Streams))
        assert ours == promised


# Positions


async def test_a_stream_begins_when_it_is_first_read(world: World) -> None:
    first = await world.page("news")
    assert (first.publications, first.offset, len(first.epoch)) == ([], 0, envelope.EPOCH_SIZE)
    assert first.epoch.isascii()
    assert first.epoch.isalpha()
    assert await world.page("news") == first
    assert (await world.page("other")).epoch != first.epoch


async def test_offsets_count_from_one_in_one_epoch(world: World) -> None:
    epoch = (await world.page("news")).epoch
    assert await world.fill("news", 5) == [Appended(number, epoch) for number in range(1, 6)]
    assert (await world.page("news"))[1:] == (5, epoch)
    assert await world.offsets("news") == [1, 2, 3, 4, 5]


async def test_listeners_get_the_position_with_the_publication(world: World) -> None:
    await world.b.want("news")
    appended = await world.a.append("news", Publication(b"1", offset=99, epoch="ignored"), OPTIONS)
    await world.until_heard(1)
    assert world.publications("news") == [Publication(b"1", offset=1, epoch=appended.epoch)]


FULL = Publication(
    b'{"text":"\xeb\xb4\x89\xed\x99\x94"}',
    info=ClientInfo("42", "9f0c", b'{"a": 1}', bytes(range(256))),
    tags={"lang": "ko", "": "\n\0"},
    time=1_700_000_000_000,
    patchable=True,
)


@pytest.mark.parametrize(
    "publication",
    [
        FULL,
        Publication(bytes(range(256)) * 300, binary=True),
        Publication(b'"text"', plain=True),
        Publication(b""),
    ],
    ids=["everything", "binary", "plain", "empty"],
)
async def test_a_publication_is_heard_and_read_byte_for_byte(world: World, publication: Publication) -> None:
    channel = "ns:{x}:*?[a]\\ 채널 ' \""
    await world.b.want(channel)
    await world.a.append(channel, publication, OPTIONS)
    await world.until_heard(1)
    (heard,) = world.publications(channel)
    (read,) = (await world.page(channel)).publications
    assert heard == read
    assert (read.offset, read.data, read.plain, read.binary) == (
        1,
        publication.data,
        publication.plain,
        publication.binary,
    )
    assert (read.info, read.tags, read.time, read.patchable) == (
        publication.info,
        publication.tags,
        publication.time,
        publication.patchable,
    )


# What is kept


async def test_the_window_keeps_the_last_ones(world: World) -> None:
    await world.fill("news", 10, OPTIONS._replace(size=3))
    assert await world.offsets("news") == [8, 9, 10]
    assert (await world.page("news")).offset == 10


async def test_a_smaller_window_trims_what_a_larger_one_kept(world: World) -> None:
    await world.fill("news", 10)
    await world.a.append("news", Publication(b"11"), OPTIONS._replace(size=2))
    assert await world.offsets("news") == [10, 11]


async def test_the_window_expires_and_the_position_goes_on(world: World) -> None:
    await world.fill("news", 3)
    epoch = (await world.page("news")).epoch
    await world.jump(OPTIONS.ttl + 1)
    assert await world.page("news") == Page([], 3, epoch)
    assert await world.a.append("news", Publication(b"4"), OPTIONS) == Appended(4, epoch)
    assert await world.offsets("news") == [4]


async def test_each_publication_keeps_the_whole_window(world: World) -> None:
    await world.fill("news", 1)
    await world.jump(OPTIONS.ttl - 100)
    await world.a.append("news", Publication(b"2"), OPTIONS)
    await world.jump(OPTIONS.ttl - 100)
    assert await world.offsets("news") == [1, 2]


async def test_a_shorter_life_counts_from_the_publication_that_has_it(world: World) -> None:
    await world.fill("news", 1)
    await world.a.append("news", Publication(b"2"), OPTIONS._replace(ttl=10))
    await world.jump(11)
    assert await world.offsets("news") == []


async def test_a_position_that_nobody_asked_for_is_forgotten(world: World) -> None:
    await world.fill("news", 3)
    epoch = (await world.page("news")).epoch
    await world.jump(META_TTL + 1)
    forgotten = await world.page("news")
    assert (forgotten.publications, forgotten.offset) == ([], 0)
    assert forgotten.epoch != epoch
    assert await world.a.append("news", Publication(b"1"), OPTIONS) == Appended(1, forgotten.epoch)


@pytest.mark.parametrize("touch", ["read", "append"])
async def test_reading_and_appending_keep_the_position(world: World, touch: str) -> None:
    first = (await world.fill("news", 1))[0]
    for _ in range(3):
        await world.jump(META_TTL - 100)
        if touch == "read":
            await world.a.read("news", limit=0, meta_ttl=META_TTL)
        else:
            await world.a.append("news", Publication(b"x"), OPTIONS)
    assert (await world.page("news")).epoch == first.epoch


async def test_removing_forgets_the_window_and_keeps_the_position(world: World) -> None:
    await world.fill("news", 3)
    epoch = (await world.page("news")).epoch
    await world.a.remove("news")
    assert await world.page("news") == Page([], 3, epoch)
    await world.a.append("news", Publication(b"4"), OPTIONS)
    assert await world.offsets("news") == [4]
    await world.a.remove("never seen")


# Pages


@pytest.mark.parametrize(
    ("since", "limit", "reverse", "expected"),
    [
        (None, 0, False, []),
        (None, -1, False, [4, 5, 6, 7, 8]),
        (None, 2, False, [4, 5]),
        (None, 99, False, [4, 5, 6, 7, 8]),
        (None, 2, True, [8, 7]),
        (None, -1, True, [8, 7, 6, 5, 4]),
        (5, -1, False, [6, 7, 8]),
        (5, 2, False, [6, 7]),
        (5, 0, False, []),
        (8, -1, False, []),
        (99, -1, False, []),
        (0, 2, False, [4, 5]),
        (2, 2, False, [4, 5]),
        (7, 2, True, [6, 5]),
        (7, -1, True, [6, 5, 4]),
        (5, 9, True, [4]),
        (4, -1, True, []),
        (1, -1, True, []),
        (0, -1, True, []),
        (99, 2, True, [8, 7]),
        (2**64 - 1, 2, True, [8, 7]),
        (2**64 - 1, -1, False, []),
    ],
)
async def test_a_page_is_what_was_asked_for(
    world: World, since: int | None, limit: int, reverse: bool, expected: list[int]
) -> None:
    await world.fill("news", 8, OPTIONS._replace(size=5))
    assert await world.offsets("news", since, limit, reverse=reverse) == expected
    assert (await world.page("news", since, limit, reverse=reverse)).offset == 8


async def test_many_channels_are_read_in_one_go(world: World) -> None:
    counts = {f"channel-{number}": number for number in range(20)}
    for channel, count in counts.items():
        await world.fill(channel, count)
    pages = await world.b.read_many(
        [Read(channel, StreamPosition(1), 5, META_TTL) for channel in reversed(counts)]
    )
    assert [page.offset for page in pages] == list(reversed(counts.values()))
    assert [[item.offset for item in page.publications] for page in pages] == [
        list(range(2, min(count, 6) + 1)) for count in reversed(counts.values())
    ]
    assert await world.b.read_many([]) == []


@pytest.mark.parametrize("limit", [-1, MAX_READ + 1])
async def test_many_reads_have_a_bound(world: World, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        world.b.read_many([Read("news", None, limit, META_TTL)])


# Order


async def test_calls_to_one_channel_take_effect_in_their_order(world: World) -> None:
    """Nothing is awaited between the calls."""
    appended = [world.a.append("news", Publication(b"%d" % number), OPTIONS) for number in (1, 2)]
    before = world.a.read("news", limit=-1, meta_ttl=META_TTL)
    removed = world.a.remove("news")
    after = world.a.read("news", limit=-1, meta_ttl=META_TTL)
    await asyncio.gather(*appended, removed)
    assert [item.offset for item in (await before).publications] == [1, 2]
    assert (await after)[:2] == ([], 2)


async def test_with_and_without_history_a_channel_keeps_its_order(world: World) -> None:
    for channel in ("one", "two"):
        await world.b.want(channel)
    sent: list[asyncio.Future[Appended] | asyncio.Future[None]] = []
    for number in range(500):
        for channel in ("one", "two"):
            publication = Publication(b"%d" % number)
            if number % 3 == 0:
                sent.append(world.a.send(channel, envelope.encode(publication)))
            elif number % 3 == 1:
                sent.append(
                    world.a.send(channel, envelope.encode(publication), idempotency_key=f"key {number}")
                )
            else:
                sent.append(world.a.append(channel, publication, OPTIONS))
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*sent)
    await world.until_heard(1000)
    for channel in ("one", "two"):
        heard = world.publications(channel)
        assert [item.data for item in heard] == [b"%d" % number for number in range(500)]
        assert [item.offset for item in heard if item.offset] == list(range(1, 167))


async def test_publishers_on_two_replicas_are_heard_in_the_order_of_the_offsets(world: World) -> None:
    await world.b.want("news")
    mine = [world.a.append("news", Publication(b"a%d" % number), OPTIONS) for number in range(300)]
    theirs = [world.b.append("news", Publication(b"b%d" % number), OPTIONS) for number in range(300)]
    async with asyncio.timeout(DEADLINE):
        appended = await asyncio.gather(*mine, *theirs)
    await world.until_heard(600)
    heard = world.publications("news")
    assert [item.offset for item in heard] == list(range(1, 601))
    assert {item.epoch for item in heard} == {appended[0].epoch}
    given = {item.offset: item.data for item in heard}
    sent = [b"a%d" % number for number in range(300)] + [b"b%d" % number for number in range(300)]
    assert [given[position.offset] for position in appended] == sent


async def test_whoever_sees_an_offset_can_read_its_publication(world: World) -> None:
    """Readers race with a publisher; a top that is not in the page was seen too early."""
    options = OPTIONS._replace(size=1000)

    async def publish() -> None:
        for number in range(1, 301):
            await world.a.append("news", Publication(b"%d" % number), options)

    async def look() -> None:
        top = 0
        while top < 300:
            page = await world.page("news", top)
            assert [item.offset for item in page.publications] == list(range(top + 1, page.offset + 1))
            top = page.offset
            await asyncio.sleep(0)

    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        group.create_task(publish())
        for _ in range(3):
            group.create_task(look())


# Once only


async def test_a_repeated_append_is_answered_with_the_first_position(world: World) -> None:
    await world.b.want("news")
    first = await world.a.append("news", Publication(b"1"), OPTIONS, idempotency_key="k")
    await world.a.append("news", Publication(b"2"), OPTIONS)
    again = await world.b.append("news", Publication(b"1"), OPTIONS, idempotency_key="k")
    assert again == first._replace(cached=True)
    await world.a.append("news", Publication(b"3"), OPTIONS, idempotency_key="another")
    await world.until_heard(3)
    assert [item.data for item in world.publications("news")] == [b"1", b"2", b"3"]
    assert await world.offsets("news") == [1, 2, 3]


async def test_of_concurrent_repeats_one_is_published(world: World) -> None:
    await world.b.want("news")
    calls = [
        broker.append("news", Publication(b"1"), OPTIONS, idempotency_key="k")
        for broker in (world.a, world.b)
        for _ in range(20)
    ]
    answers = await asyncio.gather(*calls)
    assert {answer.offset for answer in answers} == {1}
    assert sum(not answer.cached for answer in answers) == 1
    await world.a.send("news", envelope.encode(Publication(b"mark")))
    await world.until_heard(2)
    assert [item.data for item in world.publications("news")] == [b"1", b"mark"]


async def test_a_repeated_send_is_published_once(world: World) -> None:
    await world.b.want("news")
    payload = envelope.encode(Publication(b"1"))
    await asyncio.gather(
        *[broker.send("news", payload, idempotency_key="k") for broker in (world.a, world.b) * 5]
    )
    await world.a.send("news", envelope.encode(Publication(b"mark")), idempotency_key="another")
    await world.until_heard(2)
    assert [item.data for item in world.publications("news")] == [b"1", b"mark"]


async def test_keys_are_known_for_a_while_and_per_channel(world: World) -> None:
    """The colons: a key of one channel must not read as another key of another."""
    await world.a.append("a:b", Publication(b"1"), OPTIONS, idempotency_key="c")
    assert not (await world.a.append("a", Publication(b"1"), OPTIONS, idempotency_key="b:c")).cached
    await world.jump(IDEMPOTENCY_TTL - 10)
    assert (await world.a.append("a:b", Publication(b"1"), OPTIONS, idempotency_key="c")).cached
    await world.jump(11)
    late = await world.a.append("a:b", Publication(b"2"), OPTIONS, idempotency_key="c")
    assert (late.offset, late.cached) == (2, False)


async def test_a_key_of_a_send_is_known_to_an_append(world: World) -> None:
    """A publication may skip history, or the namespace get it between the two calls."""
    await world.a.send("news", envelope.encode(Publication(b"1")), idempotency_key="k")
    assert await world.a.append("news", Publication(b"1"), OPTIONS, idempotency_key="k") == Appended(
        0, "", cached=True
    )
    await world.a.append("news", Publication(b"2"), OPTIONS, idempotency_key="l")
    await world.b.want("news")
    await world.a.send("news", envelope.encode(Publication(b"2")), idempotency_key="l")
    await world.a.send("news", envelope.encode(Publication(b"mark")))
    await world.until_heard(1)
    assert [item.data for item in world.publications("news")] == [b"mark"]


BIG = 2**64 - 1


@pytest.mark.parametrize(
    ("first", "second", "published"),
    [
        ((5, ""), (5, ""), False),
        ((5, ""), (4, ""), False),
        ((5, ""), (6, ""), True),
        ((9, ""), (10, ""), True),
        ((5, "x"), (5, "x"), False),
        ((5, "x"), (6, "x"), True),
        ((5, "x"), (1, "y"), True),
        ((5, "x"), (5, ""), False),
        ((5, ""), (1, "y"), True),
        ((BIG - 1, ""), (BIG, ""), True),
        ((BIG, ""), (BIG - 1, ""), False),
    ],
)
async def test_only_a_newer_version_is_published(
    world: World, first: tuple[int, str], second: tuple[int, str], published: bool
) -> None:
    await world.b.want("news")
    one = await world.a.append("news", Publication(b"1"), OPTIONS, version=first[0], version_epoch=first[1])
    unversioned = await world.a.append("news", Publication(b"2"), OPTIONS)
    two = await world.b.append("news", Publication(b"3"), OPTIONS, version=second[0], version_epoch=second[1])
    assert (one.suppressed, unversioned.suppressed, two.suppressed) == (False, False, not published)
    assert (two.offset, two.epoch) == (3 if published else 2, one.epoch)
    assert await world.offsets("news") == ([1, 2, 3] if published else [1, 2])
    await world.a.send("news", envelope.encode(Publication(b"mark")))
    await world.until_heard(4 if published else 3)
    assert len(world.publications("news")) == (4 if published else 3)


# Relayed


@pytest.fixture(params=["append", "send"])
def relay(request: pytest.FixtureRequest, world: World) -> Callable[..., Awaitable[Appended | None]]:
    """Publishes a row of the outbox on a channel with history, or on one without."""

    async def publish(
        row: int, term: int, by: StreamBroker = world.a, channel: str = "news"
    ) -> Appended | None:
        relayed = Relayed(term, f"row-{row}")
        publication = Publication(b"%d" % row)
        if request.param == "append":
            return await by.append(channel, publication, OPTIONS, relayed=relayed)
        await by.send(channel, envelope.encode(publication), relayed=relayed)
        return None

    return publish


Relay = Callable[..., Awaitable[Appended | None]]


async def heard(world: World, count: int) -> list[bytes]:
    await world.until_heard(count)
    return [publication.data for publication in world.publications("news")]


async def test_a_relayed_row_is_published_once_whoever_tries_it_again(world: World, relay: Relay) -> None:
    await world.b.want("news")
    await relay(1, term=5)
    await relay(1, term=5)
    await relay(1, term=6, by=world.b)
    await relay(2, term=6, by=world.b)
    assert await heard(world, 2) == [b"1", b"2"]


async def test_a_relay_that_froze_is_refused_once_its_successor_has_published(
    world: World, relay: Relay
) -> None:
    """
    Setup: a relay froze with rows 1 and 2 in hand; its successor published both, and settled them, since
    their rows are gone.
    Do: the first one thaws and publishes what it has in hand.
    Expect: refused, though no key is known any more; nothing is heard twice.
    """
    await world.b.want("news")
    await relay(1, term=6, by=world.b)
    await relay(2, term=6, by=world.b)
    await world.b.settle("news", ["row-1", "row-2"])
    for row in (1, 2):
        with pytest.raises(StaleTerm):
            await relay(row, term=5)
    await relay(3, term=6, by=world.b)
    assert await heard(world, 3) == [b"1", b"2", b"3"]


async def test_a_row_that_was_published_already_brings_the_later_term_all_the_same(
    world: World, relay: Relay
) -> None:
    await world.b.want("news")
    await relay(1, term=5)
    await relay(1, term=6)
    with pytest.raises(StaleTerm):
        await relay(2, term=5)
    assert await heard(world, 1) == [b"1"]


async def test_a_term_on_one_channel_refuses_nothing_on_another(world: World, relay: Relay) -> None:
    await world.b.want("news")
    await relay(1, term=6, channel="other")
    await relay(2, term=5)
    assert await heard(world, 1) == [b"2"]


async def test_terms_are_compared_as_numbers_of_64_bits(world: World, relay: Relay) -> None:
    await relay(1, term=9)
    await relay(2, term=10)
    await relay(3, term=2**64 - 2)
    await relay(4, term=2**64 - 1)
    with pytest.raises(StaleTerm):
        await relay(5, term=2**64 - 2)


async def test_a_settled_row_is_forgotten_and_others_are_not(world: World, relay: Relay) -> None:
    await world.b.want("news")
    await relay(1, term=5)
    await relay(2, term=5)
    await world.a.settle("news", ["row-1", "row-unknown"])
    await relay(1, term=5)
    await relay(2, term=5)
    assert await heard(world, 3) == [b"1", b"2", b"1"]


async def test_rows_are_known_for_a_day_and_terms_with_them(world: World, relay: Relay) -> None:
    await world.b.want("news")
    await relay(1, term=5)
    await world.jump(META_TTL - 1)  # longer than the other keys are known
    await relay(1, term=5)
    with pytest.raises(StaleTerm):
        await relay(2, term=4)
    await world.jump(RELAYED_TTL + 1)
    await relay(1, term=5)
    assert await heard(world, 2) == [b"1", b"1"]


async def test_keys_that_callers_choose_are_not_those_of_relays(world: World, relay: Relay) -> None:
    await world.b.want("news")
    await world.a.send("news", envelope.encode(Publication(b"0")), idempotency_key="row-1")
    await relay(1, term=5)
    assert await heard(world, 2) == [b"0", b"1"]


async def test_what_relays_and_others_publish_is_one_stream(world: World) -> None:
    await world.fill("news", 2)
    third = await world.a.append("news", Publication(b"3"), OPTIONS, relayed=Relayed(5, "row-3"))
    again = await world.a.append("news", Publication(b"3"), OPTIONS, relayed=Relayed(6, "row-3"))
    assert (third.offset, again.offset, again.cached) == (3, 3, True)
    assert await world.offsets("news") == [1, 2, 3]


async def test_a_relayed_row_begins_a_stream_whose_position_stays(world: World) -> None:
    """The term of a publication outside the stream is kept with the position of the stream to come."""
    await world.a.send("news", envelope.encode(Publication(b"0")), relayed=Relayed(5, "row-0"))
    first = await world.page("news")
    assert (first.offset, len(first.epoch)) == (0, envelope.EPOCH_SIZE)
    assert await world.a.append("news", Publication(b"1"), OPTIONS) == Appended(1, first.epoch)
    with pytest.raises(StaleTerm):
        await world.a.append("news", Publication(b"2"), OPTIONS, relayed=Relayed(4, "row-2"))


# Away


async def test_without_a_connection_everything_fails_at_once(world: World) -> None:
    await world.a.disconnect()
    calls: list[Awaitable[object]] = [
        world.a.append("news", Publication(b"1"), OPTIONS),
        world.a.read("news", limit=0, meta_ttl=META_TTL),
        world.a.read_many([Read("news", None, 0, META_TTL)]),
        world.a.remove("news"),
        world.a.send("news", b"1", idempotency_key="k"),
    ]
    for call in calls:
        with pytest.raises(BrokerUnavailable):
            await call
