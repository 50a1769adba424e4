"""What a session asks its node to do: one action after another, in order.

"Then call" names methods of the session: they tell it what came of the action.
"""

from __future__ import annotations

from dataclasses import dataclass

from bongsu.protocol.errors import Disconnect
from bongsu.protocol.messages import (
    ConnectRequest,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    Reply,
    RPCRequest,
    SendRequest,
    SubscribeRequest,
)


@dataclass(frozen=True, slots=True)
class Send:
    """Write this reply."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Ping:
    """Write the codec's ping."""


@dataclass(frozen=True, slots=True)
class Close:
    """Flush what was written, then close. Nothing follows; the session is over."""

    disconnect: Disconnect


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Find out who this is, then call `connected`, `refused`, or `close`."""

    id: int
    request: ConnectRequest


@dataclass(frozen=True, slots=True)
class Subscribe:
    """The channel is reserved. Subscribe, reply and call `subscribed`, or with an error `unsubscribed`."""

    id: int
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Leave the channel, after a subscribe of the server's that is in flight; call `unsubscribed`; reply."""

    id: int
    channel: str


@dataclass(frozen=True, slots=True)
class RefreshConnection:
    """Verify the new connection token, then call `refreshed`, or `close`."""

    id: int
    token: str


@dataclass(frozen=True, slots=True)
class RefreshSubscription:
    """Verify the new subscription token, then call `subscription_refreshed`, reply an error, or `close`."""

    id: int
    channel: str
    token: str


@dataclass(frozen=True, slots=True)
class Perform:
    """Do what changes nothing here, and reply (but not to `send`)."""

    id: int
    request: (
        PublishRequest | PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest | SendRequest
    )


@dataclass(frozen=True, slots=True)
class ExpireSubscription:
    """A client-side subscription ran out: leave the channel, call `unsubscribed`, push unsubscribe 2501."""

    channel: str


Action = (
    Send
    | Ping
    | Close
    | Authenticate
    | Subscribe
    | Unsubscribe
    | RefreshConnection
    | RefreshSubscription
    | Perform
    | ExpireSubscription
)
