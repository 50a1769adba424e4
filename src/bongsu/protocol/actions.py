"""What a session asks its node to do: one action after another, in order.

"Then call" names methods of the session: they tell it what came of the action.
"""

from __future__ import annotations

import msgspec

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


class Send(msgspec.Struct, frozen=True):
    """Write this reply."""

    reply: Reply


class Ping(msgspec.Struct, frozen=True):
    """Write the codec's ping."""


class Close(msgspec.Struct, frozen=True):
    """Flush what was written, then close. Nothing follows; the session is over."""

    disconnect: Disconnect


class Authenticate(msgspec.Struct, frozen=True):
    """Find out who this is, then call `connected`, `refused`, or `close`."""

    id: int
    request: ConnectRequest


class Subscribe(msgspec.Struct, frozen=True):
    """The channel is reserved. Subscribe, reply and call `subscribed`, or with an error `unsubscribed`."""

    id: int
    request: SubscribeRequest


class Unsubscribe(msgspec.Struct, frozen=True):
    """Leave the channel, after a subscribe of the server's that is in flight; call `unsubscribed`; reply."""

    id: int
    channel: str


class RefreshConnection(msgspec.Struct, frozen=True):
    """Verify the new connection token, then call `refreshed`, or `close`."""

    id: int
    token: str


class RefreshSubscription(msgspec.Struct, frozen=True):
    """Verify the new subscription token, then call `subscription_refreshed`, reply an error, or `close`."""

    id: int
    channel: str
    token: str


class Perform(msgspec.Struct, frozen=True):
    """Do what changes nothing here, and reply (but not to `send`)."""

    id: int
    request: (
        PublishRequest | PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest | SendRequest
    )


class ExpireSubscription(msgspec.Struct, frozen=True):
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
