"""The WebSocket protocol of a broadcast server (docs/decisions/protocol-class.md).

The HTTP protocol has read the handshake; the app answers it as ASGI messages, and takes the socket itself
through an extension: raw writes of ready frames, and callbacks. From then on there is nothing of the
handshake left, no task and no timer: one object a connection, and one wheel for all of them.

After a close frame it goes on reading until the peer has closed, since the kernel answers unread bytes with a
reset that overtakes the frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

import structlog
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from bongsu.node.tasks import begin
from bongsu.node.wheel import Wheel
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.server import framing, kernel
from bongsu.server.framing import BrokenFrame, FrameReader, close_code
from bongsu.server.handshake import Fields, Handshake, response
from bongsu.transports.frames import PING, close_frame, pong_frame
from bongsu.transports.sockets import RAW_EXTENSION, Message, Receiver, Scope

LINGER = 0.5
"""Seconds of reading and discarding after a close frame that answers a broken rule: the peer may be
mid-message.
"""

CUT_OFF = 5.0
"""Seconds a peer has to take our last bytes and close."""

SLICE = 4096
"""Bytes parsed in one loop turn: a read full of tiny frames would hold up everybody else for seconds."""

KEEPALIVE: Final = 20.0
"""Seconds between a pong and the next ping, and from a ping to its pong."""

_INTERNAL_ERROR: Final = 1011
_SERVICE_RESTART: Final = 1012
_INVALID_DATA: Final = 1007

log = structlog.get_logger("bongsu.server")


class WebSocketConfig(Protocol):
    """What all sockets of a server have in common."""

    server_headers: Fields
    wheel: Wheel
    ws_max_size: int


class BongsuWebSocketProtocol(asyncio.Protocol):
    """Also the `RawSocket` that it offers: one object a connection."""

    __slots__ = (
        "_answered",
        "_awaits_pong",
        "_broken",
        "_close_sent",
        "_config",
        "_cut_off",
        "_failed_with",
        "_gone",
        "_input",
        "_keepalive",
        "_loop",
        "_lost",
        "_reader",
        "_receiver",
        "_session_paused",
        "_slicing",
        "_state",
        "_transport",
        "_writable",
        "deflates",
    )

    def __init__(
        self,
        config: WebSocketConfig,
        state: ServerState,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        *,
        deflates: bool,
    ) -> None:
        """`transport` is open and already has its peer's handshake behind it."""
        self._config = config
        self._state = state
        self._transport = transport
        self._loop = loop
        self.deflates = deflates
        """Whether messages may be sent deflated (RFC 7692)."""
        self._reader = FrameReader(config.ws_max_size, inflates=deflates)
        self._receiver: Receiver | None = None
        self._input: bytearray | None = None  # read, and not parsed yet
        self._cut_off: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._failed_with: int | None = None
        self._answered = False  # the handshake
        self._close_sent = False
        self._broken = False  # what comes is thrown away
        self._lost = False
        self._slicing = False
        self._session_paused = False
        self._writable = True
        self._keepalive = False
        self._awaits_pong = False
        state.connections.add(self)  # type: ignore[arg-type]  # uvicorn asks for its `shutdown`

    # Handshake

    def open(self, app: Callable[..., Any], scope: Scope, handshake: Handshake) -> None:
        """Let `app` answer the handshake: at once, and in a task only where it has to wait for something."""
        scope["extensions"] = {"websocket.http.response": {}, RAW_EXTENSION: {"socket": self}}
        rest = begin(self._run(app, scope, _Answer(self, handshake)))
        if rest is not None:
            task = self._loop.create_task(rest)
            self._state.tasks.add(task)
            task.add_done_callback(self._state.tasks.discard)

    async def _run(self, app: Callable[..., Any], scope: Scope, answer: _Answer) -> None:
        try:
            await app(scope, answer.receive, answer.send)
        except ClientDisconnected:
            pass
        except Exception:
            log.exception("a socket's application failed")
        if self._receiver is not None or self._lost:
            return
        if not self._answered:
            log.error("a socket's application did not answer the handshake")
            self.refuse(Problem(problems.INTERNAL, "The handshake was not answered."))
        elif not self._close_sent:
            log.error("a socket's application accepted it and did not take it")
            self.close(_INTERNAL_ERROR, "", within=CUT_OFF)

    def refuse(self, problem: Problem, *headers: tuple[bytes, bytes]) -> None:
        """Answer the handshake with `problem`."""
        fields = [*problem.headers(), *headers, *self._config.server_headers]
        self.respond(problem.kind.status, fields, problem.body())

    def respond(self, status: int, headers: Fields, body: bytes) -> None:
        """A whole response that ends the connection."""
        self._answered = self._close_sent = self._broken = True
        if self._lost:
            return
        names = {name for name, _ in headers}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if b"content-length" not in names:
            lines.append(b"content-length: %d\r\n" % len(body))
        self._transport.write(b"".join([*lines, b"connection: close\r\n\r\n", body]))
        self._close_transport()

    def accept(self, head: bytes) -> None:
        """The handshake is answered with `head`."""
        if self._lost or self._transport.is_closing():
            raise ClientDisconnected
        self._answered = True
        self._transport.write(head)

    async def gone(self) -> None:
        """Return when the connection is lost; for an app that has not taken the socket."""
        if not self._lost:
            self._gone = self._loop.create_future()
            await self._gone

    # RawSocket

    def attach(self, receiver: Receiver, *, keepalive: bool) -> None:
        self._receiver = receiver
        self._keepalive = keepalive
        if keepalive:
            self._config.wheel.set(self, self._loop.time() + KEEPALIVE)
        if self._lost or self._close_sent:
            self._tell_lost()
            return
        if not self._writable:
            receiver.paused()
        if self._input:
            self._schedule_slice()
        else:
            self._resume()

    def write(self, chunks: Sequence[bytes]) -> None:
        if not (self._close_sent or self._lost):
            self._transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def unacknowledged(self) -> int:
        return 0 if self._lost else kernel.unacknowledged(self._transport)

    def close(self, code: int, reason: str, *, within: float) -> None:
        if self._close_sent or self._lost:
            return
        self._close_sent = True
        self._stop_keepalive()
        if not self._answered:
            self._close_transport()
            return
        self._transport.write(close_frame(code, reason))
        self._cut_off_after(within)
        self.resume_reading()  # for the peer's answer

    def pause_reading(self) -> None:
        if not (self._close_sent or self._lost):
            self._session_paused = True
            self._pause()

    def resume_reading(self) -> None:
        if self._keepalive and self._session_paused:
            self._config.wheel.set(self, self._loop.time() + KEEPALIVE)
        self._session_paused = False
        if self._input:
            self._schedule_slice()
        else:
            self._resume()

    # From the transport

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        if self._input or len(data) > SLICE or not self._takes_messages():
            if self._input is None:
                self._input = bytearray()
            self._input += data
            self._pause()
            self._schedule_slice()
        else:
            self._parse(data)

    def _takes_messages(self) -> bool:
        """Somebody listens, or nobody will: until the app has taken the socket, what comes waits."""
        return self._receiver is not None or self._close_sent

    def _schedule_slice(self) -> None:
        if not self._slicing:
            self._slicing = True
            self._loop.call_soon(self._parse_slice)

    def _parse_slice(self) -> None:
        """The next part of a long read; the loop has had a turn since the last one."""
        self._slicing = False
        if self._lost or self._broken:
            self._input = None
        elif self._input and not self._session_paused and self._takes_messages():
            part = bytes(self._input[:SLICE])
            del self._input[:SLICE]
            self._parse(part)
        if not self._input:
            self._input = None
            self._resume()
        elif not self._session_paused and self._takes_messages():
            self._schedule_slice()

    def _pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Read on, unless somebody is not done with what was read."""
        if not (self._input or self._session_paused or self._lost or self._transport.is_closing()):
            self._transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            # Whole messages that came before a broken one still count.
            while not self._broken and (message := reader.read()) is not None:
                self._on_message(*message)
        except BrokenFrame as broken:
            self._fail(broken.code, broken.reason)

    def pause_writing(self) -> None:
        self._writable = False
        if self._receiver is not None:
            self._receiver.paused()

    def resume_writing(self) -> None:
        self._writable = True
        if self._receiver is not None:
            self._receiver.resumed()

    def eof_received(self) -> bool:
        # The peer will send no more, not even its close frame: flush what is on its way, and end.
        self._cut_off_after(CUT_OFF)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._cut_off is not None:
            self._cut_off.cancel()
            self._cut_off = None
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self._stop_keepalive()
        self._state.connections.discard(self)
        self._input = None
        self._tell_lost()

    # From the peer

    def _on_message(self, opcode: int, payload: bytes) -> None:
        """Raises `BrokenFrame`."""
        if opcode == framing.CLOSE:
            self._on_close(close_code(payload))
        elif opcode == framing.PING:
            # Pongs to somebody who reads nothing would pile up; only the latest ping needs one
            # (RFC 6455 §5.5.3).
            if self._writable and not self._close_sent:
                self._transport.write(pong_frame(payload))
        elif opcode == framing.PONG:
            if self._awaits_pong:
                self._awaits_pong = False
                self._config.wheel.set(self, self._loop.time() + KEEPALIVE)
        elif self._receiver is not None and not self._close_sent:
            if opcode == framing.BINARY:
                self._receiver.binary(payload)
                return
            try:
                text = str(payload, "utf-8")
            except UnicodeDecodeError:
                raise BrokenFrame(_INVALID_DATA, "invalid UTF-8") from None
            self._receiver.text(text)

    def _on_close(self, code: int) -> None:
        if not self._close_sent:
            self._close_sent = True
            self._transport.write(close_frame(None if code == framing.NO_CODE else code))
        self._broken = True
        self._close_transport()
        self._tell_lost()

    def _fail(self, code: int, reason: str) -> None:
        """The peer broke a rule of the framing, or fell silent."""
        self._broken = True
        self._input = None
        self._failed_with = code
        if not self._close_sent:
            self._close_sent = True
            self._transport.write(close_frame(code, reason))
        self._session_paused = False
        self._resume()
        self._cut_off_after(CUT_OFF if self._transport.get_write_buffer_size() else LINGER)
        self._tell_lost()

    # Time

    def on_time(self, now: float) -> float | None:
        """The wheel's turn: nobody has been heard of for a while."""
        if self._close_sent or self._lost:
            return None
        if self._session_paused:  # its pong may lie unread
            return now + KEEPALIVE
        if self._awaits_pong:
            self._fail(_INTERNAL_ERROR, "keepalive ping timeout")
            return None
        self._awaits_pong = True
        self._transport.write(PING)
        return now + KEEPALIVE

    def _stop_keepalive(self) -> None:
        if self._keepalive:
            self._keepalive = False
            self._config.wheel.set(self, None)

    # Ends

    def shutdown(self) -> None:
        """uvicorn's word that the server ends."""
        if self._answered:
            self.close(_SERVICE_RESTART, "service restart", within=CUT_OFF)
        else:
            self.refuse(Problem(problems.DRAINING, "This replica is shutting down; connect again."))

    def _close_transport(self) -> None:
        """Flush and close; cut off when the peer does not take the rest."""
        self._transport.close()
        self._cut_off_after(CUT_OFF)

    def _cut_off_after(self, seconds: float) -> None:
        if self._lost:
            return
        if self._cut_off is not None:
            if self._cut_off.when() <= self._loop.time() + seconds:
                return
            self._cut_off.cancel()
        self._cut_off = self._loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        self._cut_off = None
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _tell_lost(self) -> None:
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, _NOBODY
            receiver.lost(self._failed_with)


class _Answer:
    """What the app sees of a handshake, as ASGI has it. Gone when it is answered."""

    def __init__(self, socket: BongsuWebSocketProtocol, handshake: Handshake) -> None:
        self._socket = socket
        self._handshake = handshake
        self._connected = False
        self._refusal: tuple[int, Fields] | None = None
        self._body = b""

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        await self._socket.gone()
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        headers = cast("Fields", list(message.get("headers", ())))
        if kind == "websocket.accept":
            self._socket.accept(response(self._handshake, message.get("subprotocol"), headers))
        elif kind == "websocket.close":
            self._socket.respond(403, headers, b"")
        elif kind == "websocket.http.response.start":
            self._refusal = (message["status"], headers)
        elif kind == "websocket.http.response.body" and self._refusal is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                self._socket.respond(*self._refusal, self._body)
        else:
            raise RuntimeError(f"{kind} is not an answer to a handshake; an accepted socket is attached to")


class _Nobody:
    """Whoever listens after the session is over."""

    def text(self, text: str) -> None: ...

    def binary(self, data: bytes) -> None: ...

    def paused(self) -> None: ...

    def resumed(self) -> None: ...

    def lost(self, code: int | None) -> None: ...


_NOBODY = _Nobody()
