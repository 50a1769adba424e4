"""The network between the clients and the deployment, as a TCP relay that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Line:
    """A relay on a port of its own to `target`, such as http://127.0.0.1:8080."""

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self._host = address.hostname or ""
        self._port = address.port
        self._whole = True
        self._open: set[asyncio.StreamWriter] = set()
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, target: str) -> AsyncIterator[Line]:
        """A line for the length of the block."""
        line = cls(target)
        async with asyncio.TaskGroup() as relaying:

            def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                relaying.create_task(line._relay(reader, writer))

            server = await asyncio.start_server(on_client, "127.0.0.1", 0)
            line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield line
            finally:
                server.close()
                line.cut()

    def cut(self) -> None:
        """End every connection at once, and new ones until `mend`."""
        self._whole = False
        for writer in self._open:
            writer.transport.abort()

    def mend(self) -> None:
        self._whole = True

    async def _relay(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        if not self._whole:
            back.transport.abort()
            return
        far, forth = await asyncio.open_connection(self._host, self._port)
        ends = {back, forth}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(_carry(near, forth, ends))
                both_ways.create_task(_carry(far, back, ends))
        finally:
            self._open -= ends


async def _carry(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, ends: set[asyncio.StreamWriter]
) -> None:
    """Until either side has ended, and then the other one ends too."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    for writer in ends:
        writer.close()
