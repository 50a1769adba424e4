"""`bongsu serve`: one replica, one process, from its first byte to an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import resource
import signal
import socket
import sys
import threading
from collections.abc import Generator
from types import FrameType

import structlog
from uvicorn import Server

from bongsu.app import Bongsu
from bongsu.node.wheel import Wheel
from bongsu.server.body import Blocks
from bongsu.server.door import Door
from bongsu.server.http import BongsuConfig
from bongsu.server.logs import configure_logging
from bongsu.server.protocol import BongsuWebSocketProtocol
from bongsu.settings import Settings

RECONNECTS_A_SECOND = 1000
"""How many clients a second are sent to the other replicas at shutdown: a stampede would slow them for
everybody.
"""

COLLECTOR_THRESHOLDS = (20_000, 20, 20)
"""Objects made, over those let go, before the youngest are looked through; then how often the older ones."""

NOT_SENT_LOW_WATER = 64 * 1024
"""Bytes the kernel may hold unsent. Without it a stalled client hides megabytes, minutes of messages,
down there.
"""

_TCP_NOTSENT_LOWAT = 25  # <linux/tcp.h>; the socket module has it since Python 3.12 only

log = structlog.get_logger("bongsu.server")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit status: 0 after a clean end."""
    configure_logging(level=settings.log.level, format=settings.log.format, replica=settings.replica)
    _raise_file_limit()
    app = Bongsu(settings)
    config = BongsuConfig(
        app,
        host=settings.host,
        port=settings.port,
        http=Door,
        # uvicorn has to know that there are WebSockets; which class, our HTTP protocol knows.
        ws=BongsuWebSocketProtocol,
        ws_max_size=settings.plain.message_size_limit,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=settings.forwarded_allow_ips,
        # Longer than nginx keeps an idle upstream connection: the other way round, now and then a request
        # would meet a connection that is just being closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.shutdown.timeout),
    )
    config.server_headers = [(b"x-bongsu-replica", settings.replica.encode())]
    config.deflate = settings.websocket.compression
    config.wheel = Wheel()
    config.blocks = Blocks()
    server = BongsuServer(config, app, settings)
    try:
        server.run()
    except KeyboardInterrupt:  # a second Ctrl-C
        return 130
    except SystemExit as stop:  # uvicorn's word for "could not start"; the reason is in the log
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _raise_file_limit() -> None:
    """A client is a file descriptor, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _hide_little(listener: socket.socket) -> None:
    """Bound what the kernel holds unsent for each client; the connections of a listener inherit it."""
    if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER)


def _tune_collector() -> None:
    """What the modules made is never garbage: look through it no more. And seldom through the rest.

    Connections and publications make no cycles: they go when the last reference does. At its default the
    collector looks at everything that is new each 700 objects, in a storm of handshakes every seventh one.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


class BongsuServer(Server):
    """uvicorn's server, except for its end: uvicorn closes all sockets at once, and then may hang."""

    def __init__(self, config: BongsuConfig, app: Bongsu, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                _hide_little(listener)
        _tune_collector()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """In this order, within `shutdown.timeout`:

        1. not ready, and new handshakes answered 503, so that nginx passes on;
        2. connections that the kernel has taken for us already are answered, then the listener closes;
        3. clients are told to reconnect (3001), in waves;
        4. requests in flight end, sockets flush and close (uvicorn);
        5. jobs end or are given back, the lease is returned, broker and database are left (lifespan).
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.shutdown.timeout
        node = self._app.node
        node.drain()
        await asyncio.sleep(0.05)
        for server in self.servers:
            server.close()
        alone = len(node.replicas()) <= 1
        within = 0.0 if alone else min(len(node.clients) / RECONNECTS_A_SECOND, (until - loop.time()) / 3)
        if node.clients:
            log.info("telling clients to reconnect", clients=len(node.clients), seconds=round(within, 1))
        await node.disconnect_all(within=within)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(until - loop.time()))
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: the end was clean, the status
        is 0.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
