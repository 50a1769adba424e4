"""Who is there: tokens, and the API key. See docs/tokens.md."""

from __future__ import annotations

from bongsu.auth.api_key import same_secret
from bongsu.auth.claims import (
    ChannelOverride,
    ConnectionToken,
    InvalidToken,
    KeysUnavailable,
    ServerSubscription,
    SubscriptionToken,
    TokenError,
    TokenExpired,
)
from bongsu.auth.options import SubscriptionTokenOptions, TokenOptions
from bongsu.auth.signing import sign_connection_token, sign_subscription_token
from bongsu.auth.verifier import TokenVerifier

__all__ = [
    "ChannelOverride",
    "ConnectionToken",
    "InvalidToken",
    "KeysUnavailable",
    "ServerSubscription",
    "SubscriptionToken",
    "SubscriptionTokenOptions",
    "TokenError",
    "TokenExpired",
    "TokenOptions",
    "TokenVerifier",
    "same_secret",
    "sign_connection_token",
    "sign_subscription_token",
]
