"""One connection: its outbox, its single way out, and what happens when it is slow.

Everything that leaves goes through `Client.emit` or `Client.close`, both synchronous: a reply can't be
overtaken by a push, and nothing follows a close. The outbox, `pending`, is None (clean), a tuple (dirty:
written at the end of this read; one object for all who are sent the same, as most are sent nothing else), or
one of three that are only ever appended to: a plain list (dirty, of more than one sending), a `Backlog` (the
socket takes no more), or the `_Closed` that swallows what comes after the close.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bongsu.auth import SubscriptionTokenOptions
from bongsu.node.backlog import Backlog, Policy
from bongsu.protocol.errors import SLOW, Disconnect
from bongsu.protocol.messages import Principal


class PersonalChannelOptions(BaseModel):
    """The channel that every user is subscribed to by the server: `#<user id>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(False, description="Subscribe each user to a personal channel, `#<user id>`")
    personal_channel_namespace: str = Field(
        "", description="Namespace of the personal channels, which must be set up; unset = none"
    )
    single_connection: bool = Field(
        False, description="A new connection of a user closes the user's others (3504)"
    )


class ClientOptions(BaseModel):
    """Limits and rules of client connections (`BONGSU_CLIENT__*`). Sizes in bytes, durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    insecure: bool = Field(
        False,
        description="Development only: anybody may connect and do everything on all channels; --dev does not "
        "imply it",
    )
    allow_anonymous_connect_without_token: bool = Field(
        False, description="Clients without a token may connect, as the anonymous user"
    )
    disallow_anonymous_connection_tokens: bool = Field(
        False, description="Refuse connection tokens without a user id (3507)"
    )
    queue_max_size: int = Field(
        1024 * 1024, gt=0, description="Unsent bytes above which a client counts as slow and is closed (3008)"
    )
    slow_timeout: float = Field(
        5.0, gt=0, description="Seconds a paused client may make no progress before it counts as slow (3008)"
    )
    drain_timeout: float = Field(
        5.0, gt=0, description="Seconds a closed client is given to read what was sent before it is cut off"
    )
    ping_interval: float = Field(25.0, ge=0, description="Time between two pings; 0 = none are sent")
    pong_timeout: float = Field(
        8.0,
        ge=0,
        description="Time a client has to answer a ping, then it is closed (3012); less than ping_interval; "
        "0 = it need not",
    )
    stale_close_delay: float = Field(
        10.0, gt=0, description="Time a client has to send a connect command, then it is closed (3502)"
    )
    expired_close_delay: float = Field(
        25.0,
        ge=0,
        description="Seconds a client may stay after its token has expired, then it is closed (3005)",
    )
    expired_sub_close_delay: float = Field(
        25.0, ge=0, description="Time a subscription lasts on after its token has expired (2501, 3006)"
    )
    concurrency: int = Field(
        1,
        ge=1,
        le=64,
        description="History, presence and rpc commands of one connection that may wait for their answers at "
        "the same time; publish commands that follow each other count as one",
    )
    channel_limit: int = Field(128, gt=0, description="Most subscriptions of one connection (106, 3505)")
    user_connection_limit: int = Field(
        0, ge=0, description="Most connections of one user to one replica (3504); 0 = no limit"
    )
    connection_limit: int = Field(
        0, ge=0, description="Most connections to one replica, others are answered 503; 0 = no limit"
    )
    channel_position_check_delay: float = Field(
        40.0,
        gt=0,
        description="Time without a publication after which a channel's position is looked up; where more "
        "than a thousand have their time in one second, some have it later",
    )
    history_max_publication_limit: int = Field(
        300, gt=0, description="Most publications a client gets from one look into the history"
    )
    recovery_max_publication_limit: int = Field(
        300, gt=0, description="Most publications a client recovers; one that missed more is told so"
    )
    connect_include_server_time: bool = Field(
        False, description="Tell clients the server's time when they connect"
    )
    subscribe_to_user_personal_channel: PersonalChannelOptions = Field(
        PersonalChannelOptions(), description="Personal channels"
    )
    subscription_token: SubscriptionTokenOptions = Field(
        SubscriptionTokenOptions(), description="Subscription tokens, where they have keys of their own"
    )

    @model_validator(mode="after")
    def _combinations(self) -> ClientOptions:
        if self.ping_interval and self.pong_timeout >= self.ping_interval:
            raise ValueError(
                "pong_timeout must be less than ping_interval, or the next ping hides a missing pong"
            )
        personal = self.subscribe_to_user_personal_channel
        if not personal.enabled and (personal.personal_channel_namespace or personal.single_connection):
            raise ValueError(
                "subscribe_to_user_personal_channel has no effect until its option enabled is true"
            )
        return self


class Socket(Protocol):
    """What a client needs of its transport. All synchronous; none of it raises when the peer is gone."""

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write all of `chunks`, in order. May call the owner's `paused` before it returns."""
        ...

    def unacknowledged(self) -> int:
        """Bytes written that the peer has not acknowledged; where nobody knows, that were not taken yet."""
        ...

    def close(self, code: int, reason: str, *, within: float) -> None:
        """A close frame after all that was written; cut the connection after `within` seconds."""
        ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Desk(Protocol):
    """What a client needs of the hub it belongs to."""

    def dirty(self, client: Client) -> None:
        """`client` has something pending: flush it at the end of this read, or of this loop turn."""
        ...

    def watch(self, client: Client) -> None:
        """`client` is paused: look after its progress."""
        ...

    def overflowed(self, client: Client) -> None:
        """`client`'s backlog is over its bound: close it, but not inside the fan-out."""
        ...

    def dropped(self, policy: Policy) -> None:
        """A publication for a client that is paused was given up."""
        ...


