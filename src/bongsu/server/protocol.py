"""uvicorn's WebSocket protocol, with what a broadcast server needs (docs/decisions/protocol-class.md).

Over its base class it: reads a blank `Sec-WebSocket-Protocol` header as none (centrifuge-python sends one;
RFC 6455 has no such form, and uvicorn answers 400); offers the app its socket for raw writes and callbacks,
through an ASGI extension; lets a stalled socket be closed; and after a close frame goes on reading until
the peer has closed, since the kernel answers unread bytes with a reset that overtakes the frame.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import structlog
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request, Response
from websockets.protocol import OPEN

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.server.http import BongsuConfig, raw_response
from bongsu.transports.sockets import RAW_EXTENSION, Receiver

LINGER = 0.5
"""Seconds of reading and discarding after a close frame that answers a broken rule: the peer may be
mid-message.
"""

CUT_OFF = 5.0
"""Seconds a peer has to take our last bytes and close."""

SLICE = 4096
"""Bytes parsed in one loop turn: a read full of tiny frames would hold up everybody else for seconds."""

MAX_FRAGMENTS = 1024
"""Frames of one message. Empty ones would cost memory that no limit of bytes sees."""

NOT_SENT_LOW_WATER = 64 * 1024
"""Bytes the kernel may hold unsent. Without it a stalled client hides megabytes, minutes of messages,
down there.
"""

_TCP_NOTSENT_LOWAT = 25  # <linux/tcp.h>; the socket module has it since Python 3.12 only

log = structlog.get_logger("bongsu.server")

_websockets_log = logging.getLogger("bongsu.server.websockets")
_websockets_log.setLevel(logging.WARNING)


class BongsuWebSocketProtocol(WebSocketsSansIOProtocol):
    """Also the `RawSocket` that it offers: one object a connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver: Receiver | None = None
        self._failed_with: int | None = None
        self._input = bytearray()
        self._slicing = False
        self._session_paused = False
        # Else it logs "connection open" for every client.
        self.conn.logger = _websockets_log
        self._cut_off: asyncio.TimerHandle | None = None

    # Handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        tcp = transport.get_extra_info("socket")
        if sys.platform == "linux" and tcp is not None and tcp.family in (socket.AF_INET, socket.AF_INET6):
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER)

    def handle_connect(self, event: Request) -> None:
        offered = event.headers.get_all("Sec-WebSocket-Protocol")
        if offered and not any(value.strip() for value in offered):
            del event.headers["Sec-WebSocket-Protocol"]
        # What it refuses itself (no version, a bad key, two origins) would be plain text of no replica.
        self.conn.reject = partial(_rejection, self.server_headers())  # type: ignore[method-assign]
        super().handle_connect(event)
        del self.conn.reject

    def _refuse_handshake(self, detail: str) -> None:
        # More or longer headers than websockets accepts; the base class would leave the client waiting.
        self.handshake_complete = self.close_sent = True
        problem = Problem(problems.BAD_REQUEST, f"The WebSocket handshake cannot be read: {detail}.")
        self.transport.write(raw_response(problem, self.server_headers()))
        self._close_transport()

    def server_headers(self) -> list[tuple[bytes, bytes]]:
        """What every response of this server carries."""
        return cast("BongsuConfig", self.config).server_headers

    async def run_asgi(self) -> None:
        """As the base class, but a session that was attached outlives the app's call."""
        scope = cast("dict[str, Any]", self.scope)
        scope["extensions"][RAW_EXTENSION] = {"socket": self}
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            log.exception("a socket's application failed")
        if self._receiver is not None:
            return
        if not (self.handshake_complete or self.close_sent or self.disconnected):
            log.error("a socket's application did not answer the handshake")
            self.send_500_response()
        if self.close_timer is None:
            self._close_transport()

    # RawSocket

    def attach(self, receiver: Receiver, *, keepalive: bool) -> None:
        self._receiver = receiver
        if not keepalive:
            self.stop_keepalive()
        # What came in between the accept and now waits in the ASGI queue.
        while not self.queue.empty():
            message = cast("dict[str, Any]", self.queue.get_nowait())
            if message["type"] == "websocket.disconnect":
                self._tell_lost()
                return
            self._tell_message(message.get("text"), message.get("bytes"))
        self.read_paused = False
        self._resume()
        if self.disconnected:
            self._tell_lost()
        elif not self.writable.is_set():
            receiver.paused()

    def write(self, chunks: list[bytes]) -> None:
        if not (self.close_sent or self.disconnected):
            self.transport.write(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def unsent(self) -> int:
        return 0 if self.disconnected else self.transport.get_write_buffer_size()

    def close(self, code: int, reason: str, *, within: float) -> None:
        if self.close_sent or self.disconnected:
            return
        self.stop_keepalive()
        self.close_sent = True
        if self.conn.state is OPEN:
            self.conn.send_close(code, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self._cut_off_after(within)
            self.resume_reading()  # for the peer's answer
        else:
            self._close_transport()

    def pause_reading(self) -> None:
        if not (self.close_sent or self.disconnected):
            self._session_paused = True
            self._pause()

    def resume_reading(self) -> None:
        self._session_paused = False
        if self._input:
            self._schedule_slice()
        else:
            self._resume()

    # From the transport

    def data_received(self, data: bytes) -> None:
        if self._input or len(data) > SLICE:
            self._input += data
            self._pause()
            self._schedule_slice()
        else:
            self._parse(data)

    def _schedule_slice(self) -> None:
        if not self._slicing:
            self._slicing = True
            self.loop.call_soon(self._parse_slice)

    def _parse_slice(self) -> None:
        """The next part of a long read; the loop has had a turn since the last one."""
        self._slicing = False
        if self.disconnected:
            self._input.clear()
        elif self._input and not self._session_paused:
            part = bytes(self._input[:SLICE])
            del self._input[:SLICE]
            self._parse(part)
        if self._input and not self._session_paused:
            self._schedule_slice()
        else:
            self._resume()

    def _pause(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume(self) -> None:
        """Read on, unless somebody is not done with what was read."""
        busy = self._input or self._session_paused or self.read_paused
        if not (busy or self.disconnected or self.transport.is_closing()):
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        if self.conn.parser_exc is not None or self.conn.handshake_exc is not None:
            return  # lingering: read, and thrown away
        self.conn.receive_data(data)
        # Whole messages that came before a broken one still count.
        self.handle_events()
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        elif self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake(str(self.conn.handshake_exc))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._receiver is not None:
            self._receiver.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._receiver is not None:
            self._receiver.resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
            self._cut_off = None
        super().connection_lost(exc)
        self._tell_lost()

    def eof_received(self) -> None:
        # The peer will send no more, not even its close frame: flush what is on its way, and end.
        self._cut_off_after(CUT_OFF)

    # From the peer

    def send_receive_event_to_app(self) -> None:
        if self._receiver is None or self.close_sent:
            super().send_receive_event_to_app()
            return
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.curr_msg_data_type != "text":
            self._tell_message(None, bytes(data))
            return
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            self.conn.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
            self.handle_parser_exception()
            return
        self._tell_message(text, None)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(CloseCode.POLICY_VIOLATION, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        answer = b"".join(self.conn.data_to_send())
        # Pongs to somebody who reads nothing would pile up; only the latest ping needs one (RFC 6455 §5.5.3).
        if self.writable.is_set():
            self.transport.write(answer)

    def handle_close(self, event: Frame) -> None:
        if self.close_sent:
            self._close_transport()
            return
        super().handle_close(event)
        self.close_sent = True
        self._cut_off_after(CUT_OFF)
        self._tell_lost()

    def handle_parser_exception(self) -> None:
        """The peer broke a rule of the framing: 1002, 1007 or 1009."""
        already = self.close_sent
        self.close_sent = True
        self.stop_keepalive()
        closed = self.conn.close_sent
        if closed is not None:
            self._failed_with = closed.code
            self.queue.put_nowait(
                {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}
            )
        output = b"".join(self.conn.data_to_send())
        if not already:
            self.transport.write(output)
        self.read_paused = False
        self.resume_reading()
        self._cut_off_after(LINGER if self.unsent() == 0 else CUT_OFF)
        self._tell_lost()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._failed_with = CloseCode.INTERNAL_ERROR
        # The base class only asks the transport to close, which a peer that reads nothing can put off for
        # ever.
        self._cut_off_after(CUT_OFF)

    # Ends

    def shutdown(self) -> None:
        if self._receiver is None:
            super().shutdown()
        else:
            self.close(CloseCode.SERVICE_RESTART, "service restart", within=CUT_OFF)

    def _close_transport(self) -> None:
        """Flush and close; cut off when the peer does not take the rest."""
        self.transport.close()
        self._cut_off_after(CUT_OFF)

    def _cut_off_after(self, seconds: float) -> None:
        if self.disconnected:
            return
        if self._cut_off is not None:
            if self._cut_off.when() <= self.loop.time() + seconds:
                return
            self._cut_off.cancel()
        self._cut_off = self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        self._cut_off = None
        if self.transport.is_closing() or self.unsent():
            self.transport.abort()
        else:
            self.transport.close()

    def _tell_message(self, text: str | None, data: bytes | None) -> None:
        if self._receiver is None:
            return
        if text is not None:
            self._receiver.text(text)
        elif data is not None:
            self._receiver.binary(data)

    def _tell_lost(self) -> None:
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, _NOBODY
            receiver.lost(self._failed_with)


def _rejection(server_headers: list[tuple[bytes, bytes]], status: int, text: str) -> Response:
    """In place of `ServerProtocol.reject`: the same status as a problem document."""
    kind = {405: problems.METHOD_NOT_ALLOWED, 426: problems.UPGRADE_REQUIRED}.get(
        status, problems.BAD_REQUEST
    )
    problem = Problem(kind, text.partition("\n")[0])
    body = problem.body()
    headers = Headers(
        (name.decode(), value.decode()) for name, value in [*problem.headers(), *server_headers]
    )
    headers["content-length"] = str(len(body))
    headers["connection"] = "close"
    headers["sec-websocket-version"] = (
        "13"  # RFC 6455 §4.2.2: tell a client of another version which we speak
    )
    return Response(kind.status, HTTPStatus(kind.status).phrase, headers, body)


class _Nobody:
    """Whoever listens after the session is over."""

    def text(self, text: str) -> None: ...

    def binary(self, data: bytes) -> None: ...

    def paused(self) -> None: ...

    def resumed(self) -> None: ...

    def lost(self, code: int | None) -> None: ...


_NOBODY = _Nobody()
