"""Making tokens with the shared secret, for `bongsu token`, tests and backends in Python."""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from jwt.algorithms import HMACAlgorithm

_HS256: Final = HMACAlgorithm(HMACAlgorithm.SHA256)


def sign_connection_token(secret: str, *, user: str, now: float, ttl: float | None, **claims: Any) -> str:
    """An HS256 token that lets `user` ("" = anonymous) connect for `ttl` seconds from `now`; None = for good.

    `claims` are further ones, such as `info` or `channels`. Raises `jwt.InvalidKeyError` for a secret that
    cannot be one: empty, or a public key.
    """
    return _sign(secret, {"sub": user, **_times(now, ttl), **claims})


def sign_subscription_token(
    secret: str, *, user: str, channel: str, now: float, ttl: float | None, **claims: Any
) -> str:
    """An HS256 token that lets `user` subscribe to `channel`. The rest as in `sign_connection_token`."""
    return _sign(secret, {"sub": user, "channel": channel, **_times(now, ttl), **claims})


def _times(now: float, ttl: float | None) -> dict[str, int]:
    return {"iat": int(now)} if ttl is None else {"iat": int(now), "exp": int(now + ttl)}


def _sign(secret: str, claims: dict[str, Any]) -> str:
    signed = b".".join(
        _base64url(msgspec.json.encode(part)) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    signature = _HS256.sign(signed, _HS256.prepare_key(secret))
    return b".".join((signed, _base64url(signature))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
