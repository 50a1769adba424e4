"""The roster, over a broker in memory whose answers can be held back and which can be away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from tests.contracts.test_brokers import DEADLINE, Listener

from bongsu.brokers import envelope
from bongsu.brokers.base import BrokerError, Departed, Event
from bongsu.brokers.memory import MemoryBroker
from bongsu.node import presence as presence_module
from bongsu.node.presence import Roster
from bongsu.protocol.messages import ClientInfo, Join, Leave


class LateBroker(MemoryBroker):
    """Does at once what it is asked, as a pipeline does in order, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.sweeps = True
        self._answers: list[tuple[asyncio.Future[bool], asyncio.Future[bool]]] | None = None

    def hold(self) -> None:
        self.asked.clear()
        self._answers = []

    def let(self) -> None:
        answers, self._answers = self._answers or [], None
        for answer, result in answers:
            error = result.exception()
            if error is None:
                answer.set_result(result.result())
            else:
                answer.set_exception(error)

    def enter(self, channel: str, info: ClientInfo, *, announced: bool = False) -> asyncio.Future[bool]:
        return self._late(super().enter(channel, info, announced=announced))

    def leave(self, channel: str, client: str) -> asyncio.Future[bool]:
        return self._late(super().leave(channel, client))

    async def sweep(self) -> AsyncIterator[list[Departed]]:
        if self.sweeps:
            async for page in super().sweep():
                yield page

    def _late(self, result: asyncio.Future[bool]) -> asyncio.Future[bool]:
        if self._answers is None:
            return result
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers.append((answer, result))
        self.asked.set()
        return answer


