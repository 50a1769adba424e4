"""`WS /connection/websocket`: the client protocol, in JSON or Protobuf.

Source: the Centrifuge client protocol, §1.1 "WebSocket handshake".
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from bongsu.node.connection import Connection
from bongsu.node.services import Services
from bongsu.protocol.codec import Codec
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.codec.protobuf import PROTOBUF
from bongsu.protocol.problems import Problem
from bongsu.transports.handshake import Handshakes, peer_of
from bongsu.transports.sockets import AsgiSocket, Receive, Scope, Send

JSON_SUBPROTOCOL = "centrifuge-json"
PROTOBUF_SUBPROTOCOL = "centrifuge-protobuf"


class WebSocketTransport:
    """The ASGI app of `/connection/websocket`."""

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
        codec, subprotocol, by_transport = _choices(scope)
        accept: dict[str, Any] = {"type": "websocket.accept"}
        if subprotocol is not None:
            accept["subprotocol"] = subprotocol
        await send(accept)
        binary = codec is PROTOBUF
        raw = self._handshakes.raw_socket(scope)
        forms = self._handshakes.forms(raw)
        form = forms.binary if binary else forms.text
        if raw is not None:
            connection = self._connection(scope, raw, codec, form, by_transport)
            raw.attach(connection, keepalive=by_transport)
            return
        socket = AsgiSocket(receive, send, binary=binary)
        await socket.run(self._connection(scope, socket, codec, form, by_transport))

    def _connection(
        self, scope: Scope, socket: Any, codec: Codec, form: Any, by_transport: bool
    ) -> Connection:
        return Connection(
            self._services,
            socket,
            codec,
            form,
            transport="websocket",
            peer=peer_of(scope),
            options=self._services.session_options_without_ping if by_transport else None,
        )


def _choices(scope: Scope) -> tuple[Codec, str | None, bool]:
    """Encoding, subprotocol to echo, and whether the transport's own pings are wanted."""
    offered = scope.get("subprotocols") or []
    asked_in_url = scope.get("query_string", b"")
    query = parse_qs(asked_in_url.decode("latin-1")) if asked_in_url else {}
    known = (PROTOBUF_SUBPROTOCOL, JSON_SUBPROTOCOL)
    subprotocol = next((name for name in offered if name in known), None)
    asked = {*query.get("format", ()), *query.get("cf_protocol", ())}
    binary = subprotocol == PROTOBUF_SUBPROTOCOL or "protobuf" in asked
    by_transport = query.get("cf_ws_frame_ping_pong") == ["true"]
    return (PROTOBUF if binary else JSON), subprotocol, by_transport
