"""The one ordered way for commands, every answer given by hand: what is sent again, what must not be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import hiredis
import pytest

from bongsu.brokers.base import BrokerBusy, BrokerError, BrokerUnavailable, OutcomeUnknown
from bongsu.brokers.redis.link import Link
from bongsu.brokers.redis.pipeline import CommandRefused, Pipeline

FORGOTTEN = b"-NOSCRIPT No matching script\r\n"
OK = b"+OK\r\n"


class ToyRedis:
    """The other end of the wire, in the transport's place: takes what is written, says what the test says."""

    def __init__(self) -> None:
        self._parser = hiredis.Reader()
        self._link: Link | None = None
        self.connections = 0
        self.aborted = False

    def is_closing(self) -> bool:
        return False

    async def open(self, link: Link) -> None:
        link.adopt(cast("Any", SimpleNamespace(_writer=SimpleNamespace(transport=self))))
        self._link = link
        self._parser = hiredis.Reader()
        self.aborted = False
        self.connections += 1

    def set_protocol(self, _: Any) -> None: ...

    def write(self, data: bytes) -> None:
        self._parser.feed(data)

    def abort(self) -> None:
        self.aborted = True
        asyncio.get_running_loop().call_soon(self.lose)

    def lose(self) -> None:
        assert self._link is not None
        self._link.connection_lost(None)

    def answer(self, *replies: bytes) -> None:
        assert self._link is not None
        self._link.data_received(b"".join(replies))

    async def commands(self) -> list[bytes]:
        """What was written since, a word a command: its last argument."""
        await asyncio.sleep(0)
        found = []
        while (command := self._parser.gets()) is not False:
            found.append(command[-1])
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # a few loop turns, of which nothing tells
                await asyncio.sleep(0)


@pytest.fixture
async def redis() -> ToyRedis:
    return ToyRedis()


@pytest.fixture
async def pipeline(redis: ToyRedis) -> AsyncIterator[Pipeline]:
    """Connected, its only script loaded."""
    pipeline = Pipeline(redis.open, scripts=[b"script"])
    await pipeline.start()
    assert await redis.commands() == [b"script"]
    redis.answer(OK)
    yield pipeline
    await pipeline.stop()


def call(pipeline: Pipeline, word: bytes, lane: bytes = b"lane") -> asyncio.Future[Any]:
    return pipeline.execute(b"EVALSHA", word, lane=lane)


async def test_what_a_forgetful_redis_refused_is_sent_again_before_what_waited(
    pipeline: Pipeline, redis: ToyRedis
) -> None:
    calls = [call(pipeline, word) for word in (b"1", b"2", b"3")]
    assert await redis.commands() == [b"1", b"2", b"3"]
    redis.answer(OK, FORGOTTEN)
    calls.append(call(pipeline, b"4"))
    assert await redis.commands() == []  # else 4 might be done before 2 and 3
    redis.answer(FORGOTTEN)
    assert await redis.commands() == [b"script", b"2", b"3", b"4"]
    redis.answer(OK, b"$1\r\n2\r\n", b"$1\r\n3\r\n", b"$1\r\n4\r\n")
    assert await asyncio.gather(*calls) == [b"OK", b"2", b"3", b"4"]


async def test_what_a_later_command_of_its_lane_has_overtaken_is_not_sent_again(
    pipeline: Pipeline, redis: ToyRedis
) -> None:
    """A plain PUBLISH needs no script; or another replica has loaded it in between."""
    overtaken = call(pipeline, b"1", b"news")
    other = call(pipeline, b"2", b"sport")
    through = call(pipeline, b"3", b"news")
    late = call(pipeline, b"4", b"news")
    await redis.commands()
    redis.answer(FORGOTTEN, FORGOTTEN, OK, FORGOTTEN)
    assert await redis.commands() == [b"script", b"2", b"4"]
    redis.answer(OK, OK, OK)
    for answered in (other, through, late):
        assert await answered == b"OK"
    with pytest.raises(BrokerUnavailable, match="forgotten"):
        await overtaken


