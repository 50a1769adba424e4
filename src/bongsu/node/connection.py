"""One connection of the client protocol: frames in, actions of its session performed, frames out.

Work is begun in order. Each command is judged by the session when its turn comes, and what has to be awaited
holds up what comes after it, also calls of the server's own. All else is done at once, in the read loop: a
command has its effect before its sender can ask for it over HTTP. Publish commands do not hold up each other.
With `concurrency` above 1, commands that change nothing here let what comes after them begin, once they have
begun themselves; the publications that are on their way count as one of them.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from os import urandom
from typing import Any, TypeAlias

import structlog

from bongsu._version import __version__
from bongsu.auth import InvalidToken, KeysUnavailable, TokenExpired
from bongsu.node import commands
from bongsu.node.client import Client, Socket
from bongsu.node.services import Services
from bongsu.node.subscriptions import ConnectRefused, Ended, Subscriptions
from bongsu.node.tasks import begin
from bongsu.node.variants import Form
from bongsu.protocol import errors
from bongsu.protocol.actions import (
    Action,
    Authenticate,
    Close,
    ExpireSubscription,
    Perform,
    Ping,
    RefreshConnection,
    RefreshSubscription,
    Send,
    Subscribe,
    Unsubscribe,
)
from bongsu.protocol.codec import Codec
from bongsu.protocol.errors import Disconnect, ProtocolError
from bongsu.protocol.messages import (
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    Principal,
    PublishRequest,
    Push,
    PushBody,
    Refresh,
    RefreshResult,
    Reply,
    SendRequest,
    UnsubscribeResult,
)
from bongsu.protocol.session import Session, SessionOptions

MAX_WAITING = 64
"""Commands of one connection that may wait for their turn, before no more are read from it."""

MAX_UNASKED = 64
"""Frames that other requests may bring for a connection that takes no more, before it is closed (3013)."""

MAX_TTL = 365 * 24 * 3600

Work: TypeAlias = Coroutine[Any, Any, None]
Job: TypeAlias = Command | Callable[[], Work | None]

log = structlog.get_logger("bongsu.node.connection")


class Connection:
    """The `Receiver` of its transport. `id` is the client id that others see."""

    def __init__(
        self,
        services: Services,
        socket: Socket,
        codec: Codec,
        form: Form,
        *,
        transport: str,
        peer: str = "",
        emulated: bool = False,
        options: SessionOptions | None = None,
    ) -> None:
        """`emulated`: the connect result names the replica and a secret by which other requests find it.

        `options`: those of the transport, where it does not want the usual pings and pongs.
        """
        self.id = _new_id()
        self.key = _new_id() if emulated else ""
        self.services = services
        self.codec = codec
        self.form = form
        self.transport = transport
        self.peer = peer
        self.user = ""
        self.conn_info = b""
        self.session = Session(options or services.session_options, now=asyncio.get_running_loop().time())
        self.client = Client(socket, services.node.hub, services.options, Principal(), self._left)
        self.client.lost_position = self._lost_position
        self.subscriptions = Subscriptions(self)
        self._jobs: deque[Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._aside = 0  # commands that wait for their answers and hold up nobody
        self._publishing: commands.Publishing | None = None  # if there are any
        self._reading = True
        self._unasked = 0
        self._called_at = math.inf
        self._working = False
        self._is_left = False
        services.register(self)
        self._set_timer()

    # In

    def text(self, text: str) -> None:
        self.receive(text)

    def binary(self, data: bytes) -> None:
        self.receive(data)

    def paused(self) -> None:
        self.client.paused()

    def resumed(self) -> None:
        self.client.resumed()

    def lost(self, code: int | None) -> None:
        if code is not None:
            self.services.count_disconnect(code)
        self.session.close(errors.CONNECTION_CLOSED)
        self.client.lost()

    def receive(self, frame: str | bytes) -> None:
        """Commands, in the connection's encoding."""
        if self.is_over():
            return
        try:
            received = self.codec.decode(frame)
        except ProtocolError as error:
            self.close(error.disconnect)
            return
        self.take(received)

    def take(self, received: list[Command]) -> None:
        """Commands, each in its turn."""
        self.services.count_received(len(received))
        received = [command for command in received if not self.session.take_pong(command)]
        if self.key and not self._reading:
            # A socket is left unread meanwhile; requests come all the same.
            self._unasked += 1
            if self._unasked > MAX_UNASKED:
                self.close(errors.TOO_MANY_REQUESTS)
                return
        self._jobs.extend(received)
        if len(self._jobs) > MAX_WAITING and self._reading:
            self._reading = False
            self.session.heard(False, now=asyncio.get_running_loop().time())
            self.client.pause_reading()
        self._work()

    def do(self, job: Callable[[], Work | None]) -> None:
        """A call of the server's own takes its place in the order of work."""
        if not self.is_over():
            self._jobs.append(job)
            self._work()

    def on_time(self, now: float) -> float | None:
        """The wheel's turn."""
        for action in self.session.tick(now=now):
            self.perform_at_once(action)
        deadline = None if self.is_over() else self.session.deadline
        self._called_at = math.inf if deadline is None else deadline
        return deadline

    # Out

    def reply(self, reply: Reply) -> None:
        try:
            self.client.emit(self.form.wrap(self.codec.reply(reply)))
        except ProtocolError as error:
            self.close(error.disconnect)

    def push(self, channel: str, body: PushBody) -> None:
        try:
            self.client.emit(self.form.wrap(self.codec.push(Push(channel, body))))
        except ProtocolError as error:
            self.close(error.disconnect)

    def close(self, disconnect: Disconnect) -> None:
        """Say why and end, after what was emitted so far."""
        for action in self.session.close(disconnect):
            self.perform_at_once(action)

    def is_over(self) -> bool:
        return self.session.is_closed

    # What the server wants of it

    @property
    def info(self) -> ClientInfo:
        """Who this is, as others see it."""
        return ClientInfo(self.user, self.id, self.conn_info)

    def refresh(self, *, expired: bool, expire_at: float, info: bytes) -> None:
        """Change when the connection ends: now, at a Unix time, or with 0 never (server API)."""
        if expired:
            self.close(errors.CONNECTION_EXPIRED)
            return
        if info:
            self._be_seen_as(info)
        self.session.expire_at(_monotonic(expire_at) if expire_at else None)
        self._set_timer()
        self.push("", Refresh(expires=bool(expire_at), ttl=_ttl(expire_at)))

    # Work, one thing after another

    def _work(self) -> None:
        if self._working:  # what is being done has caused more to do
            return
        self._working = True
        while self._jobs and self._task is None and self._has_room(self._jobs[0]) and not self.is_over():
            job = self._jobs.popleft()
            if isinstance(job, Command):
                now = asyncio.get_running_loop().time()
                for action in self.session.receive(job, now=now):
                    self._start(self._perform(action), aside=self._may_run_aside(action))
            else:
                self._start(job())
        self._working = False
        self._set_timer()
        self._let_go()
        if not self._reading and not self._jobs:
            self._reading = True
            self._unasked = 0
            self.session.heard(True, now=asyncio.get_running_loop().time())
            self._set_timer()
            self.client.resume_reading()

    def _has_room(self, job: Job) -> bool:
        publishing = self._publishing
        if publishing is not None and isinstance(job, Command) and self.session.publishes(job):
            return len(publishing) < commands.MAX_PUBLISHING
        return self._aside + (publishing is not None) < self.services.options.concurrency

    def published(self) -> None:
        """Of the publications that were on their way, some are answered."""
        if not self._publishing:
            self._publishing = None
        self._work()

    def _start(self, work: Work | None, *, aside: bool = False) -> None:
        """Begin `work`; where it has to wait it holds up what comes after it, unless `aside`.

        By then it was judged, and what it sends is queued: publications keep the order of their commands.
        """
        if work is None or (rest := begin(self._guarded(work))) is None:
            return
        task = self.services.own(self._finish(rest, aside=aside))
        if aside:
            self._aside += 1
        else:
            self._task = task

    async def _guarded(self, work: Work) -> None:
        try:
            await work
        except (Ended, ProtocolError) as ended:
            self.close(ended.disconnect)
        except Exception:  # a bug, which must not leave the client waiting for ever
            log.exception("a command failed", client=self.id)
            self.close(errors.INTERNAL_SERVER_ERROR)

    async def _finish(self, rest: Work, *, aside: bool) -> None:
        try:
            await rest
        finally:
            if aside:
                self._aside -= 1
            else:
                self._task = None
        self._work()

    def _may_run_aside(self, action: Action) -> bool:
        if not isinstance(action, Perform) or isinstance(action.request, SendRequest):
            return False
        return self.services.options.concurrency > 1

    def _perform(self, action: Action) -> Work | None:
        """Do `action` now, or give what has to be awaited for it."""
        match action:
            case Authenticate(id=id, request=request):
                return self._connect(id, request)
            case Subscribe(id=id, request=wanted):
                return self.subscriptions.subscribe(id, wanted)
            case RefreshConnection(id=id, token=token):
                return self._refresh(id, token)
            case RefreshSubscription(id=id, channel=channel, token=token):
                return self.subscriptions.refresh(id, channel, token)
            case Perform(id=id, request=asked):
                if isinstance(asked, PublishRequest):
                    self._publishing = self._publishing or commands.Publishing(self)
                    return self._publishing.begin(id, asked)
                return commands.perform(self, id, asked)
        self.perform_at_once(action)
        return None

    def perform_at_once(self, action: Action) -> None:
        match action:
            case Send(reply=reply):
                self.reply(reply)
            case Ping():
                self.client.emit(self.form.wrap(self.codec.ping))
            case Close(disconnect=disconnect):
                self.client.close(disconnect)
            case Unsubscribe(id=id, channel=channel):
                self.subscriptions.leave(channel)
                self.reply(Reply(id, UnsubscribeResult()))
            case ExpireSubscription(channel=channel):
                self.subscriptions.leave(channel)
                self.push(channel, errors.UNSUBSCRIBE_EXPIRED)

    # Connect and refresh

    async def _connect(self, id: int, request: ConnectRequest) -> None:
        services, options = self.services, self.services.options
        subs: dict[str, Any] = {}
        expire_at: float | None = None
        if request.token:
            try:
                token = await services.tokens.verify_connection(request.token, now=time.time())
            except TokenExpired:
                return self._send(self.session.refused(id, errors.ERROR_TOKEN_EXPIRED))
            except InvalidToken as error:
                log.info("a connection token was refused", client=self.id, reason=error.reason)
                return self.close(errors.INVALID_TOKEN)
            except KeysUnavailable as error:
                log.warning("tokens cannot be checked", reason=error.reason)
                return self._send(self.session.refused(id, errors.ERROR_INTERNAL))
            if not token.user and options.disallow_anonymous_connection_tokens:
                return self.close(errors.PERMISSION_DENIED)
            self.user, self.conn_info, subs = token.user, token.info, dict(token.subs)
            expire_at = None if options.insecure else token.expire_at
        elif not (services.anonymous or options.allow_anonymous_connect_without_token or options.insecure):
            return self.close(errors.BAD_REQUEST)
        if expire_at is not None and expire_at <= time.time():
            return self._send(self.session.refused(id, errors.ERROR_EXPIRED))
        if not services.admit_user(self):
            return self.close(errors.CONNECTION_LIMIT)
        try:
            entered = await self.subscriptions.connect(request, subs)
        except ConnectRefused as refused:
            return self._send(self.session.refused(id, refused.error))
        result = ConnectResult(
            client=self.id,
            version=f"Bongsu {__version__}",
            expires=expire_at is not None,
            ttl=_ttl(expire_at or 0),
            subs={name: one.result for name, one in entered.items()},
            session=self.key,
            node=services.node.replica if self.key else "",
            time=int(time.time() * 1000) if options.connect_include_server_time else 0,
        )
        self._send(
            self.session.connected(
                id,
                result,
                now=asyncio.get_running_loop().time(),
                jitter=random.random(),
                expires_at=None if expire_at is None else _monotonic(expire_at),
            )
        )
        if not self.is_over():
            for one in entered.values():
                self.subscriptions.go_live(one)
            services.entered(self)

    async def _refresh(self, id: int, text: str) -> None:
        try:
            token = await self.services.tokens.verify_connection(text, now=time.time())
        except TokenExpired:
            return self.close(errors.CONNECTION_EXPIRED)
        except InvalidToken:
            return self.close(errors.INVALID_TOKEN)
        except KeysUnavailable:
            return self.reply(Reply(id, errors.ERROR_INTERNAL))
        if token.user != self.user:
            return self.close(errors.INVALID_TOKEN)
        if set(token.subs) != self.subscriptions.of_token:
            # The set of channels changed: it connects again, and gets the new one.
            return self.close(errors.INSUFFICIENT_STATE)
        self._be_seen_as(token.info)
        expire_at = token.expire_at
        result = RefreshResult(expires=expire_at is not None, ttl=_ttl(expire_at or 0))
        at = None if expire_at is None else _monotonic(expire_at)
        self._send(self.session.refreshed(id, result, expires_at=at))

    def _be_seen_as(self, info: bytes) -> None:
        self.conn_info = info
        self.subscriptions.show_all()

    def _send(self, actions: list[Action]) -> None:
        for action in actions:
            self.perform_at_once(action)

    # Ends

    def _lost_position(self, channel: str) -> None:
        """Something in `channel` was missed and cannot be had: the client recovers for itself, or is told."""
        if self.is_over():
            return
        if self.session.is_server_side(channel):
            self.close(errors.INSUFFICIENT_STATE)
            return
        self.subscriptions.leave(channel)
        self.push(channel, errors.UNSUBSCRIBE_INSUFFICIENT_STATE)

    def _set_timer(self) -> None:
        deadline = None if self.is_over() else self.session.deadline
        # A deadline that moved away is found to have done so when the old one comes.
        if deadline is not None and deadline < self._called_at:
            self._called_at = deadline
            self.services.wheel.set(self, deadline)

    def _left(self) -> None:
        self.session.close(errors.CONNECTION_CLOSED)
        self._jobs.clear()
        self._publishing = None
        self.services.wheel.set(self, None)
        self.subscriptions.leave_all()
        self.services.unregister(self)
        self._is_left = True
        self._let_go()

    def _let_go(self) -> None:
        """When it is over and nothing is under way, break the cycles: it goes now, not with the collector."""
        if self._is_left and self._task is None and not (self._aside or self._working):
            self._is_left = False
            self.client.lost_position = None
            self.subscriptions.let_go()


def _new_id() -> str:
    """A random UUID (RFC 9562 §5.4). `uuid4` makes an object of it first, which costs more than the rest."""
    digits = urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _monotonic(unix: float) -> float:
    """A Unix time on the clock of the session."""
    return asyncio.get_running_loop().time() + unix - time.time()


def _ttl(expire_at: float) -> int:
    """Whole seconds left, at least 1, at most a year; 0 for what never expires."""
    return min(MAX_TTL, max(1, round(expire_at - time.time()))) if expire_at else 0
