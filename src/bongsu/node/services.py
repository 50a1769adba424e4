"""What all connections of a replica share, and who they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from bongsu.auth import TokenVerifier
from bongsu.metrics import Metrics
from bongsu.node.channels import ChannelRules, Channels
from bongsu.node.client import ClientOptions
from bongsu.node.handlers import Handlers
from bongsu.node.wheel import Wheel
from bongsu.protocol import errors
from bongsu.protocol.session import SessionOptions

OwnsUpload: TypeAlias = Callable[[str, str], Awaitable[bool]]
"""Whether the upload of that id is that user's."""

if TYPE_CHECKING:
    from bongsu.node.connection import Connection
    from bongsu.node.node import Node


class Services:
    """One object for every connection to hold, and the table of those that are connected."""

    def __init__(
        self,
        node: Node,
        channels: Channels,
        tokens: TokenVerifier,
        subscription_tokens: TokenVerifier,
        options: ClientOptions,
        handlers: Handlers,
        metrics: Metrics,
        *,
        channel_max_length: int = 255,
        anonymous: bool = False,
        owns_upload: OwnsUpload | None = None,
    ) -> None:
        """`anonymous` (development): clients need no token. `owns_upload` None: nobody owns any."""
        self.node = node
        self.channels = channels
        self.tokens = tokens
        self.subscription_tokens = subscription_tokens
        self.options = options
        self.handlers = handlers
        self.anonymous = anonymous
        self._owns_upload = owns_upload
        self.wheel = Wheel()
        self.session_options = SessionOptions(
            ping_interval=options.ping_interval,
            pong_timeout=options.pong_timeout,
            stale_close_delay=options.stale_close_delay,
            expired_close_delay=options.expired_close_delay,
            expired_sub_close_delay=options.expired_sub_close_delay,
            channel_limit=options.channel_limit,
            channel_max_length=channel_max_length,
        )
        self.session_options_without_ping = replace(self.session_options, ping_interval=0.0, pong_timeout=0.0)
        self.session_options_without_pong = replace(self.session_options, pong_timeout=0.0)
        self._metrics = metrics
        # Looked up once: it costs more than the counting.
        self._received = metrics.received.labels("client")
        self._accepted = cache(metrics.accepted.labels)
        self._of_user: dict[str, dict[Connection, None]] = {}
        self._by_key: dict[str, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Who is here

    def register(self, connection: Connection) -> None:
        """A transport has accepted a connection."""
        self.node.add(connection.client)
        self._accepted(connection.transport).inc()
        if connection.key:
            self._by_key[connection.key] = connection

    def admit_user(self, connection: Connection) -> bool:
        """Whether its user may have one more connection; then it has."""
        others = self._of_user.setdefault(connection.user, {})
        limit = self.options.user_connection_limit
        if limit and connection.user and len(others) >= limit:
            return False
        others[connection] = None
        return True

    def entered(self, connection: Connection) -> None:
        """Its connect command is answered."""
        personal = self.options.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and connection.user:
            for other in self.of_user(connection.user):
                if other is not connection:
                    other.close(errors.CONNECTION_LIMIT)

    def unregister(self, connection: Connection) -> None:
        self.node.remove(connection.client)
        self._by_key.pop(connection.key, None)
        others = self._of_user.get(connection.user)
        if others is not None:
            others.pop(connection, None)
            if not others:
                del self._of_user[connection.user]

    def of_user(self, user: str, *, client: str = "", session: str = "") -> list[Connection]:
        """The connections of `user` here, narrowed by client id and session."""
        return [
            one for one in self._of_user.get(user, ()) if client in ("", one.id) and session in ("", one.key)
        ]

    def by_key(self, key: str) -> Connection | None:
        """The emulated connection whose secret is `key`."""
        return self._by_key.get(key)

    def count_users(self) -> int:
        return len(self._of_user)

    async def may_hear_upload(self, channel: ChannelRules, user: str) -> bool:
        """Whether `channel` is about an upload of `user`. Raises `Problem` when that cannot be found out."""
        if channel.upload is None or self._owns_upload is None:
            return False
        return await self._owns_upload(channel.upload, user)

    # Tasks

    def own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, and end it with the replica at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        self.wheel.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Counts

    def count_received(self, commands: int) -> None:
        self._received.inc(commands)

    def count_disconnect(self, code: int) -> None:
        self._metrics.disconnects.labels(code).inc()

    def count_recovery(self, *, recovered: bool) -> None:
        self._metrics.recoveries.labels("true" if recovered else "false").inc()
