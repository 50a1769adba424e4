"""What one connection may do next, as the protocol has it: bytes are the codec's, work is the node's.

The session judges each command by what the connection is by now, and says what to do as actions. Commands of
a connection are received one after another, each after the actions of the one before it were performed; what
came of them, the node tells by the methods that are named after events. Time is an argument everywhere, in
seconds of a monotonic clock, also for expiries.

Source: the Centrifuge client protocol, §2.5 "Ping/pong", §4 "Connection life cycle", §5 "Subscriptions".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import ceil
from typing import Final

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
from bongsu.protocol.errors import Disconnect, Error
from bongsu.protocol.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    PublishRequest,
    RefreshRequest,
    RefreshResult,
    Reply,
    Request,
    RPCRequest,
    SendRequest,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    UnsubscribeRequest,
    UnsubscribeResult,
)

DELTA_TYPES: Final = frozenset({"", "fossil"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """Limits of a session. Durations in seconds; 0 for `ping_interval` or `pong_timeout` switches it off."""

    ping_interval: float = 25.0
    pong_timeout: float = 8.0
    stale_close_delay: float = 10.0
    expired_close_delay: float = 25.0
    expired_sub_close_delay: float = 25.0
    channel_limit: int = 128
    channel_max_length: int = 255  # bytes

    def __post_init__(self) -> None:
        if self.ping_interval and self.pong_timeout >= self.ping_interval:
            raise ValueError(
                "pong_timeout must be less than ping_interval: the next ping would hide a missing pong"
            )


class _State(Enum):
    ACCEPTED = auto()
    AUTHENTICATING = auto()
    REFUSED = auto()  # connect was answered with an error: whatever comes next closes
    CONNECTED = auto()
    CLOSED = auto()


@dataclass(slots=True)
class _Subscription:
    server_side: bool
    live: bool = False  # False while it is only reserved
    refreshable: bool = False


class Session:
    """What one connection may do next. Knows the protocol; knows no socket, no broker, no clock."""

    __slots__ = (
        "_close_at",
        "_expiring",
        "_is_heard",
        "_options",
        "_ping_at",
        "_pong_by",
        "_pongs_due",
        "_refreshable",
        "_state",
        "_subscriptions",
        "is_closed",
    )

    def __init__(self, options: SessionOptions, *, now: float) -> None:
        self._options = options
        self._state = _State.ACCEPTED
        self.is_closed = False
        self._close_at: float | None = now + options.stale_close_delay  # stale, then expiry
        self._ping_at: float | None = None
        self._pong_by: float | None = None
        self._pongs_due = 0
        self._is_heard = True
        self._refreshable = False
        self._subscriptions: dict[str, _Subscription] = {}
        self._expiring: dict[str, float] = {}  # channel -> when its subscription ends unless refreshed

    # ---- what the client says

    def receive(self, command: Command, *, now: float) -> list[Action]:
        """What to do about `command`. After a close, nothing any more.

        A deadline that the node's timer has not come to yet holds here too.
        """
        if self._state is _State.CLOSED:
            return []
        if self._close_at is not None and now >= self._close_at:
            return self._time_out()
        request = command.request
        if self._state is not _State.CONNECTED:
            if self._state is _State.ACCEPTED and command.id and isinstance(request, ConnectRequest):
                self._state = _State.AUTHENTICATING
                return [Authenticate(command.id, request)]
            return self.close(errors.BAD_REQUEST)
        if _is_pong(command):
            return [] if self.take_pong(command) else self.close(errors.BAD_REQUEST)
        return self._command(command.id, request)

    def take_pong(self, command: Command) -> bool:
        """Whether `command` answers a ping; it is done with then. Ask when it is read: it waits for no turn.

        However late it is: it may have waited, unread, behind a loop that was busy, and clients must not pay
        for that.
        """
        if not (self._pongs_due and _is_pong(command)):
            return False
        self._pongs_due -= 1
        self._pong_by = None
        return True

    def heard(self, is_heard: bool, *, now: float) -> None:
        """Whether what the client says is read now. While it is not, a pong may lie there: none is missed."""
        self._is_heard = is_heard
        waits = is_heard and self._pongs_due and self._options.pong_timeout
        self._pong_by = now + self._options.pong_timeout if waits else None

    def publishes(self, command: Command) -> bool:
        """Whether `command`, if received now, is performed as a publication: not answered here, no close."""
        request = command.request
        return (
            isinstance(request, PublishRequest)
            and self._state is _State.CONNECTED
            and bool(command.id and request.channel)
            and not request.type
        )

    def _command(self, id: int, request: Request | None) -> list[Action]:
        match request:
            case None | ConnectRequest():
                return self.close(errors.BAD_REQUEST)
            case RPCRequest() | SendRequest():
                return [Perform(id, request)]
            case RefreshRequest(token=token):
                if not token or not self._refreshable:
                    return self.close(errors.BAD_REQUEST)
                return [RefreshConnection(id, token)]
        if not request.channel:
            return self.close(errors.BAD_REQUEST)
        match request:
            case SubscribeRequest():
                return self._subscribe(id, request)
            case UnsubscribeRequest(channel=channel):
                if channel in self._subscriptions:
                    return [Unsubscribe(id, channel)]
                return [Send(Reply(id, UnsubscribeResult()))]
            case SubRefreshRequest():
                return self._refresh_subscription(id, request)
            case PublishRequest(type=kind) if kind:  # into a map, which we do not have
                return [_error(id, errors.ERROR_NOT_AVAILABLE)]
            case _:
                return [Perform(id, request)]

    def _subscribe(self, id: int, request: SubscribeRequest) -> list[Action]:
        # The order of these checks is the protocol's.
        if len(request.channel.encode()) > self._options.channel_max_length:
            return [_error(id, errors.ERROR_BAD_REQUEST)]
        if request.delta not in DELTA_TYPES:
            return self.close(errors.BAD_REQUEST)
        if request.type:  # maps and shared polls, which we do not have: the namespace is one of streams
            refusal: Error | None = self._refusal(request.channel) or errors.ERROR_PERMISSION_DENIED
        else:
            refusal = self.reserve(request.channel, server_side=False)
        return [Subscribe(id, request) if refusal is None else _error(id, refusal)]

    def _refresh_subscription(self, id: int, request: SubRefreshRequest) -> list[Action]:
        subscription = self._subscriptions.get(request.channel)
        if subscription is None or not subscription.live:
            return [_error(id, errors.ERROR_PERMISSION_DENIED)]
        if request.type:  # tracking keys of a shared poll
            return [_error(id, errors.ERROR_NOT_AVAILABLE)]
        if not subscription.refreshable:
            return self.close(errors.BAD_REQUEST)
        if not request.token:
            return [_error(id, errors.ERROR_BAD_REQUEST)]
        return [RefreshSubscription(id, request.channel, request.token)]

    # ---- what the node found

    def connected(
        self, id: int, result: ConnectResult, *, now: float, jitter: float, expires_at: float | None = None
    ) -> list[Action]:
        """The client is who it says. `result.ping` and `result.pong` are set here, as pings will be sent.

        `expires_at` is when the connection runs out; the client refreshes it itself when `result.expires`.
        `jitter`, in [0, 1), places the first ping, so that many that connect at once are not pinged at once.
        """
        if self._state is not _State.AUTHENTICATING:
            return []  # closed while the node was busy
        self._state = _State.CONNECTED
        self._refreshable = result.expires
        self.expire_at(expires_at)
        interval = self._options.ping_interval
        if interval:
            self._ping_at = now + interval / 2 * (1 + jitter)
        result.ping = ceil(interval)
        result.pong = bool(interval and self._options.pong_timeout)
        return [Send(Reply(id, result))]

    def refused(self, id: int, error: Error) -> list[Action]:
        """Connect is answered with `error`. The client closes; if it does not, the stale timer does."""
        if self._state is not _State.AUTHENTICATING:
            return []
        self._state = _State.REFUSED
        return [_error(id, error)]

    def close(self, disconnect: Disconnect) -> list[Action]:
        """The end, for whatever reason. Only the first call has an effect. `channels` stay, to be left."""
        if self._state is _State.CLOSED:
            return []
        self._state = _State.CLOSED
        self.is_closed = True
        self._close_at = self._ping_at = self._pong_by = None
        self._expiring.clear()
        return [Close(disconnect)]

    def refreshed(self, id: int, result: RefreshResult, *, expires_at: float | None) -> list[Action]:
        """The connection token was good. `expires_at` as in `connected`."""
        if self._state is not _State.CONNECTED:
            return []
        self._refreshable = result.expires
        self.expire_at(expires_at)
        return [Send(Reply(id, result))]

    def expire_at(self, expires_at: float | None) -> None:
        """The connection now runs out at `expires_at`, or never. Closed a while later, unless refreshed."""
        if self._state is _State.CONNECTED:
            self._close_at = None if expires_at is None else expires_at + self._options.expired_close_delay

    def reserve(self, channel: str, *, server_side: bool) -> Error | None:
        """Take a place for `channel`, before anything else about it; the error says why there is none."""
        refusal = self._refusal(channel)
        if refusal is None:
            self._subscriptions[channel] = _Subscription(server_side)
        return refusal

    def _refusal(self, channel: str) -> Error | None:
        if channel in self._subscriptions:
            return errors.ERROR_ALREADY_SUBSCRIBED
        if len(self._subscriptions) >= self._options.channel_limit:
            return errors.ERROR_LIMIT_EXCEEDED
        return None

    def subscribed(self, channel: str, *, refreshable: bool = False, expires_at: float | None = None) -> bool:
        """The reserved `channel` is live. `refreshable`: the client renews it itself, by `sub_refresh`.

        False when the connection closed meanwhile: undo the subscription.
        """
        if self._state is _State.CLOSED:
            return False
        subscription = self._subscriptions[channel]
        subscription.live = True
        subscription.refreshable = refreshable
        if expires_at is None:
            self._expiring.pop(channel, None)
        else:
            self._expiring[channel] = expires_at + self._options.expired_sub_close_delay
        return True

    def unsubscribed(self, channel: str) -> None:
        """`channel` is left, or a reservation given back."""
        self._subscriptions.pop(channel, None)
        self._expiring.pop(channel, None)

    def subscription_refreshed(
        self, id: int, channel: str, result: SubRefreshResult, *, expires_at: float | None
    ) -> list[Action]:
        """The subscription token was good. The channel may have been left while it was verified."""
        if not self.is_subscribed(channel):
            return [_error(id, errors.ERROR_PERMISSION_DENIED)]
        if not self.subscribed(channel, refreshable=result.expires, expires_at=expires_at):
            return []
        return [Send(Reply(id, result))]

    def is_subscribed(self, channel: str) -> bool:
        """Whether `channel` is live on this connection, client-side or server-side."""
        subscription = self._subscriptions.get(channel)
        return subscription is not None and subscription.live

    def is_server_side(self, channel: str) -> bool:
        """Whether `channel` was subscribed by the server: what ends it then ends the connection."""
        subscription = self._subscriptions.get(channel)
        return subscription is not None and subscription.server_side

    @property
    def channels(self) -> list[str]:
        """The channels that are reserved or live."""
        return list(self._subscriptions)

    # ---- what time does

    @property
    def deadline(self) -> float | None:
        """When `tick` is due, if ever; it may have moved after any call."""
        earliest = min(self._expiring.values()) if self._expiring else None
        for at in (self._close_at, self._ping_at, self._pong_by):
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        return earliest

    def tick(self, *, now: float) -> list[Action]:
        """What is due at `now`. Early and repeated calls do no harm."""
        if self._close_at is not None and now >= self._close_at:
            return self._time_out()
        if self._pong_by is not None and now >= self._pong_by:
            return self.close(errors.NO_PONG)
        actions: list[Action] = []
        for channel, ends_at in list(self._expiring.items()):
            if now < ends_at:
                continue
            if self._subscriptions[channel].server_side:
                return self.close(errors.SUBSCRIPTION_EXPIRED)
            del self._expiring[channel]
            actions.append(ExpireSubscription(channel))
        if self._ping_at is not None and now >= self._ping_at:
            self._ping_at = now + self._options.ping_interval
            if self._options.pong_timeout:
                self._pongs_due += 1
                self._pong_by = now + self._options.pong_timeout if self._is_heard else None
            else:
                self._pongs_due = 1
            actions.append(Ping())
        return actions

    def _time_out(self) -> list[Action]:
        connected = self._state is _State.CONNECTED
        return self.close(errors.CONNECTION_EXPIRED if connected else errors.STALE)


def _is_pong(command: Command) -> bool:
    return not command.id and not isinstance(command.request, SendRequest)


def _error(id: int, error: Error) -> Send:
    return Send(Reply(id, error))
