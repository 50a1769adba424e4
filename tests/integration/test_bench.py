"""The load generator of `make bench` is only worth something if it sees what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench.build import HERE, build_load, compile_c
from bench.clock import Peak, Usage, family
from bench.generator import Generator, LoadError
from bench.site import Site
from bench.uploads import bongsu_ways
from deploy.child import free_port
from tests.servers import RunningServer
from websockets.asyncio.server import ServerConnection, serve

Mischief = Callable[[int, str], list[str]]
"""What the second subscriber is sent in place of the nth text; the others are treated well."""

GOODBYE = "goodbye"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench")
    build_load(directory)
    compile_c(directory / "sendloop", HERE / "peers" / "sendloop.c")
    return directory


@asynccontextmanager
async def broadcaster(mischief: Mischief) -> AsyncIterator[int]:
    """A server that sends every text to everybody, and to the second client what `mischief` says."""
    clients: list[ServerConnection] = []
    count = 0

    async def take(client: ServerConnection) -> None:
        nonlocal count
        clients.append(client)
        async for text in client:
            assert isinstance(text, str)
            count += 1
            for number, each in enumerate(list(clients)):
                for sent in mischief(count, text) if number == 1 else [text]:
                    if sent == GOODBYE:
                        await each.close(4001, "enough")
                        break
                    # In two fragments, so that marks are cut in the middle too.
                    await each.send([sent[: count % 30], sent[count % 30 :]])

    async with serve(take, "127.0.0.1", 0, compression=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def account(programs: Path, mischief: Mischief) -> dict[str, Any]:
    """What the generator says of 20 messages to three subscribers of such a server."""
    async with broadcaster(mischief) as port:
        generator = Generator(
            programs / "load", 0, dialect="plain", ports=[port], path="/", channel="c%u", patience=1
        )
        with generator:
            await asyncio.to_thread(generator.open, 3, at_once=1)
            return await asyncio.to_thread(generator.rate, 100, 0.2)


WRONGS = ("lost", "skipped", "reordered", "duplicated", "foreign")


def wrongs(answer: dict[str, Any]) -> dict[str, int]:
    return {wrong: answer[wrong] for wrong in WRONGS if answer[wrong]}


async def test_a_server_that_does_its_work_has_nothing_counted_against_it(programs: Path) -> None:
    answer = await account(programs, lambda number, text: [text])
    assert (answer["published"], answer["delivered"], wrongs(answer)) == (20, 60, {})


async def test_messages_that_never_come_are_lost_in_the_middle_and_at_the_end(programs: Path) -> None:
    answer = await account(programs, lambda number, text: [] if number in {5, 6, 20} else [text])
    assert wrongs(answer) == {"lost": 3, "skipped": 2}  # the last one is followed by none that skips it


async def test_messages_that_come_twice_are_duplicated(programs: Path) -> None:
    answer = await account(programs, lambda number, text: [text] * (1 + (number % 10 == 0)))
    assert wrongs(answer) == {"duplicated": 2}


async def test_messages_that_change_places_are_reordered_and_not_lost(programs: Path) -> None:
    kept: list[str] = []

    def swap(number: int, text: str) -> list[str]:
        if number == 7:
            kept.append(text)
            return []
        return [text, kept.pop()] if number == 8 else [text]

    assert wrongs(await account(programs, swap)) == {"skipped": 1, "reordered": 1}


async def test_a_duplicate_does_not_stand_in_for_a_lost_message(programs: Path) -> None:
    answer = await account(programs, lambda number, text: {5: [], 6: [text, text]}.get(number, [text]))
    assert wrongs(answer) == {"lost": 1, "skipped": 1, "duplicated": 1}


async def test_a_connection_that_ends_is_told_with_its_code(programs: Path) -> None:
    answer = await account(programs, lambda number, text: [GOODBYE])
    assert (answer["ended"], answer["complaint"]) == (1, "connection ended: closed 4001 enough")


async def test_publishers_take_turns_with_every_message_whatever_the_number_of_channels(
    programs: Path,
) -> None:
    """One that published to all of 20 channels before the next one's turn had 20 commands to be answered one
    after another: the server was measured with three messages in flight instead of 32.
    """
    texts: list[int] = []

    async def take(client: ServerConnection) -> None:
        mine = len(texts)
        texts.append(0)
        async for _ in client:
            texts[mine] += 1

    async with serve(take, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        options: dict[str, Any] = {"dialect": "plain", "path": "/", "channel": "c%u", "patience": 1}
        with Generator(programs / "load", 0, ports=[port], channels=20, publishers=2, **options) as generator:
            await asyncio.to_thread(generator.open, 2)
            answer = await asyncio.to_thread(generator.rate, 100, 0.2)
    assert answer["published"] == 20
    assert texts == [10, 10]


def test_a_server_that_refuses_is_told_with_its_answer(programs: Path, tmp_path: Path) -> None:
    with Site(tmp_path, programs) as site:
        port = site.redis.port  # listens, but speaks no HTTP
        with (
            Generator(programs / "load", 0, dialect="plain", ports=[port], path="/", channel="c%u") as load,
            pytest.raises(LoadError, match="0 of 1 connected: connection ended"),
        ):
            load.open(1)


def test_the_loop_of_send_carries_every_message_and_its_cpu_time_is_seen(
    programs: Path, tmp_path: Path
) -> None:
    with Site(tmp_path, programs) as site:
        port = free_port()
        server = site.serve("sendloop", [str(programs / "sendloop"), str(port)], port)
        with Generator(
            programs / "load", 1, dialect="plain", ports=[port], path="/", channel="c%u", publishers=4
        ) as load:
            load.open(50)
            usage = Usage(family(server.child.pid))
            answer = load.window(8, 0.3)
            spent = usage.spent()
    assert (wrongs(answer), answer["complaint"]) == ({}, "")
    assert answer["delivered"] == 50 * answer["published"]
    assert 0 < spent < 2 * answer["seconds"]


def test_an_upload_is_sent_whole_in_each_way_and_awaited_until_it_is_stored(tmp_path: Path) -> None:
    size = 3 * 2**20 + 5
    server = RunningServer(tmp_path, {}, dev=True)
    server.start()
    try:
        for way in bongsu_ways():
            peak = Peak([server.pid])
            location = way.send(server.port, size)
            way.await_stored(server.port, location)
            record = httpx.get(f"{server.url}/uploads/{location.rpartition('/')[2]}").json()
            assert (record["state"], record["size"]) == ("stored", size)
            assert 0 <= peak.grown() < 64 * 2**20
    finally:
        server.stop()


def test_an_upload_that_is_refused_is_told_with_the_answer(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, {"BONGSU_UPLOAD__MAX_SIZE": "1000"}, dev=True)
    server.start()
    try:
        for way in bongsu_ways():
            with pytest.raises(LoadError, match="413"):
                way.send(server.port, 2000)
    finally:
        server.stop()
