"""One run of chaos: a real cluster, publishers and clients, faults from a seed, and a comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx
from deploy.cluster import Cluster
from tests.chaos.clients import Client, Publisher
from tests.chaos.faults import Faults
from tests.chaos.ledger import Ledger

CHANNELS: Final = ("chaos:1", "chaos:2", "chaos:3", "chaos:4")

SETTINGS: Final = {
    "BONGSU_CLIENT__RECOVERY_MAX_PUBLICATION_LIMIT": "100000",
    **{
        f"BONGSU_CHANNELS__NAMESPACES__chaos__{name}": value
        for name, value in {
            # Longer than all that a run publishes: whoever isn't recovered then has been wronged.
            "HISTORY_SIZE": "100000",
            "HISTORY_TTL": "1h",
            "FORCE_RECOVERY": "true",
            "FORCE_POSITIONING": "true",
            "ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
            "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
        }.items()
    },
}

SETTLING: Final = 60.0
"""Seconds for everybody to have the last word after the last fault."""


@dataclass(frozen=True, slots=True)
class Load:
    clients: int = 24
    publishers: int = 3
    pause: float = 0.01
    """Seconds between a publisher's answers."""
    faults: int = 8
    between: float = 2.0
    """Seconds between two faults."""


async def chaos(cluster: Cluster, seed: int, load: Load, say: Callable[[str], None]) -> Ledger:
    """Run it against a started cluster; the ledger has what was seen and every promise that was broken."""
    ledger = Ledger()
    publishers = [
        Publisher(f"publisher {n}", cluster.url, cluster.api_key, CHANNELS, ledger)
        for n in range(load.publishers)
    ]
    clients = [
        Client(f"client {n}", cluster.ws_url, [CHANNELS[n % 4], CHANNELS[(n + 1) % 4]], ledger, seed + n)
        for n in range(load.clients)
    ]
    faults = Faults(cluster, clients, seed)
    async with asyncio.TaskGroup() as here:
        reading = [here.create_task(client.run()) for client in clients]
        writing = [here.create_task(publisher.run(pause=load.pause)) for publisher in publishers]
        for fault in faults.series(load.faults):
            await asyncio.sleep(load.between)
            say(fault)
            ledger.counts[fault] += 1
            await faults.strike(fault)
        await asyncio.sleep(load.between)
        for task in writing:
            task.cancel()
        say("settling")
        try:
            async with asyncio.timeout(SETTLING):
                await _all_have_the_last_word(publishers[0], clients)
        except TimeoutError:
            for client in clients:
                ledger.accuse(f"somebody did not get the last word: {client}")
        for task in reading:
            task.cancel()
    return ledger


async def _all_have_the_last_word(publisher: Publisher, clients: list[Client]) -> None:
    """Deafness would be no gap to anybody: what is published when all is well again has to arrive.

    Twice: who was stalled may be told only after the first one that it could not be recovered.
    """
    async with httpx.AsyncClient(timeout=10) as http:
        for channel in CHANNELS * 2:
            while (last := await publisher.publish(http, channel)) is None:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.2)
            for client in clients:
                if channel in client.channels:
                    await client.is_at(channel, last)
