"""The websockets library's `broadcast`, on uvloop. Usage: python -m bench.peers.websockets_server PORT"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

clients: set[ServerConnection] = set()


async def take(client: ServerConnection) -> None:
    clients.add(client)
    try:
        async for message in client:
            broadcast(clients, message)
    finally:
        clients.discard(client)


async def main(port: int) -> None:
    async with serve(take, "127.0.0.1", port, compression=None):
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
