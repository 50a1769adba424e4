"""What this replica does with its own connections when the server API, here or elsewhere, asks for it.

Source: the Centrifuge client protocol, §18.5, §18.6, §20 "Nodes and control plane".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from bongsu._version import __version__
from bongsu.auth import ChannelOverride
from bongsu.node.connection import Connection
from bongsu.node.control import Call, Disconnect, Refresh, Subscribe, Unsubscribe
from bongsu.node.services import Services
from bongsu.protocol import api, errors
from bongsu.protocol.api import NodeInfo
from bongsu.protocol.errors import UNSUBSCRIBE_SERVER, Error

PATIENCE: Final = 10.0
"""Seconds a connection has for a subscription that the server wants."""


class LocalTarget:
    """The `ControlTarget` of one replica."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def subscribe(self, call: Subscribe) -> asyncio.Future[Error | None]:
        """Done when every connection meant is subscribed, or none was; an error when one could not be."""
        outcomes = [self._subscribe(connection, call) for connection in self._meant(call)]
        result: asyncio.Future[Error | None] = asyncio.get_running_loop().create_future()

        def done(all_of_them: asyncio.Future[list[Error | None]]) -> None:
            if not result.done():
                result.set_result(next(filter(None, all_of_them.result()), None))

        asyncio.gather(*outcomes).add_done_callback(done)
        return result

    def _subscribe(self, connection: Connection, call: Subscribe) -> asyncio.Future[Error | None]:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Error | None] = loop.create_future()

        def settle(error: Error | None) -> None:
            timer.cancel()
            if not outcome.done():
                outcome.set_result(error)

        # One that ends before its turn comes will not be subscribed, and needs not be.
        timer = loop.call_later(PATIENCE, settle, None)

        async def work() -> None:
            error: Error | None = errors.ERROR_INTERNAL
            try:
                error = await connection.subscriptions.subscribe_by_server(
                    call.channel,
                    info=call.info,
                    data=call.data,
                    expire_at=float(call.expire_at) or None,
                    override=_override(call.override),
                    since=call.recover_since,
                )
            finally:
                settle(error)

        def begin() -> Coroutine[Any, Any, None]:
            return work()

        if connection.is_over():
            settle(None)
        else:
            connection.do(begin)
        return outcome

    def unsubscribe(self, call: Unsubscribe) -> None:
        for connection in self._meant(call):
            connection.do(partial(_unsubscribe, connection, call.channel))

    def disconnect(self, call: Disconnect) -> None:
        for connection in self._meant(call):
            if connection.id not in call.whitelist:
                connection.close(errors.Disconnect(call.code, call.reason))

    def refresh(self, call: Refresh) -> None:
        for connection in self._meant(call):
            connection.do(
                partial(
                    connection.refresh,
                    expired=call.expired,
                    expire_at=float(call.expire_at),
                    info=call.info,
                )
            )

    def channel_names(self) -> list[str]:
        return list(self._services.node.hub.counts())

    def num_clients(self, channel: str) -> int:
        found = self._services.node.hub.channel(channel)
        return found.count() if found is not None else 0

    def forget(self, channel: str) -> None:
        found = self._services.node.hub.channel(channel)
        if found is not None:
            found.forget_publications()

    def info(self) -> NodeInfo:
        node = self._services.node
        counts = node.hub.counts()
        return NodeInfo(
            uid=node.replica,
            name=node.replica,
            version=__version__,
            num_clients=len(node.clients),
            num_users=self._services.count_users(),
            num_subs=sum(counts.values()),
            num_channels=len(counts),
            uptime=int(time.time() - node.started),
        )

    def emulate(self, session: str, data: bytes) -> bool:
        """Give a frame to the connection that holds `session`, after those before it; False: no such one."""
        connection = self._services.by_key(session)
        if connection is None:
            return False
        connection.receive(data)
        return True

    def _meant(self, call: Call) -> list[Connection]:
        return self._services.of_user(call.user, client=call.client, session=call.session)


def _unsubscribe(connection: Connection, channel: str) -> None:
    names = connection.subscriptions.names()
    for name in names if not channel else [channel] if channel in names else []:
        connection.subscriptions.leave(name)
        connection.push(name, UNSUBSCRIBE_SERVER)


def _override(given: api.ChannelOverride | None) -> ChannelOverride | None:
    """The API's form of an override as the token's."""
    if given is None:
        return None

    def value(option: api.OptionValue | None) -> bool | None:
        return None if option is None else option.value

    return ChannelOverride(
        presence=value(given.presence),
        join_leave=value(given.join_leave),
        force_push_join_leave=value(given.force_push_join_leave),
        force_recovery=value(given.force_recovery),
        force_positioning=value(given.force_positioning),
    )
