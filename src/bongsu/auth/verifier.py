"""Deciding whether a token is to be believed."""

from __future__ import annotations

import re

from bongsu.auth.claims import (
    Claims,
    ConnectionToken,
    InvalidToken,
    ParsedToken,
    SubscriptionToken,
    TokenExpired,
    parse_token,
)
from bongsu.auth.jwks import Fetch, JwksKeys, http_fetch
from bongsu.auth.keys import KeySource, StaticKeys, ec_key_from_pem, hmac_key, rsa_key_from_pem
from bongsu.auth.options import TokenOptions

# Regular expressions see the issuer and audience before the signature is checked, so of anybody's making:
# a bound keeps a slow pattern from becoming a way to stop the loop.
_MAX_MATCHED = 1024


class TokenVerifier:
    """Checks connection and subscription tokens against one set of keys.

    Both methods take the token and `now`, a Unix time in seconds, and raise `InvalidToken`, `TokenExpired`
    or `KeysUnavailable`, nothing else. Checks happen in the protocol's order: form, patterns of issuer and
    audience, signature, issuer and audience, kind, time. So a badly signed token is invalid even when it
    has expired, too.

    `fetch` replaces how key sets are read. Call `aclose` when done.
    """

    def __init__(self, options: TokenOptions, fetch: Fetch | None = None) -> None:
        self._options = options
        self._issuer_regex = re.compile(options.issuer_regex) if options.issuer_regex else None
        self._audience_regex = re.compile(options.audience_regex) if options.audience_regex else None
        self._jwks = _jwks(options, fetch)
        self._keys: KeySource = self._jwks or _static(options)

    async def verify_connection(self, token: str, *, now: float) -> ConnectionToken:
        """What a connection token grants."""
        parsed = await self._genuine(token, now)
        connection = parsed.claims.connection(parsed.user)
        _check_time(parsed.claims, now)
        return connection

    async def verify_subscription(self, token: str, *, now: float) -> SubscriptionToken:
        """What a subscription token grants; whether to this user, channel and client, the caller checks."""
        parsed = await self._genuine(token, now)
        subscription = parsed.claims.subscription(parsed.user)
        _check_time(parsed.claims, now)
        return subscription

    async def aclose(self) -> None:
        """Stop reading key sets."""
        if self._jwks is not None:
            await self._jwks.aclose()

    async def _genuine(self, token: str, now: float) -> ParsedToken:
        parsed = parse_token(token, self._options.user_id_claim)
        header, claims = parsed.header, parsed.claims
        groups = self._match(claims)
        keys = await self._keys.find(kid=header.kid, groups=groups, now=now)
        if not any(key.verifies(header.alg, parsed.signed, parsed.signature) for key in keys):
            raise InvalidToken("no configured key made this signature with this algorithm")
        if self._options.audience and self._options.audience not in claims.audiences():
            raise InvalidToken("it is for another audience")
        if self._options.issuer and self._options.issuer != claims.iss:
            raise InvalidToken("it is from another issuer")
        return parsed

    def _match(self, claims: Claims) -> dict[str, str]:
        """What the named groups of both patterns matched."""
        groups: dict[str, str] = {}
        for pattern, values, what in (
            (self._issuer_regex, [] if claims.iss is None else [claims.iss], "issuer"),
            (self._audience_regex, claims.audiences(), "audience"),
        ):
            if pattern is None:
                continue
            if sum(map(len, values)) > _MAX_MATCHED:
                raise InvalidToken(f"its {what} is longer than {_MAX_MATCHED} characters")
            match = next(filter(None, map(pattern.fullmatch, values)), None)
            if match is None:
                raise InvalidToken(f"it is from or for another {what}")
            groups |= {name: value for name, value in match.groupdict().items() if value is not None}
        return groups


def _check_time(claims: Claims, now: float) -> None:
    if claims.exp is not None and now >= claims.exp:
        raise TokenExpired("exp has passed")
    if claims.nbf is not None and now < claims.nbf:
        raise TokenExpired("nbf has not come")


def _jwks(options: TokenOptions, fetch: Fetch | None) -> JwksKeys | None:
    if options.jwks_public_endpoint is None:
        return None
    return JwksKeys(
        options.jwks_public_endpoint,
        options.jwks_values(),
        ttl=options.jwks_cache_ttl,
        retry_delay=options.jwks_retry_delay,
        fetch=fetch or http_fetch(options.jwks_timeout),
    )


def _static(options: TokenOptions) -> StaticKeys:
    keys = []
    if options.hmac_secret:
        keys.append(hmac_key(options.hmac_secret.get_secret_value()))
    if options.hmac_previous_secret_key:
        keys.append(
            hmac_key(
                options.hmac_previous_secret_key.get_secret_value(),
                options.hmac_previous_secret_key_valid_until,
            )
        )
    if options.rsa_public_key:
        keys.append(rsa_key_from_pem(options.rsa_public_key))
    if options.ecdsa_public_key:
        keys.append(ec_key_from_pem(options.ecdsa_public_key))
    return StaticKeys(keys)
