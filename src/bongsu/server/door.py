"""Where every connection comes in, before it is known what it will be.

Most are to be sockets, and begin with one segment that is a whole, plain handshake: they go past uvicorn's
HTTP protocol, whose parser, flow control and request were a seventh of what Python does for a connect. All
else, also whatever is to be refused, is HTTP's from its first byte on.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.server import ServerState

from bongsu.protocol.problems import Problem
from bongsu.server import handshake, http
from bongsu.server.http import BongsuConfig, BongsuHttpProtocol, open_socket


class Door(asyncio.Protocol):
    """The first protocol of a connection. It waits no longer for the first byte than HTTP does."""

    __slots__ = ("_app_state", "_arrival", "_config", "_loop", "_state", "_transport")

    def __init__(
        self,
        config: BongsuConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls the class of its HTTP protocol."""
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._transport = transport
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks for its `shutdown`
        self._arrival = self._loop.call_later(http.HEAD_TIMEOUT, transport.close)

    def data_received(self, data: bytes) -> None:
        self._leave()
        plain = handshake.plain_head(data)
        if plain is not None:
            head, size = plain
            try:
                asked = handshake.read("GET", head.headers, deflate=self._config.deflate)
            except Problem:
                pass  # HTTP finds the same, and says it
            else:
                args = (self._config, self._state, self._app_state, self._transport)
                socket = open_socket(*args, head, asked)
                if len(data) > size:
                    socket.data_received(data[size:])
                return
        protocol = BongsuHttpProtocol(self._config, self._state, self._app_state, self._loop)
        protocol.connection_made(self._transport)
        self._transport.set_protocol(protocol)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def shutdown(self) -> None:
        """uvicorn's word that the server ends."""
        self._transport.close()

    def _leave(self) -> None:
        self._arrival.cancel()
        self._state.connections.discard(self)