class World:
    """A roster, and what others hear in the channel "news", with who was present when they heard it."""

    def __init__(self) -> None:
        self.broker = LateBroker()
        self.roster = Roster(self.broker)
        self.heard = Listener()
        self.told: list[tuple[str, str]] = []
        self.broker.listen(self._hear)

    def _hear(self, batch: list[Event]) -> None:
        for _, payload in batch:
            message = envelope.decode(payload)
            assert isinstance(message, Join | Leave)
            self.told.append((type(message).__name__, message.info.client))
        self.heard(batch)

    async def until_told(self, *expected: tuple[str, str]) -> None:
        await self.heard.until(lambda _: len(self.told) >= len(expected))
        assert self.told == list(expected)

    def kinds(self, client: str) -> list[str]:
        """What was told of one client."""
        return [kind for kind, who in self.told if who == client]

    async def clients(self, channel: str = "news") -> list[str]:
        return sorted(await self.broker.presence(channel))

    async def settled(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.roster.settle()
        assert not self.roster.failed

    async def noticed_outage(self) -> None:
        """The roster has been refused something; what it wants then is kept for later."""
        self.roster.want("elsewhere", "mark", info("mark"))
        self.roster.drop("elsewhere", "mark")
        async with asyncio.timeout(DEADLINE):
            await self.roster.settle()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.broker.connect()
        stack.push_async_callback(world.broker.disconnect)
        await world.broker.want("news")
        await world.roster.start()
        stack.push_async_callback(world.roster.stop, within=1)
        yield world


def info(client: str, of_channel: bytes = b"") -> ClientInfo:
    return ClientInfo("anna", client, b"", of_channel)


async def test_who_is_wanted_is_present_and_who_is_dropped_is_not(world: World) -> None:
    world.roster.want("news", "one", info("one"))
    world.roster.want("sport", "one", info("one"))
    await world.settled()
    assert await world.broker.presence("news") == {"one": info("one")}
    world.roster.drop("news", "one")
    world.roster.drop("news", "never")
    await world.settled()
    assert (await world.clients("news"), await world.clients("sport")) == ([], ["one"])


async def test_only_what_is_announced_is_told_and_only_what_is_stored_is_listed(world: World) -> None:
    world.roster.want("news", "listed", info("listed"), stored=True, announced=False)
    world.roster.want("news", "told", info("told"), stored=False, announced=True)
    await world.until_told(("Join", "told"))
    await world.settled()
    assert await world.clients() == ["listed"]
    world.roster.drop("news", "listed")
    world.roster.drop("news", "told")
    await world.until_told(("Join", "told"), ("Leave", "told"))


async def test_changed_infos_replace_the_entry_and_are_no_second_join(world: World) -> None:
    world.roster.want("news", "one", info("one"), announced=True)
    await world.settled()
    world.roster.want("news", "one", info("one", b"2"), announced=True)
    await world.settled()
    assert await world.broker.presence("news") == {"one": info("one", b"2")}
    world.roster.want("news", "one", info("one", b"3"), announced=True)
    world.roster.drop("news", "one")  # before the broker was told of the third
    await world.until_told(("Join", "one"), ("Leave", "one"))
    left = envelope.decode(world.heard.events[-1][1])
    assert left == Leave(info("one", b"3"))


async def test_one_who_comes_back_before_the_leave_was_told_leaves_and_joins(world: World) -> None:
    world.roster.want("news", "one", info("one"), announced=True)
    await world.until_told(("Join", "one"))
    world.roster.drop("news", "one")
    world.roster.want("news", "one", info("one", b"2"), announced=True)
    await world.until_told(("Join", "one"), ("Leave", "one"), ("Join", "one"))
    await world.settled()
    assert await world.broker.presence("news") == {"one": info("one", b"2")}


async def test_however_it_flaps_joins_and_leaves_alternate_and_the_last_wish_holds(world: World) -> None:
    for number in range(300):
        world.roster.want("news", "stays", info("stays"), announced=True)
        world.roster.want("news", "goes", info("goes"), announced=True)
        if number % 3:
            await asyncio.sleep(0)
        world.roster.drop("news", "goes")
        if number < 299:
            world.roster.drop("news", "stays")
        if number % 5:
            await asyncio.sleep(0)
    await world.settled()
    assert await world.clients() == ["stays"]
    world.roster.want("news", "mark", info("mark"), announced=True)
    await world.heard.until(lambda _: ("Join", "mark") in world.told)
    for client, last in (("stays", "Join"), ("goes", "Leave")):
        kinds = [kind for kind, name in world.told if name == client]
        assert kinds == ["Join", "Leave"] * (len(kinds) // 2) + ["Join"] * (len(kinds) % 2)
        assert kinds[-1] == last


async def test_one_who_comes_and_goes_while_its_leave_is_under_way_is_forgotten_once(world: World) -> None:
    world.roster.want("news", "one", info("one"), announced=True)
    await world.settled()
    world.broker.hold()
    world.roster.drop("news", "one")
    async with asyncio.timeout(DEADLINE):
        await world.broker.asked.wait()
    world.roster.want("news", "one", info("one"), announced=True)
    world.roster.drop("news", "one")
    world.broker.let()
    await world.settled()
    world.roster.want("news", "one", info("one"), announced=True)
    await world.until_told(("Join", "one"), ("Leave", "one"), ("Join", "one"))
    await world.settled()
    assert await world.clients() == ["one"]


async def test_one_who_leaves_while_its_entry_is_under_way_is_gone(world: World) -> None:
    world.broker.hold()
    world.roster.want("news", "one", info("one"), announced=True)
    async with asyncio.timeout(DEADLINE):
        await world.broker.asked.wait()
    world.roster.drop("news", "one")
    world.broker.let()
    await world.until_told(("Join", "one"), ("Leave", "one"))
    await world.settled()
    assert await world.clients() == []


async def test_what_was_wanted_while_the_broker_was_away_becomes_true_afterwards(world: World) -> None:
    for client in ("stays", "goes"):
        world.roster.want("news", client, info(client), announced=True)
    await world.until_told(("Join", "stays"), ("Join", "goes"))
    await world.broker.disconnect()
    world.roster.drop("news", "goes")
    world.roster.want("news", "brief", info("brief"), announced=True)
    world.roster.want("news", "comes", info("comes"), announced=True)
    await world.noticed_outage()
    world.roster.drop("news", "brief")
    await world.broker.connect()
    await world.heard.until(lambda _: len(world.told) >= 4)
    world.roster.want("news", "mark", info("mark"), announced=True)
    await world.heard.until(lambda _: ("Join", "mark") in world.told)
    assert sorted(world.told[2:-1]) == [("Join", "comes"), ("Leave", "goes")]
    assert await world.clients() == ["comes", "mark", "stays"]


async def test_nobody_waits_for_a_broker_that_is_away(world: World) -> None:
    await world.broker.disconnect()
    await world.noticed_outage()
    world.roster.want("news", "one", info("one"))
    await world.settled()
    with pytest.raises(BrokerError):
        await world.clients()


async def test_a_broker_that_took_this_replica_for_dead_is_told_everything_anew(world: World) -> None:
    world.roster.want("news", "one", info("one"), announced=True)
    await world.until_told(("Join", "one"))
    world.broker.renounce()
    # Whether others were told that it left depends on who was first, the sweep or the roster.
    async with asyncio.timeout(DEADLINE):
        while await world.clients() != ["one"]:  # noqa: ASYNC110  # entries have no event
            await asyncio.sleep(0)
    await world.settled()
    await world.heard.until(lambda _: world.told[-1] == ("Join", "one"))
    assert [kind for kind, _ in world.told] in (["Join"], ["Join", "Leave", "Join"])


@pytest.mark.parametrize("swept", [False, True], ids=["before its sweep", "after it"])
async def test_who_was_taken_for_dead_joins_again_only_if_others_were_told_that_it_left(
    world: World, swept: bool
) -> None:
    """Otherwise they would be told twice that it came, or never that it went."""
    for client in ("stays", "goes"):
        world.roster.want("news", client, info(client), announced=True)
    await world.until_told(("Join", "stays"), ("Join", "goes"))
    world.broker.sweeps = False
    world.broker.renounce()
    if swept:
        async for page in MemoryBroker.sweep(world.broker):
            for departed in page:
                await world.broker.send("news", envelope.encode(Leave(departed.info)))
    world.roster.drop("news", "goes")
    async with asyncio.timeout(DEADLINE):
        while await world.clients() != ["stays"]:  # noqa: ASYNC110  # entries have no event
            await asyncio.sleep(0)
    await world.settled()
    await world.heard.until(lambda _: ("Leave", "goes") in world.told)
    expected = ["Join", "Leave", "Join"] if swept else ["Join"]
    await world.heard.until(lambda _: world.kinds("stays") == expected)
    assert world.kinds("goes") == ["Join", "Leave"]


async def test_too_many_who_left_during_an_outage_are_swept_instead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "MAX_LEAVING", 10)
    clients = [f"{number:02}" for number in range(20)]
    for client in [*clients, "stays"]:
        world.roster.want("news", client, info(client), announced=True)
    await world.heard.until(lambda _: len(world.told) == 21)
    before = world.broker.standing
    await world.broker.disconnect()
    for client in clients:
        world.roster.drop("news", client)
    async with asyncio.timeout(DEADLINE):
        while world.broker.standing == before:  # noqa: ASYNC110  # a standing has no event
            await asyncio.sleep(0)
    await world.broker.connect()
    await world.heard.until(lambda _: {("Leave", client) for client in clients} <= set(world.told))
    async with asyncio.timeout(DEADLINE):
        while await world.clients() != ["stays"]:  # noqa: ASYNC110  # entries have no event
            await asyncio.sleep(0)
    await world.heard.until(lambda _: world.kinds("stays") in (["Join"], ["Join", "Leave", "Join"]))
    assert sorted(name for kind, name in world.told if kind == "Leave" and name != "stays") == clients
    assert await world.clients() == ["stays"]


async def test_a_stop_takes_everything_back(world: World) -> None:
    for client in ("one", "two"):
        world.roster.want("news", client, info(client), announced=True)
    await world.until_told(("Join", "one"), ("Join", "two"))
    await world.roster.stop(within=DEADLINE)
    await world.until_told(("Join", "one"), ("Join", "two"), ("Leave", "one"), ("Leave", "two"))
    assert await world.clients() == []


async def test_a_stop_does_not_wait_for_ever_for_a_broker_that_is_away(world: World) -> None:
    world.roster.want("news", "one", info("one"))
    await world.settled()
    await world.broker.disconnect()
    async with asyncio.timeout(DEADLINE):
        await world.roster.stop(within=0.05)
    assert not world.roster.failed
