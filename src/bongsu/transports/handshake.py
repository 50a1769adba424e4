"""What the handshakes of all sockets have in common."""

from __future__ import annotations

import structlog

from bongsu.node.admission import Admission, headers_of
from bongsu.node.node import Node
from bongsu.protocol.problems import Problem
from bongsu.transports.forms import FRAMES, MESSAGES, SocketForms
from bongsu.transports.sockets import RAW_EXTENSION, RawSocket, Scope, Send, answer, refuse

log = structlog.get_logger("bongsu.transports")


class Handshakes:
    """Who is let in at all, and on which kind of socket."""

    def __init__(
        self, node: Node, admission: Admission, *, connection_limit: int, deflated: SocketForms
    ) -> None:
        """`connection_limit`: most connections to this replica; 0 = no limit.

        `deflated`: the forms for sockets that agreed on compression.
        """
        self._deflated = deflated
        self._node = node
        self._admission = admission
        self._connection_limit = connection_limit
        self._told_slow_path = False

    def check(self, scope: Scope) -> None:
        """Is this replica taking clients, and may a page of that origin be one? Raises `Problem`."""
        self._node.check_open(connection_limit=self._connection_limit)
        self._admission.check_origin(headers_of(scope))

    def raw_socket(self, scope: Scope) -> RawSocket | None:
        """The raw socket that our own server offers."""
        extension = (scope.get("extensions") or {}).get(RAW_EXTENSION)
        if extension is not None:
            raw: RawSocket = extension["socket"]
            return raw
        if not self._told_slow_path:
            self._told_slow_path = True
            log.warning("this ASGI server has no raw sockets: fan-out is slower; `bongsu serve` has them")
        return None

    def forms(self, raw: RawSocket | None) -> SocketForms:
        """How messages are carried: on a raw socket as ready frames, deflated where that was agreed on."""
        if raw is None:
            return MESSAGES
        return self._deflated if raw.deflates else FRAMES

    async def refuse(self, problem: Problem, scope: Scope, send: Send, *headers: tuple[bytes, bytes]) -> None:
        """Answer the handshake with the problem. `headers` are for requests, and not for sockets."""
        self._node.metrics.refused.labels(problem.kind.code).inc()
        if scope["type"] == "http":
            await answer(problem, send, headers=[*self.cross_origin(scope), *headers])
        else:
            await refuse(problem, send, extensions=scope.get("extensions"))

    def cross_origin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What a browser wants to be told before it lets a page of an allowed origin see a response."""
        headers = headers_of(scope)
        origin = headers.get(b"origin")
        if origin is None:
            return []
        try:
            self._admission.check_origin(headers)
        except Problem:
            return []
        told = [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]
        wanted = headers.get(b"access-control-request-headers")
        if wanted is not None:
            told.append((b"access-control-allow-headers", wanted))
        return told


def peer_of(scope: Scope) -> str:
    """The client's address, "" where the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""
