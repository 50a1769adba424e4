"""`/connection/http_stream` and `/connection/sse`: the client protocol where WebSockets do not get through.

One long response carries what the server says; what the client says comes in requests of its own
(`emulation`).

Source: the Centrifuge client protocol, §15.1 "Opening" and §15.2 "Stream format".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from bongsu.node.client import Socket
from bongsu.node.connection import Connection
from bongsu.node.services import Services
from bongsu.node.variants import Form
from bongsu.protocol import problems
from bongsu.protocol.codec import Codec
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.codec.protobuf import PROTOBUF
from bongsu.protocol.errors import Disconnect
from bongsu.protocol.messages import Push
from bongsu.protocol.problems import Problem
from bongsu.transports.forms import DELIMITED, EVENT, LINE
from bongsu.transports.handshake import Handshakes, peer_of
from bongsu.transports.requests import (
    ClientGone,
    answer_preflight,
    check_method,
    frame_in_url,
    is_binary,
    read_body,
    refusal_headers,
)
from bongsu.transports.sockets import STREAM_EXTENSION, Receive, Scope, Send, StreamSocket


class Carrier(NamedTuple):
    """A kind of streamed response. `greeting` comes first: proxies and browsers then know that it is open."""

    methods: tuple[str, ...]
    form: Form
    headers: tuple[tuple[bytes, bytes], ...] = ()
    greeting: bytes = b""


LINES: Final = Carrier(("POST",), LINE)
EVENTS: Final = Carrier(
    ("GET", "POST"),
    EVENT,
    ((b"content-type", b"text/event-stream; charset=utf-8"),),
    # Not the protocol's CR LF: read in one chunk with the first event, as through a proxy, it makes the npm
    # package `eventsource` 2.0.2 swallow the end of that event, and its client waits for ever.
    b"\n",
)

HEADERS: Final = (
    (b"x-accel-buffering", b"no"),
    (b"cache-control", b"private, no-cache, no-store, must-revalidate, max-age=0"),
    (b"pragma", b"no-cache"),
    (b"expire", b"0"),
)

Begin: TypeAlias = Callable[[StreamSocket], Connection]


class Farewell:
    """A socket on which the reason for its end is the last message: responses have no close frame."""

    def __init__(self, socket: Socket, codec: Codec, form: Form) -> None:
        self._socket = socket
        self._codec = codec
        self._form = form
        self.write = socket.write
        self.unacknowledged = socket.unacknowledged
        self.pause_reading = socket.pause_reading
        self.resume_reading = socket.resume_reading

    def close(self, code: int, reason: str, *, within: float) -> None:
        push = Push("", Disconnect(code, reason))
        self._socket.write([self._form.wrap(self._codec.push(push))])
        self._socket.close(code, reason, within=within)


class StreamTransport:
    """The ASGI app of one path."""

    def __init__(self, services: Services, handshakes: Handshakes, carrier: Carrier, *, name: str) -> None:
        """`name` of the transport, as metrics have it."""
        self._services = services
        self._handshakes = handshakes
        self._carrier = carrier
        self._name = name

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, and the connection that is its response."""
        carrier = self._carrier
        if scope["method"] == "OPTIONS":
            await answer_preflight(scope, send, self._handshakes, carrier.methods)
            return
        try:
            check_method(scope, carrier.methods)
            self._handshakes.check(scope)
            frame = frame_in_url(scope) if scope["method"] == "GET" else await read_body(receive)
            begin = self._opening(scope, frame)
        except ClientGone:
            return
        except Problem as problem:
            extra = refusal_headers(problem, carrier.methods)
            await self._handshakes.refuse(problem, scope, send, *extra)
            return
        headers = [*HEADERS, *carrier.headers, *self._handshakes.cross_origin(scope)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": carrier.greeting, "more_body": True})
        extension = (scope.get("extensions") or {}).get(STREAM_EXTENSION, {})
        socket = StreamSocket(receive, send, **extension)
        await socket.run(begin(socket))

    def _opening(self, scope: Scope, frame: bytes | None) -> Begin:
        """How the connection begins, once its response has. Raises `Problem`."""
        if frame is None:
            raise Problem(problems.BAD_REQUEST, "The query string has no cf_connect, the first frame.")
        codec: Codec = JSON
        form = self._carrier.form
        if self._carrier is LINES and is_binary(scope):
            codec, form = PROTOBUF, DELIMITED

        def begin(socket: StreamSocket) -> Connection:
            connection = Connection(
                self._services,
                Farewell(socket, codec, form),
                codec,
                form,
                transport=self._name,
                peer=peer_of(scope),
                emulated=True,
            )
            connection.receive(frame)
            return connection

        return begin
