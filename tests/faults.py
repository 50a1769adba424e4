"""A TCP proxy that breaks connections on purpose: what networks do, at the byte where a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeVar

__all__ = ["Fault", "FaultProxy"]

T = TypeVar("T")
Kind = Literal["cut", "reset", "stall", "half-close"]

_BLOCK: Final = 64 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # closing sends a RST then, and no FIN


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection after `after` bytes in one direction (`up`: client to server).

    `cut`: both ends are closed. `reset`: both get a RST. `stall`: nothing moves any more in either
    direction, and nobody is told. `half-close`: this direction ends, the other one goes on.
    """

    kind: Kind
    after: int
    direction: Literal["up", "down"] = "up"


class FaultProxy:
    """Listens on a port of 127.0.0.1 and passes on to the port `target`, in a thread of its own.

    A connection is whole unless a fault waits for it: each new one takes the first of those that
    `break_next` was given. `happened` counts the faults that did, `carried` the bytes in both directions.
    """

    def __init__(self, target: int) -> None:
        self.happened = 0
        self.carried = 0
        self._target = target
        self._faults: deque[Fault] = deque()
        self._open: set[_Connection] = set()
        self._away: Kind | None = None
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._accepting: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy")

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    def break_next(self, *faults: Fault) -> None:
        """Have the next connections meet these, one each."""

        async def add() -> None:
            self._faults.extend(faults)

        self._run(add())

    def break_open(self, kind: Literal["cut", "reset", "stall"]) -> None:
        """Have it happen now, to every connection that is open."""
        self._run(self._break_open(kind))

    @contextlib.contextmanager
    def away(self, kind: Literal["reset", "stall"] = "reset") -> Iterator[None]:
        """Have it happen to what is open, and to whoever connects until the end of the block."""

        async def set_away(now: Literal["reset", "stall"] | None) -> None:
            self._away = now
            if now is not None:
                await self._break_open(now)

        self._run(set_away(kind))
        try:
            yield
        finally:
            self._run(set_away(None))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    # In the thread

    async def _start(self) -> None:
        self._accepting = self._loop.create_task(self._accept())

    async def _stop(self) -> None:
        assert self._accepting is not None
        ending = [self._accepting, *(connection.task for connection in self._open)]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            fault = self._faults.popleft() if self._faults else None
            if self._away is not None:
                fault = Fault(self._away, after=0)
            connection = _Connection(client, fault)
            self._open.add(connection)
            connection.task = self._loop.create_task(self._carry(connection))

    async def _break_open(self, kind: Kind) -> None:
        broken = list(self._open)
        for connection in broken:
            connection.meet(kind)
            if kind != "stall":
                connection.task.cancel()
        if kind != "stall":
            await asyncio.gather(*(connection.task for connection in broken), return_exceptions=True)

    async def _carry(self, connection: _Connection) -> None:
        client, server, fault = connection.client, connection.server, connection.fault
        up = fault if fault is not None and fault.direction == "up" else None
        down = fault if fault is not None and fault.direction == "down" else None
        try:
            if up is not None and up.after == 0:
                await self._happen(connection, up)
            await self._loop.sock_connect(server, ("127.0.0.1", self._target))
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pump(connection, client, server, up))
                directions.create_task(self._pump(connection, server, client, down))
        except* (OSError, _Broken):
            pass  # one end is gone, so the other one goes too: that is what a network does
        finally:
            client.close()
            server.close()
            self._open.discard(connection)

    async def _pump(
        self, connection: _Connection, source: socket.socket, sink: socket.socket, fault: Fault | None
    ) -> None:
        left = fault.after if fault is not None else None
        while data := await self._loop.sock_recv(source, _BLOCK if left is None else min(_BLOCK, left)):
            if connection.stalled:
                await asyncio.Event().wait()
            self.carried += len(data)
            await self._loop.sock_sendall(sink, data)
            if left is not None:
                left -= len(data)
                if left == 0:
                    assert fault is not None
                    await self._happen(connection, fault)
                    break
        sink.shutdown(socket.SHUT_WR)

    async def _happen(self, connection: _Connection, fault: Fault) -> None:
        """Returns for a half-close only."""
        self.happened += 1
        connection.meet(fault.kind)
        if fault.kind == "stall":
            await asyncio.Event().wait()
        if fault.kind != "half-close":
            raise _Broken


class _Broken(Exception):
    """A fault has ended the connection."""


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    fault: Fault | None
    server: socket.socket = field(default_factory=socket.socket)
    stalled: bool = False
    task: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.server.setblocking(False)

    def meet(self, kind: Kind) -> None:
        if kind == "stall":
            self.stalled = True
        if kind == "reset":
            for end in (self.client, self.server):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
