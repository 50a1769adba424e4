"""What a new command connection asks before it is used: which Redis this is, and whether it takes writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ReadOnlyError, ResponseError

log = structlog.get_logger("bongsu.brokers.redis")


class Greeter:
    """Remembers, from one connection to the next, whom we talked to."""

    def __init__(self, on_other: Callable[[], None]) -> None:
        """`on_other` is called when it is another Redis than before, or one that has been started again."""
        self._on_other = on_other
        self.incarnation = b""
        """run_id and master_replid of the Redis; other ones mean that it may have forgotten something."""
        self._run_id = b""
        self._client_id = 0

    async def greet(self, connection: AbstractConnection) -> None:
        """Raises RedisError; `ReadOnlyError` for a replica.

        A replica would take PUBLISH without complaint, and only its own subscribers would hear it.
        """
        server, replication, client_id = await _ask(
            connection, ("INFO", "server"), ("INFO", "replication"), ("CLIENT", "ID")
        )
        run_id, replid = _field("run_id", server), _field("master_replid", replication)
        if _field("role", replication) != b"master":
            raise ReadOnlyError("this redis is a replica")
        if self._client_id and run_id == self._run_id:
            await self._kill_predecessor(connection)
        other = bool(self.incarnation) and self.incarnation != run_id + replid
        self.incarnation = run_id + replid
        self._run_id, self._client_id = run_id, int(client_id)
        if other:
            self._on_other()

    async def _kill_predecessor(self, connection: AbstractConnection) -> None:
        """A connection that we gave up may have publishes in Redis's socket still, unread. Executed after
        those of this connection, they would turn up behind their successors.
        """
        try:
            await _ask(connection, ("CLIENT", "KILL", "ID", str(self._client_id)))
        except ResponseError as error:
            log.warning("redis does not let us end our own old connection", error=str(error))


class Reader:
    """Which connection of Redis the reading one is, for the other to ask about."""

    def __init__(self) -> None:
        self._client_id = 0

    async def greet(self, connection: AbstractConnection) -> None:
        """Raises RedisError."""
        (client_id,) = await _ask(connection, ("CLIENT", "ID"))
        self._client_id = int(client_id)

    @property
    def question(self) -> tuple[bytes, ...]:
        """The command that tells about it."""
        return b"CLIENT", b"LIST", b"ID", b"%d" % self._client_id

    @staticmethod
    def subscriptions(answer: Any) -> int:
        """How many Redis counts; none of a connection that is gone."""
        match = re.search(rb" sub=(\d+)", answer) if isinstance(answer, bytes) else None
        return int(match[1]) if match is not None else 0


async def _ask(connection: AbstractConnection, *commands: tuple[str, ...]) -> list[Any]:
    untyped = cast("Any", connection)
    await untyped.send_packed_command(untyped.pack_commands(commands))
    return [await untyped.read_response() for _ in commands]


def _field(name: str, info: Any) -> bytes:
    match = re.search(rb"^%s:(\w+)" % name.encode(), info, re.MULTILINE) if isinstance(info, bytes) else None
    if match is None:
        raise ResponseError(f"INFO without {name}")
    return match[1]
