"""What waits at the edge of an outage: order, bounds, and where it goes in the end."""

from __future__ import annotations

import asyncio

import pytest

from bongsu.brokers.base import Appended, BrokerBusy, BrokerUnavailable, OutcomeUnknown
from bongsu.node import unsent
from bongsu.node.unsent import Unsent

DEADLINE = 10.0


class Edge:
    """A broker that takes, refuses or keeps silent, and all that came of it, in order."""

    def __init__(self) -> None:
        self.refuses: Exception | None = None
        self.is_away = False
        self.sent: list[bytes] = []
        self.here: list[bytes] = []
        self.silent: list[asyncio.Future[None]] | None = None
        self.unsent = Unsent(send=self._send, is_away=lambda: self.is_away, give_up=self._give_up)

    def publish(self, *payloads: bytes) -> list[asyncio.Future[Appended]]:
        futures = []
        for payload in payloads:
            futures.append(asyncio.get_running_loop().create_future())
            self.unsent.publish("news", payload, futures[-1])
        return futures

    def _send(self, _: str, payload: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.silent is not None:
            self.silent.append(future)
        elif self.refuses is not None:
            future.set_exception(self.refuses)
        else:
            self.sent.append(payload)
            future.set_result(None)
        return future

    def _give_up(
        self, _: str, payload: bytes, published: asyncio.Future[Appended], error: BrokerUnavailable
    ) -> None:
        self.here.append(payload)
        published.set_exception(error)


@pytest.fixture
def edge() -> Edge:
    return Edge()


async def ended(futures: list[asyncio.Future[Appended]]) -> list[object]:
    async with asyncio.timeout(DEADLINE):
        return await asyncio.gather(*futures, return_exceptions=True)


async def test_what_is_refused_goes_out_in_order_when_it_is_taken_again(edge: Edge) -> None:
    edge.refuses = BrokerUnavailable("down")
    first = edge.publish(b"1", b"2")
    await asyncio.sleep(0)
    later = edge.publish(b"3")
    assert len(edge.unsent) == 3
    edge.refuses = None
    later += edge.publish(b"4")
    assert await ended(first + later) == [Appended(0, "")] * 4
    assert edge.sent == [b"1", b"2", b"3", b"4"]


async def test_what_was_on_its_way_comes_before_what_was_sent_after_the_break(edge: Edge) -> None:
    on_its_way: list[asyncio.Future[None]] = []
    edge.silent = on_its_way
    first = edge.publish(b"1", b"2")
    edge.silent, edge.refuses = None, BrokerUnavailable("down")
    for future in on_its_way:
        future.set_exception(edge.refuses)
    later = edge.publish(b"3")
    edge.is_away = True
    await ended(first + later)
    assert edge.here == [b"1", b"2", b"3"]


async def test_what_waits_is_given_up_in_order_when_the_broker_is_away_as_a_whole(edge: Edge) -> None:
    edge.refuses = BrokerUnavailable("down")
    first = edge.publish(b"1")
    await asyncio.sleep(0)
    edge.is_away = True
    await ended(first + edge.publish(b"2"))
    assert (edge.here, edge.sent) == ([b"1", b"2"], [])


async def test_nothing_waits_for_ever(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "PATIENCE", 0.05)
    edge.refuses = BrokerUnavailable("down")
    await ended(edge.publish(b"1", b"2"))
    assert (edge.here, len(edge.unsent)) == ([b"1", b"2"], 0)


async def test_more_than_can_wait_is_refused_and_overtakes_nobody(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsent, "MAX_WAITING", 1)
    edge.refuses = BrokerUnavailable("down")
    first = edge.publish(b"1")
    await asyncio.sleep(0)
    edge.refuses = None
    [error] = await ended(edge.publish(b"2"))
    assert isinstance(error, BrokerBusy)
    await ended(first)
    assert edge.sent == [b"1"]


@pytest.mark.parametrize("error", [BrokerBusy("much"), OutcomeUnknown("lost")])
async def test_what_time_does_not_mend_is_told_at_once(edge: Edge, error: Exception) -> None:
    edge.refuses = error
    assert await ended(edge.publish(b"1")) == [error]
    assert (len(edge.unsent), edge.here) == (0, [])


async def test_at_the_end_all_that_waits_is_given_up(edge: Edge) -> None:
    edge.refuses = BrokerUnavailable("down")
    futures = edge.publish(b"1", b"2")
    await asyncio.sleep(0)
    edge.unsent.stop()
    await ended(futures)
    assert edge.here == [b"1", b"2"]
