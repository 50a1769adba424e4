"""`WS /ws` and `WS /ws/{channel}`: text in, text out, for clients without an SDK."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import structlog

from bongsu.brokers.base import BrokerError
from bongsu.node.admission import TOKEN_SUBPROTOCOL, Admission, headers_of
from bongsu.node.beacon import Health
from bongsu.node.channels import BadChannelName, UnknownNamespace
from bongsu.node.client import Client, ClientOptions
from bongsu.node.hub import Channel
from bongsu.node.node import Node
from bongsu.node.permissions import PlainPermissions
from bongsu.protocol import problems
from bongsu.protocol.errors import CONNECTION_EXPIRED, MESSAGE_TOO_BIG, PERMISSION_DENIED, UNSUPPORTED_DATA
from bongsu.protocol.messages import Principal, Publication
from bongsu.protocol.problems import Problem
from bongsu.transports.frames import text_frame
from bongsu.transports.sockets import RAW_EXTENSION, AsgiSocket, RawSocket, Receive, Scope, Send, refuse

READY_TIMEOUT = 2.0
"""Seconds a handshake waits for the broker to hear its channel; then it is accepted, and heard when it
comes back.
"""

MAX_PUBLISHING = 32
"""Messages of one client on their way to the broker above which no more are read from it."""

SUBPROTOCOL = "bongsu"

log = structlog.get_logger("bongsu.transports.plain")


class PlainVariant:
    """Publications as a plain client sees them: through the template, or as compact JSON."""

    def __init__(self, template: str, *, framed: bool) -> None:
        self._before, self._after = (part.encode() for part in template.split("{text}"))
        self._framed = framed

    def render(self, publications: list[Publication]) -> list[bytes]:
        if self._framed:
            return [b"".join([text_frame(self._text(publication)) for publication in publications])]
        return [self._text(publication) for publication in publications]

    def _text(self, publication: Publication) -> bytes:
        if publication.plain:
            return self._before + msgspec.json.decode(publication.data, type=str).encode() + self._after
        return publication.data


class PlainTransport:
    """The ASGI app of the plain sockets: `serve(scope, receive, send, channel)`."""

    def __init__(
        self,
        node: Node,
        permissions: PlainPermissions,
        admission: Admission,
        options: ClientOptions,
        *,
        template: str,
        message_size_limit: int,
    ) -> None:
        self._node = node
        self._permissions = permissions
        self._admission = admission
        self._options = options
        self._message_size_limit = message_size_limit
        self._framed = PlainVariant(template, framed=True)
        self._unframed = PlainVariant(template, framed=False)
        self._told_slow_path = False

    async def serve(self, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
        """One connection, from its handshake on. Returns early where the server keeps the session."""
        await receive()  # websocket.connect
        try:
            principal, may_publish = await self._admit(scope, channel)
        except Problem as problem:
            self._node.metrics.refused.labels(problem.kind.code).inc()
            await refuse(problem, send, extensions=scope.get("extensions"))
            return
        raw = self._raw_socket(scope)
        socket = raw or AsgiSocket(receive, send)
        session = PlainSession(
            self._node,
            channel,
            self._message_size_limit,
            scope["client"][0] if scope.get("client") else "",
            may_publish=may_publish,
            expired_close_delay=self._options.expired_close_delay,
        )
        session.client = client = Client(socket, self._node.hub, self._options, principal, session.left)
        hub = self._node.hub
        held = hub.reserve(channel)
        try:
            await self._wait_until_heard(held)
            hub.join(held, client, self._framed if raw else self._unframed)
        finally:
            hub.release(held)
        session.joined = held
        accept: dict[str, Any] = {"type": "websocket.accept"}
        if SUBPROTOCOL in scope["subprotocols"]:
            accept["subprotocol"] = SUBPROTOCOL
        try:
            await send(accept)
        except BaseException:
            client.lost()
            raise
        session.enter()
        if raw is not None:
            raw.attach(session)
            hub.admit(held, client)
        else:
            hub.admit(held, client)
            assert isinstance(socket, AsgiSocket)
            await socket.run(session)

    async def _admit(self, scope: Scope, channel: str) -> tuple[Principal, bool]:
        health = self._node.health()
        if health is Health.DRAINING:
            raise Problem(problems.DRAINING, "This replica is shutting down; connect again.", retry_after=1)
        if health in (Health.DEAF, Health.FAILED):
            raise Problem(
                problems.DEAF, "This replica does not hear the others; connect again.", retry_after=1
            )
        headers = headers_of(scope)
        self._admission.check_origin(headers)
        principal = await self._admission.admit(headers, scope["subprotocols"])
        try:
            if not self._permissions.may_subscribe(channel, principal):
                raise Problem(problems.FORBIDDEN, f"You may not subscribe to “{channel}”.")
            return principal, self._permissions.may_publish(channel, principal)
        except BadChannelName as error:
            raise Problem(problems.BAD_CHANNEL, f"{error}.") from None
        except UnknownNamespace as error:
            raise Problem(problems.UNKNOWN_CHANNEL, f"{error}.") from None

    def _raw_socket(self, scope: Scope) -> RawSocket | None:
        extension = (scope.get("extensions") or {}).get(RAW_EXTENSION)
        if extension is not None:
            raw: RawSocket = extension["socket"]
            return raw
        if not self._told_slow_path:
            self._told_slow_path = True
            log.warning("this ASGI server has no raw sockets: fan-out is slower; `bongsu serve` has them")
        return None

    async def _wait_until_heard(self, channel: Channel) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await self._node.hub.ready(channel)
        except (BrokerError, TimeoutError):
            # Those who are here still hear each other; the wish stays, and is granted when the broker is
            # back.
            log.warning("accepted a client while the broker is away", channel=channel.name)


class PlainSession:
    """One plain client: what it says is published, in order."""

    __slots__ = (
        "_channel",
        "_code",
        "_expired_close_delay",
        "_expiry",
        "_limit",
        "_may_publish",
        "_node",
        "_peer",
        "_publishing",
        "client",
        "joined",
    )

    client: Client
    joined: Channel | None

    def __init__(
        self,
        node: Node,
        channel: str,
        limit: int,
        peer: str,
        *,
        may_publish: bool,
        expired_close_delay: float,
    ) -> None:
        self._node = node
        self._peer = peer
        self._code: int | None = None
        self._expired_close_delay = expired_close_delay
        self._expiry: asyncio.TimerHandle | None = None
        self._channel = channel
        self._limit = limit
        self._may_publish = may_publish
        self._publishing = 0
        self.joined = None

    def enter(self) -> None:
        """The handshake is answered."""
        self._node.add(self.client)
        expire_at = self.client.principal.expire_at
        if expire_at is not None:
            # A plain client cannot send a new token; it connects again with one.
            self._expiry = asyncio.get_running_loop().call_later(
                max(0.0, expire_at + self._expired_close_delay - time.time()),
                self.client.close,
                CONNECTION_EXPIRED,
            )
        self._node.metrics.accepted.labels("plain").inc()
        log.info("client connected", **self._facts())

    # Receiver

    def text(self, text: str) -> None:
        if self.client.closed_with is not None:
            return
        self._node.metrics.received.labels("plain").inc()
        if not self._may_publish:
            self.client.close(PERMISSION_DENIED)
            return
        if len(text) * 4 > self._limit and len(text.encode()) > self._limit:
            # Our own server has refused it already, unread; this is for the others.
            self.client.close(MESSAGE_TOO_BIG)
            return
        publication = Publication(msgspec.json.encode(text), plain=True)
        self._publishing += 1
        if self._publishing == MAX_PUBLISHING:
            self.client.pause_reading()
        self._node.publish_or_deliver_here(self._channel, publication).add_done_callback(self._published)

    def binary(self, data: bytes) -> None:
        self.client.close(UNSUPPORTED_DATA)

    def paused(self) -> None:
        self.client.paused()

    def resumed(self) -> None:
        self.client.resumed()

    def lost(self, code: int | None) -> None:
        if code is not None:
            self._code = code
            self._node.metrics.disconnects.labels(code).inc()
        self.client.lost()

    # Ends

    def left(self) -> None:
        """Forget the client: called once, however it ended."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self.joined is not None:
            self._node.hub.leave(self.joined, self.client)
        if self.client in self._node.clients:
            self._node.remove(self.client)
            closed_with = self.client.closed_with
            log.info("client left", code=closed_with.code if closed_with else self._code, **self._facts())

    def _published(self, _: asyncio.Future[None]) -> None:
        self._publishing -= 1
        if self._publishing == MAX_PUBLISHING - 1:
            self.client.resume_reading()

    def _facts(self) -> dict[str, Any]:
        return {
            "connection": self.client.id,
            "user": self.client.principal.user,
            "peer": self._peer,
            "channel": self._channel,
            "here": len(self._node.clients),
            "cluster": self._node.count_cluster(),
        }


__all__ = ["SUBPROTOCOL", "TOKEN_SUBPROTOCOL", "PlainTransport"]
