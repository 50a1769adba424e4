"""`WS /ws` and `WS /ws/{channel}`: text in, text out, for clients without an SDK."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, NamedTuple

import msgspec
import structlog

from bongsu.brokers.base import Appended, BrokerError, OutcomeUnknown
from bongsu.node.admission import TOKEN_SUBPROTOCOL, Admission, headers_of
from bongsu.node.channel import Channel
from bongsu.node.channels import BadChannelName, ChannelRules, Channels, UnknownNamespace
from bongsu.node.client import Client, ClientOptions
from bongsu.node.node import Node
from bongsu.node.permissions import PlainPermissions
from bongsu.node.services import Services
from bongsu.node.tasks import within
from bongsu.node.variants import Form
from bongsu.protocol import problems
from bongsu.protocol.errors import (
    CONNECTION_EXPIRED,
    INAPPROPRIATE_PROTOCOL,
    INTERNAL_SERVER_ERROR,
    MESSAGE_TOO_BIG,
    PERMISSION_DENIED,
    UNSUPPORTED_DATA,
    ProtocolError,
)
from bongsu.protocol.messages import Join, Leave, Principal, Publication
from bongsu.protocol.problems import Problem
from bongsu.transports.handshake import Handshakes, peer_of
from bongsu.transports.sockets import AsgiSocket, Receive, Scope, Send

READY_TIMEOUT = 2.0
"""Seconds a handshake waits for the broker to hear its channel. While that is away none does: it is accepted,
and its channel heard when the broker comes back.
"""

MAX_PUBLISHING = 32
"""Messages of one client on their way to the broker above which no more are read from it."""

SUBPROTOCOL = "bongsu"

log = structlog.get_logger("bongsu.transports.plain")


class PlainVariant(NamedTuple):
    """Publications as a plain client sees them: through the template, or as compact JSON."""

    before: bytes
    after_text: bytes
    form: Form
    positioned: bool = False
    joins: bool = False

    @classmethod
    def of(cls, template: str, form: Form) -> PlainVariant:
        """`template` holds {text} once."""
        before, after = template.split("{text}")
        return cls(before.encode(), after.encode(), form)

    def render(
        self, channel: str, publications: list[Publication], previous: Publication | None
    ) -> list[bytes]:
        chunks = [self.form.wrap(self._text(publication)) for publication in publications]
        return [b"".join(chunks)] if len(chunks) > 1 and self.form.joinable else chunks

    def presence(self, channel: str, message: Join | Leave) -> bytes:
        raise AssertionError("plain clients are not told who joins")

    def after(self, publications: list[Publication]) -> PlainVariant:
        return self

    def _text(self, publication: Publication) -> bytes:
        if publication.plain:
            try:
                text = msgspec.json.decode(publication.data, type=str)
            except msgspec.DecodeError:  # not what our replicas send; shown as it is
                return publication.data
            return self.before + text.encode() + self.after_text
        if publication.binary:
            raise ProtocolError(INAPPROPRIATE_PROTOCOL, "bytes that are not JSON, for a plain client")
        return publication.data


class PlainTransport:
    """The ASGI app of the plain sockets: `serve(scope, receive, send, channel)`."""

    def __init__(
        self,
        node: Node,
        channels: Channels,
        permissions: PlainPermissions,
        services: Services,
        admission: Admission,
        handshakes: Handshakes,
        options: ClientOptions,
        *,
        template: str,
        message_size_limit: int,
    ) -> None:
        self._node = node
        self._channels = channels
        self._permissions = permissions
        self._services = services
        self._admission = admission
        self._handshakes = handshakes
        self._options = options
        self._message_size_limit = message_size_limit
        self._template = template

    async def serve(self, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
        """One connection, from its handshake on. Returns early where the server keeps the session."""
        await receive()  # websocket.connect
        try:
            principal, rules, may_publish = await self._admit(scope, channel)
        except Problem as problem:
            await self._handshakes.refuse(problem, scope, send)
            return
        raw = self._handshakes.raw_socket(scope)
        socket = raw or AsgiSocket(receive, send)
        session = PlainSession(
            self._node,
            rules,
            self._message_size_limit,
            peer_of(scope),
            may_publish=may_publish,
            expired_close_delay=self._options.expired_close_delay,
        )
        session.client = client = Client(socket, self._node.hub, self._options, principal, session.left)
        hub = self._node.hub
        held = hub.reserve(channel)
        held.policy = rules.options.policy
        try:
            await self._wait_until_heard(held)
            hub.join(held, client, PlainVariant.of(self._template, self._handshakes.forms(raw).text))
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
        hub.admit(held, client)
        if raw is not None:
            raw.attach(session, keepalive=True)
        else:
            assert isinstance(socket, AsgiSocket)
            await socket.run(session)

    async def _admit(self, scope: Scope, channel: str) -> tuple[Principal, ChannelRules, bool]:
        self._handshakes.check(scope)
        principal = await self._admission.admit(headers_of(scope), scope["subprotocols"])
        try:
            rules = self._channels.rules(channel)
            allowed = self._permissions.may_subscribe(channel, principal)
            if not allowed and not await self._services.may_hear_upload(rules, principal.user):
                raise Problem(problems.FORBIDDEN, f"You may not subscribe to “{channel}”.")
            return principal, rules, self._permissions.may_publish(channel, principal)
        except BadChannelName as error:
            raise Problem(problems.BAD_CHANNEL, f"{error}.") from None
        except UnknownNamespace as error:
            raise Problem(problems.UNKNOWN_CHANNEL, f"{error}.") from None

    async def _wait_until_heard(self, channel: Channel) -> None:
        try:
            await within(READY_TIMEOUT, self._node.hub.ready(channel))
        except (BrokerError, TimeoutError):
            # Those who are here still hear each other; the wish stays, and is granted when the broker is
            # back.
            log.warning("accepted a client while the broker is away", channel=channel.name)


class PlainSession:
    """One plain client: what it says is published, in order."""

    __slots__ = (
        "_code",
        "_expired_close_delay",
        "_expiry",
        "_limit",
        "_may_publish",
        "_node",
        "_peer",
        "_publishing",
        "_rules",
        "_waiting",
        "client",
        "joined",
    )

    client: Client
    joined: Channel | None

    def __init__(
        self,
        node: Node,
        rules: ChannelRules,
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
        self._rules = rules
        self._limit = limit
        self._may_publish = may_publish
        self._publishing = 0
        self._waiting: deque[str] = deque()
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
        if self._publishing >= MAX_PUBLISHING:
            # What one slice of a read held besides; no more is read until it is on its way.
            self._waiting.append(text)
            self.client.pause_reading()
        else:
            self._publish(text)

    def _publish(self, text: str) -> None:
        publication = Publication(
            msgspec.json.encode(text), plain=True, patchable=self._rules.options.delta_publish
        )
        self._publishing += 1
        self._node.publish(self._rules, publication).add_done_callback(self._published)

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

    def _published(self, published: asyncio.Future[Appended]) -> None:
        error = published.exception()
        # Without history it is at most once, and nobody is told that it arrived.
        maybe = isinstance(error, OutcomeUnknown) and not self._rules.options.has_history
        if error is not None and not maybe:
            # There is no other answer for this client than the close: what it said is not published, or in a
            # channel whose history is promised it may not be.
            self.client.close(INTERNAL_SERVER_ERROR)
        self._publishing -= 1
        if self.client.closed_with is not None:
            self._waiting.clear()
        elif self._waiting:
            self._publish(self._waiting.popleft())
        elif self._publishing == MAX_PUBLISHING - 1:
            self.client.resume_reading()

    def _facts(self) -> dict[str, Any]:
        return {
            "connection": self.client.id,
            "user": self.client.principal.user,
            "peer": self._peer,
            "channel": self._rules.name,
            "here": len(self._node.clients),
            "cluster": self._node.count_cluster(),
        }


__all__ = ["SUBPROTOCOL", "TOKEN_SUBPROTOCOL", "PlainTransport"]