async def test_a_script_that_redis_will_not_keep_fails_in_the_end(
    pipeline: Pipeline, redis: ToyRedis
) -> None:
    refused = call(pipeline, b"1")
    while not refused.done():
        for word in await redis.commands():
            redis.answer(OK if word == b"script" else FORGOTTEN)
    with pytest.raises(BrokerUnavailable, match="NOSCRIPT"):
        await refused
    assert pipeline.in_flight == 0


@pytest.mark.parametrize("answer", [b"-READONLY on a replica\r\n", b"-MOVED 1 127.0.0.1:1\r\n"])
async def test_a_redis_that_takes_no_writes_is_left_when_all_is_answered(
    pipeline: Pipeline, redis: ToyRedis, answer: bytes
) -> None:
    refused, answered = call(pipeline, b"1"), call(pipeline, b"2")
    await redis.commands()
    redis.answer(answer)
    assert not pipeline.connected
    with pytest.raises(BrokerUnavailable):
        await call(pipeline, b"3")
    assert not redis.aborted  # the answer to 2 is still to come
    redis.answer(OK)
    assert redis.aborted
    assert await answered == b"OK"
    with pytest.raises(BrokerUnavailable):
        await refused
    await redis.until(lambda: redis.connections == 2 and pipeline.connected)
    assert await redis.commands() == [b"script"]


async def test_only_what_may_have_happened_has_an_unknown_outcome(
    pipeline: Pipeline, redis: ToyRedis
) -> None:
    refused, sent = call(pipeline, b"1"), call(pipeline, b"2")
    await redis.commands()
    redis.answer(FORGOTTEN)
    waiting = call(pipeline, b"3")
    redis.lose()
    outcomes = await asyncio.gather(refused, sent, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [BrokerUnavailable, OutcomeUnknown, BrokerUnavailable]
    assert pipeline.in_flight == 0


async def test_errors_say_whether_it_is_worth_trying_again(pipeline: Pipeline, redis: ToyRedis) -> None:
    calls = [call(pipeline, b"1") for _ in range(2)]
    await redis.commands()
    redis.answer(b"-LOADING the dataset\r\n", b"-WRONGTYPE a key\r\n")
    loading, wrong = await asyncio.gather(*calls, return_exceptions=True)
    assert type(loading) is BrokerUnavailable
    assert type(wrong) is CommandRefused


async def test_a_caller_that_went_away_takes_no_answer_of_another(
    pipeline: Pipeline, redis: ToyRedis
) -> None:
    gone, staying = call(pipeline, b"1"), call(pipeline, b"2")
    await redis.commands()
    gone.cancel()
    redis.answer(b"+1\r\n", b"+2\r\n")
    assert await staying == b"2"


async def test_an_answer_that_cannot_be_read_fails_its_own_call(pipeline: Pipeline, redis: ToyRedis) -> None:
    def parse(_: Any) -> Any:
        raise BrokerError("nonsense")

    wrong = pipeline.execute(b"EVALSHA", b"1", parse=parse)
    right = pipeline.execute(b"EVALSHA", b"2", parse=int)
    await redis.commands()
    redis.answer(b"+x\r\n", b"+2\r\n")
    assert await right == 2
    with pytest.raises(BrokerError, match="nonsense"):
        await wrong


@pytest.mark.parametrize("limit", ["MAX_IN_FLIGHT", "MAX_IN_FLIGHT_SIZE"])
async def test_too_much_in_flight_is_refused_until_it_is_answered(
    pipeline: Pipeline, redis: ToyRedis, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"bongsu.brokers.redis.pipeline.{limit}", 1)
    first = call(pipeline, b"1")
    with pytest.raises(BrokerBusy):
        await call(pipeline, b"2")
    assert await redis.commands() == [b"1"]
    redis.answer(OK)
    await first
    second = call(pipeline, b"2")
    await redis.commands()
    redis.answer(OK)
    assert await second == b"OK"


async def test_an_answer_to_nothing_ends_the_connection(pipeline: Pipeline, redis: ToyRedis) -> None:
    """No later answer could be trusted to belong to its command."""
    redis.answer(OK)
    assert redis.aborted
    await redis.until(lambda: redis.connections == 2)
