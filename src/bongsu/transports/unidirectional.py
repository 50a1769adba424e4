"""`/connection/uni_http_stream`, `uni_sse`, `uni_websocket`: the client protocol for those who only listen.

Source: the Centrifuge client protocol, §16 "Unidirectional transports".
"""

from __future__ import annotations

from bongsu.node.client import Socket
from bongsu.node.connection import Connection
from bongsu.node.services import Services
from bongsu.node.unidirectional import UnidirectionalConnection
from bongsu.node.variants import Form
from bongsu.protocol import problems
from bongsu.protocol.codec.json import JSON_UNIDIRECTIONAL
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.problems import Problem
from bongsu.transports.handshake import Handshakes, peer_of
from bongsu.transports.requests import frame_in_url
from bongsu.transports.sockets import AsgiSocket, Receive, Scope, Send, StreamSocket
from bongsu.transports.streaming import Begin, Farewell, StreamTransport


class UnidirectionalStreamTransport(StreamTransport):
    """The ASGI app of one path: the body, or with GET `cf_connect`, is a bare connect request."""

    def _opening(self, scope: Scope, frame: bytes | None) -> Begin:
        try:
            request = JSON_UNIDIRECTIONAL.decode_connect(b"{}" if frame is None else frame)
        except ProtocolError as error:
            raise Problem(problems.BAD_REQUEST, f"Not a connect request: {error.detail}.") from None
        form = self._carrier.form

        def begin(socket: StreamSocket) -> Connection:
            connection = UnidirectionalConnection(
                self._services,
                Farewell(socket, JSON_UNIDIRECTIONAL, form),
                form,
                transport=self._name,
                peer=peer_of(scope),
            )
            connection.open(request)
            return connection

        return begin


class UnidirectionalWebSocketTransport:
    """The ASGI app of `/connection/uni_websocket`: the connect request is in the URL, or the first frame."""

    def __init__(self, services: Services, handshakes: Handshakes) -> None:
        self._services = services
        self._handshakes = handshakes

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its handshake on. Returns early where the server keeps it."""
        await receive()  # websocket.connect
        try:
            self._handshakes.check(scope)
        except Problem as problem:
            await self._handshakes.refuse(problem, scope, send)
            return
        await send({"type": "websocket.accept"})
        raw = self._handshakes.raw_socket(scope)
        form = self._handshakes.forms(raw).text
        if raw is not None:
            raw.attach(self._connection(scope, raw, form), keepalive=True)
            return
        socket = AsgiSocket(receive, send)
        await socket.run(self._connection(scope, socket, form))

    def _connection(self, scope: Scope, socket: Socket, form: Form) -> Connection:
        connection = UnidirectionalConnection(
            self._services,
            Farewell(socket, JSON_UNIDIRECTIONAL, form),
            form,
            transport="uni_websocket",
            peer=peer_of(scope),
        )
        frame = frame_in_url(scope)
        if frame is not None:
            connection.receive(frame)
        return connection
