"""One RESP connection, read by hiredis straight from the socket.

redis-py connects (URL, authentication, TLS); then its transport is taken over. Reading through redis-py's own
pub/sub costs about 14 µs a message, this 0.4 (docs/decisions/redis-reading.md).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import hiredis
import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CONNECT_TIMEOUT = 1.0
"""Seconds for the TCP connection, and again for the greeting (AUTH, SELECT)."""

MAX_RECONNECT_PAUSE = 1.0
"""Upper bound of the pause between two attempts, in seconds: messages flow again soon after Redis is back."""

CONNECT_ERRORS = (OSError, RedisError, TimeoutError)

_INCOMPLETE = object()

log = structlog.get_logger("bongsu.brokers.redis")


class Link(asyncio.Protocol):
    """The connection after the take-over.

    `on_replies` gets everything that one socket read completed, in order; error replies are
    `hiredis.ReplyError` objects in the list.
    """

    def __init__(self, on_replies: Callable[[list[Any]], None]) -> None:
        self._on_replies = on_replies
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def adopt(self, connection: AbstractConnection) -> None:
        """Move the transport of a connected redis-py connection here.

        `_writer` is private to redis-py: this is the only place that touches it, and its test runs on every
        redis-py that we support. The connection object is kept, since its collection would close the socket.
        """
        writer = cast("Any", connection)._writer
        if writer is None or writer.transport.is_closing():  # then nobody would tell us that it is lost
            raise ConnectionError("redis-py has no connection to hand over")
        self._connection = connection
        self._transport = writer.transport
        writer.transport.set_protocol(self)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection; `closed` is done soon after."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        replies = []
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                replies.append(reply)
        except (hiredis.ProtocolError, TypeError, MemoryError) as error:
            # Bytes that are not RESP: nothing after them can be trusted. The others are what hiredis makes of
            # a map whose keys are maps, and of a list said to have a billion items.
            log.error("redis sent bytes that are not RESP", error=str(error))
            self.abort()
            return
        if replies:
            self._on_replies(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._connection is not None:
            # Else redis-py warns about, and closes again, a connection that is already gone.
            cast("Any", self._connection)._writer = None
            cast("Any", self._connection)._reader = None
            self._connection = None
        if not self.closed.done():
            self.closed.set_result(None)


Open: TypeAlias = Callable[[Link], Awaitable[None]]
"""Connects and hands the connection to the given link. Raises `CONNECT_ERRORS`."""


Greet: TypeAlias = Callable[[AbstractConnection], Awaitable[None]]
"""Asks what must be known before a connection is used. Raises `CONNECT_ERRORS` when it must not be."""


def opener(url: str, *, greet: Greet | None = None) -> Open:
    """An `Open` for `url` (redis://, rediss://, unix://). Raises ValueError when redis-py cannot read it."""
    pool = ConnectionPool.from_url(
        url, protocol=2, socket_connect_timeout=CONNECT_TIMEOUT, retry=Retry(NoBackoff(), 0)
    )

    async def open_link(link: Link) -> None:
        connection = cast("AbstractConnection", cast("Any", pool).make_connection())
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await cast("Any", connection).connect()
                if greet is not None:
                    await greet(connection)
            link.adopt(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    return open_link


class Supervisor:
    """Keeps one link open: connects, waits for its loss, pauses with jitter, connects again.

    `up` is called with each new link, `down` after its loss; neither may raise. `role` names it in the log.
    """

    def __init__(
        self,
        role: str,
        open_link: Open,
        *,
        on_replies: Callable[[list[Any]], None],
        up: Callable[[Link], None],
        down: Callable[[], None],
    ) -> None:
        self._role = role
        self._open = open_link
        self._on_replies = on_replies
        self._up = up
        self._down = down
        self._task: asyncio.Task[None] | None = None
        self._first_attempt: asyncio.Future[None] | None = None
        self.reconnects = 0
        self.is_failing = False
        """Whether the last attempt has failed; also set by whoever gives a link up. A new link ends it."""

    async def start(self) -> None:
        """Returns after the first attempt, whatever came of it."""
        self._first_attempt = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"redis {self._role}")
        await asyncio.wait([self._task, self._first_attempt], return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            link = Link(self._on_replies)
            try:
                await self._open(link)
            except CONNECT_ERRORS as error:
                self.is_failing = True
                failures += 1
                if failures == 1 or failures % 30 == 0:
                    log.warning(
                        "redis is not reachable", role=self._role, error=str(error), attempts=failures
                    )
            except Exception:
                # redis-py, cut off at an odd moment. Without this task the replica would be deaf for good.
                self.is_failing = True
                failures += 1
                log.exception("connecting to redis failed in an unexpected way", role=self._role)
            else:
                self.is_failing = False
                since = loop.time()
                log.info("redis is connected", role=self._role, after_attempts=failures)
                try:
                    self._up(link)
                    self._attempted()
                    await link.closed
                finally:
                    link.abort()
                    self._down()
                self.reconnects += 1
                # One that is lost as soon as it is made (a proxy without a server) must not make us spin.
                failures = 1 if loop.time() - since < MAX_RECONNECT_PAUSE else 0
                log.warning("redis connection lost", role=self._role)
            self._attempted()
            if failures:
                await asyncio.sleep(
                    random.uniform(0.02, min(MAX_RECONNECT_PAUSE, 0.05 * 2 ** min(failures, 10)))
                )

    def _attempted(self) -> None:
        if self._first_attempt is not None and not self._first_attempt.done():
            self._first_attempt.set_result(None)
