"""uvicorn's HTTP protocol, with bounds on the head of a request: uvicorn itself has none."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from bongsu.node.wheel import Wheel
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.server import handshake, kernel
from bongsu.server.body import Blocks, BodyReader
from bongsu.server.handshake import Handshake, Head
from bongsu.server.protocol import BongsuWebSocketProtocol
from bongsu.transports.sockets import STREAM_EXTENSION

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers."""

HEAD_TIMEOUT = 10.0
"""Seconds for the head of a request to arrive, from the first byte on; also for the first byte."""

REST_TIMEOUT = 10.0
"""Seconds that the rest of a body may take once its request has been answered; nobody reads it."""

LARGE_BODY = 256 * 1024
"""Bytes of a body from which on it is worth not to go through the parser."""

STALLED = 60.0
"""Seconds without the peer taking a byte of a response after which the connection is cut."""


class BongsuConfig(Config):
    """uvicorn's configuration, and what our protocol classes need besides."""

    server_headers: list[tuple[bytes, bytes]]
    """What every response of this server carries."""

    deflate: bool
    """Whether sockets may agree on permessage-deflate."""

    wheel: Wheel

    blocks: Blocks


def raw_response(problem: Problem, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A whole response that ends the connection, for requests that never reach an application."""
    body = problem.body()
    fields = [
        *problem.headers(),
        *headers,
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    head = b"".join(b"%s: %s\r\n" % field for field in fields)
    return STATUS_LINE[problem.kind.status] + head + b"\r\n" + body


def address(name: Any) -> tuple[str, int | None] | None:
    """An address as ASGI has it; of a Unix socket its path, if it has one."""
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return (name, None) if isinstance(name, str) and name else None


def open_socket(
    config: BongsuConfig,
    state: ServerState,
    app_state: dict[str, Any],
    transport: asyncio.Transport,
    head: Head,
    asked: Handshake,
) -> BongsuWebSocketProtocol:
    """The connection is a socket from now on, and the application answers its handshake."""
    get = transport.get_extra_info
    loop = asyncio.get_running_loop()
    socket = BongsuWebSocketProtocol(config, state, transport, loop, deflates=asked.deflate)
    transport.set_protocol(socket)
    path = head.path.decode("latin-1")
    scope: dict[str, Any] = {
        "type": "websocket",
        "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "wss" if get("sslcontext") else "ws",
        "server": address(get("sockname")),
        "client": address(get("peername")),
        "root_path": config.root_path,
        "path": config.root_path + (unquote(path) if "%" in path else path),
        "raw_path": config.root_path.encode("ascii") + head.path,
        "query_string": head.query,
        "headers": head.headers,
        "subprotocols": asked.subprotocols,
        "state": app_state.copy(),
    }
    socket.open(config.loaded_app, scope, asked)
    return socket


class BongsuHttpProtocol(HttpToolsProtocol):
    """Refuses heads that are too long (431), malformed (400) or never end (408).

    Nothing a peer does or leaves undone holds a connection without a deadline.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_size = 0
        self._hosts = 0
        self._unparsed = 0
        self._in_head = True
        self._head_began = False
        self._refused = False
        self._answering: RequestResponseCycle | None = None
        self._in_body = False
        self._segment = b""  # what is being parsed
        self._unread = 0  # bytes of a body of declared length that go round the parser, if they are many
        # Until when what must arrive next has to be here: the head, or a rest that nobody reads.
        self._arrival: asyncio.TimerHandle | None = None
        self._departure: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        # All that the base class does, but for the addresses: it makes a Python socket to ask for them.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = address(transport.get_extra_info("sockname"))
        self.client = cast("tuple[str, int] | None", address(transport.get_extra_info("peername")))
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._arrives_within(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_departure()
        # uvicorn tells the request that came last; of pipelined ones that is not the one being answered.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # A stream to somebody who reads nothing is cut off; `close` would wait for its unsent bytes for ever.
        self.scope["extensions"] = {
            STREAM_EXTENSION: {
                "cut": self.transport.abort,
                "unacknowledged": partial(kernel.unacknowledged, self.transport),
            }
        }
        self._in_head = self._head_began = True
        self._head_size = self._hosts = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._in_head:
            if len(name) == 4 and name.lower() == b"host":
                self._hosts += 1
            super().on_header(name, value)
        elif self._head_size > MAX_HEAD:
            # Trailers of a chunked body: nobody here wants them, and uvicorn would keep them without a bound.
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._in_head = self._head_began = False
        self._in_body = True
        self._unparsed = 0
        self._stop_timer()
        if self._head_size > MAX_HEAD:
            self._refuse_head()
        elif self._hosts != 1 and (self._hosts or self.parser.get_http_version() == "1.1"):
            self.send_400_response("A request names its host, and once (RFC 9112 §3.2).")
        else:
            super().on_headers_complete()
            if not self.pipeline:
                self._answering = self.cycle
            self._unread = 0
            if not self.pipeline and not self.parser.should_upgrade():
                self._unread = int(dict(self.headers).get(b"content-length", 0))

    def on_body(self, body: bytes) -> None:
        self._unparsed = -1
        self._unread -= len(body)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = -1
        self._in_body = False
        if self._refused:
            return
        super().on_message_complete()
        if self._arrival is not None:  # the rest is here: uvicorn's keep-alive timer ended when it began
            self._arrives_within(HEAD_TIMEOUT)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if self._in_body and not self.pipeline:
            self._arrives_within(REST_TIMEOUT)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_departure(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_departure()
        super().resume_writing()

    def _watch_departure(self, unsent: int) -> None:
        self._stop_departure()
        self._departure = self.loop.call_later(STALLED, self._check_departure, unsent)

    def _check_departure(self, unsent: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < unsent:
            self._watch_departure(left)
        else:
            self.transport.abort()  # `close` would wait for the unsent bytes for ever

    def _stop_departure(self) -> None:
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._segment = data
        super().data_received(data)
        self._segment = b""
        if self.parser is None:
            return  # a socket now, or lost
        if self._head_began and not self._refused:  # and has not ended in the same read, as most do
            self._head_began = False
            self._arrives_within(HEAD_TIMEOUT)
        # The parser itself keeps what is not a whole header (or trailer) yet, without a bound.
        self._unparsed = 0 if self._unparsed < 0 else self._unparsed + len(data)
        if self._unparsed > 2 * MAX_HEAD and not self._refused and not self.transport.is_closing():
            if self._in_head:
                self._refuse_head()
            else:
                self.transport.abort()
        if self._in_body and self._unread >= LARGE_BODY and not self._refused:
            left, self._unread = self._unread, 0
            # It stands behind the head, and would take the next request for the body.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            blocks = cast("BongsuConfig", self.config).blocks
            self.transport.set_protocol(BodyReader(self, left, blocks))

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        self._stop_departure()
        if self._refused:
            return
        self.connections.discard(self)
        try:
            if self.scope["http_version"] != "1.1":
                raise Problem(problems.BAD_REQUEST, "WebSockets need HTTP/1.1 (RFC 6455 §4.1).")
            try:
                url = httptools.parse_url(self.url)
            except httptools.HttpParserInvalidURLError:
                raise Problem(problems.BAD_REQUEST, "The request's target is not a URL.") from None
            config = cast("BongsuConfig", self.config)
            head = Head(url.path or b"/", url.query or b"", self.headers)
            asked = handshake.read(self.scope["method"], self.headers, deflate=config.deflate)
        except Problem as problem:
            # A client of another version is to learn which we speak (RFC 6455 §4.2.2).
            self._refuse(problem, (b"sec-websocket-version", b"13"))
            return
        # A cycle otherwise, kept for as long as the collector pleases: the parser calls this object.
        self.parser = self.scope = self.headers = None  # type: ignore[assignment]
        socket = open_socket(config, self.server_state, self.app_state, self.transport, head, asked)
        if early := self._after_the_head():
            socket.data_received(early)

    def _after_the_head(self) -> bytes:
        """What came in one segment with the end of the handshake: frames of a peer that did not wait.

        uvicorn forgets it. The parser tells where it is only by the exception that brought us here.
        """
        upgrade = sys.exception()
        return self._segment[upgrade.args[0] :] if isinstance(upgrade, httptools.HttpParserUpgrade) else b""

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(problems.BAD_REQUEST, msg))

    def _refuse_head(self) -> None:
        self._refuse(Problem(problems.HEADERS_TOO_LARGE, f"The limit is {MAX_HEAD} bytes."))

    def _refuse(self, problem: Problem, *headers: tuple[bytes, bytes]) -> None:
        self._refused = True
        fields = [*cast("BongsuConfig", self.config).server_headers, *headers]
        self.transport.write(raw_response(problem, fields))
        self.transport.close()

    def _arrives_within(self, seconds: float) -> None:
        self._stop_timer()
        self._arrival = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        answering = self.pipeline or (self.cycle is not None and not self.cycle.response_complete)
        if self._in_head and self.scope is not None and not answering:
            detail = f"The head of the request did not arrive within {HEAD_TIMEOUT:g} s."
            self._refuse(Problem(problems.REQUEST_TIMEOUT, detail))
        self.transport.close()
        if unsent := self.transport.get_write_buffer_size():
            self._watch_departure(unsent)

    def _stop_timer(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