class _Closed(list[bytes]):
    """The outbox after the close: nothing follows it."""

    def append(self, chunk: bytes) -> None:
        pass


_CLOSED = _Closed()

_ids = itertools.count(1)


class Client:
    """One connection, from before its handshake is answered until it is gone."""

    __slots__ = (
        "_desk",
        "_gone",
        "_options",
        "_socket",
        "closed_with",
        "id",
        "lost_position",
        "paused_since",
        "pending",
        "principal",
        "unacknowledged_then",
    )

    def __init__(
        self,
        socket: Socket,
        desk: Desk,
        options: ClientOptions,
        principal: Principal,
        gone: Callable[[], None],
    ) -> None:
        """`gone` is called once, when the client must be forgotten (closed by us, or the connection lost)."""
        self.id = next(_ids)
        self.principal = principal
        self.pending: tuple[bytes, ...] | list[bytes] | Backlog | None = None
        self.closed_with: Disconnect | None = None
        self.lost_position: Callable[[str], None] | None = None
        """Told the name of a channel in which this client has missed something that cannot be had."""
        self.paused_since = 0.0
        self.unacknowledged_then = 0
        self._socket = socket
        self._desk = desk
        self._options = options
        self._gone: Callable[[], None] | None = gone

    # Out

    def emit(self, chunk: bytes) -> None:
        """Send `chunk` after everything emitted before. Never blocks; may make the client slow."""
        pending = self.pending
        if pending is None:
            self.pending = (chunk,)
            self._desk.dirty(self)
        elif isinstance(pending, tuple):
            self.pending = [*pending, chunk]
        else:
            pending.append(chunk)

    def flush(self) -> None:
        """One write of all that is pending. Called by the hub."""
        pending = self.pending
        if type(pending) is tuple or type(pending) is list:
            # Clean before the write: the write itself may pause us, and start a backlog.
            self.pending = None
            self._socket.write(pending)

    def close(self, disconnect: Disconnect) -> None:
        """Say why, and end the connection. What is pending is sent first, unless the client is slow."""
        if self.closed_with is not None:
            return
        self.closed_with = disconnect
        pending, self.pending = self.pending, _CLOSED
        chunks = pending.chunks() if isinstance(pending, Backlog) else pending
        if chunks and disconnect is not SLOW:
            self._socket.write(chunks)
        self._socket.close(disconnect.code, disconnect.reason, within=self._options.drain_timeout)
        self._leave()

    # Slow or not

    def paused(self) -> None:
        """The socket takes no more: collect, within the bound."""
        waiting = self.pending
        if self.closed_with is not None or isinstance(waiting, Backlog):
            return
        desk = self._desk
        backlog = Backlog(
            self._options.queue_max_size, over=lambda: desk.overflowed(self), on_drop=desk.dropped
        )
        self.pending = backlog
        for chunk in waiting or ():
            backlog.append(chunk)
        self.paused_since = time.monotonic()
        self.unacknowledged_then = self._socket.unacknowledged()
        self._desk.watch(self)

    def resumed(self) -> None:
        """The socket takes bytes again: one write of the whole backlog."""
        backlog = self.pending
        if isinstance(backlog, Backlog):
            self.pending = None
            if chunks := backlog.chunks():
                self._socket.write(chunks)

    @property
    def backlog(self) -> Backlog | None:
        """What waits while the socket takes no more; None: it does."""
        return self.pending if isinstance(self.pending, Backlog) else None

    def is_stuck(self, now: float) -> bool:
        """Paused for `slow_timeout` without one byte of progress. Call about twice a second while paused."""
        unacknowledged = self._socket.unacknowledged()
        if unacknowledged < self.unacknowledged_then:
            self.paused_since = now
        self.unacknowledged_then = unacknowledged
        return now - self.paused_since >= self._options.slow_timeout

    # In

    def pause_reading(self) -> None:
        """Take no more commands from this client for now."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    # The end

    def lost(self) -> None:
        """The connection is gone."""
        if self.closed_with is None:
            self.pending = _CLOSED
        self._leave()

    def _leave(self) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()
