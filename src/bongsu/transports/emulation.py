"""`POST /emulation`: what clients of streamed responses say.

Source: the Centrifuge client protocol, §15.3 "POST /emulation".
"""

from __future__ import annotations

from typing import Final, Protocol

from bongsu.brokers.base import BrokerError
from bongsu.node.control_plane import UnknownReplica
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.codec.protobuf import PROTOBUF
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.problems import Problem
from bongsu.transports.handshake import Handshakes
from bongsu.transports.requests import (
    ClientGone,
    answer_bare,
    answer_preflight,
    check_method,
    is_binary,
    read_body,
    refusal_headers,
)
from bongsu.transports.sockets import Receive, Scope, Send

METHODS: Final = ("POST",)


class Sessions(Protocol):
    """Where the connections are, on whichever replica: `ControlPlane`."""

    async def emulate(self, replica: str, session: str, data: bytes) -> bool:
        """Give a frame to the connection of `replica` that holds `session`; False: no such session.

        Raises `UnknownReplica`, TimeoutError, `BrokerError`.
        """
        ...


class EmulationTransport:
    """The ASGI app of `/emulation`. Its answers have no body; replies to the commands come in the stream."""

    def __init__(self, sessions: Sessions, handshakes: Handshakes) -> None:
        self._sessions = sessions
        self._handshakes = handshakes

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["method"] == "OPTIONS":
            await answer_preflight(scope, send, self._handshakes, METHODS)
            return
        headers = self._handshakes.cross_origin(scope)
        try:
            check_method(scope, METHODS)
            body = await read_body(receive)
        except ClientGone:
            return
        except Problem as problem:
            await answer_bare(send, problem.kind.status, [*headers, *refusal_headers(problem, METHODS)])
            return
        await answer_bare(send, await self._handed_over(body, binary=is_binary(scope)), headers)

    async def _handed_over(self, body: bytes, *, binary: bool) -> int:
        """The status of the answer."""
        try:
            request = (PROTOBUF if binary else JSON).decode_emulation(body)
            await self._sessions.emulate(request.node, request.session, request.data)
        except ProtocolError:
            return 400
        except UnknownReplica:
            return 404
        except (TimeoutError, BrokerError):
            return 500
        # Also where nobody holds the session: the stream has ended, and its client has heard of that there.
        return 204
