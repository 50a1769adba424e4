"""Who may come in: origin and credentials of a request, the same for HTTP and for sockets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import structlog

from bongsu.auth import InvalidToken, KeysUnavailable, TokenExpired, TokenVerifier, same_secret
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem

Headers: TypeAlias = Mapping[bytes, bytes]
"""Request headers by lower-case name; of a repeated header the last."""

TOKEN_SUBPROTOCOL = "bongsu.token."
"""A browser can't set headers on a socket: it offers the subprotocols `bongsu` and `bongsu.token.<token>`.

Unlike a query string, they are in no access log.
"""

log = structlog.get_logger("bongsu.node.admission")

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def headers_of(scope: Mapping[str, Any]) -> Headers:
    """The headers of an ASGI scope."""
    return dict(scope["headers"])


class Admission:
    """The rules of this deployment. Each method raises `Problem`."""

    def __init__(
        self,
        *,
        verifier: TokenVerifier | None,
        api_key: str,
        allowed_origins: list[str],
        anonymous: bool,
    ) -> None:
        """`verifier` None: no token is accepted. `anonymous`: without credentials one comes in as user ""."""
        self._verifier = verifier
        self._api_key = api_key
        self._allowed_origins = allowed_origins
        self._anonymous = anonymous

    def check_origin(self, headers: Headers) -> None:
        """A browser's page of another site may not use this user's access. No Origin header: not a
        browser.
        """
        origin = headers.get(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1").lower()
        if _is_own(text, headers.get(b"host", b"").decode("latin-1").lower()):
            return
        if any(fnmatchcase(text, pattern) for pattern in self._allowed_origins):
            return
        raise Problem(
            problems.ORIGIN_NOT_ALLOWED,
            f"Pages of {text[:200]} may not connect here. Allow them with BONGSU_ALLOWED_ORIGINS.",
        )

    def check_method(self, method: str, headers: Headers) -> None:
        """`check_origin` for requests that change something."""
        if method not in _SAFE_METHODS:
            self.check_origin(headers)

    def holds_api_key(self, headers: Headers) -> bool:
        """Whether the request carries the API key (`X-API-Key`, or `Authorization: apikey ...`)."""
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"apikey":
                return False
            given = rest.strip()
        return same_secret(given, self._api_key)

    async def admit(self, headers: Headers, subprotocols: list[str] | None = None) -> Principal:
        """Who asks: the holder of the API key, of a connection token, or (where allowed) anybody.

        Credentials that are given and wrong are refused even where none are needed.
        """
        if b"x-api-key" in headers or headers.get(b"authorization", b"")[:7].lower() == b"apikey ":
            if not self.holds_api_key(headers):
                raise Problem(problems.UNAUTHORIZED, "The API key is not the one of this server.")
            return Principal(trusted=True)
        token = _token(headers, subprotocols or [])
        if token is None:
            if self._anonymous:
                return Principal()
            raise Problem(
                problems.UNAUTHORIZED,
                "A connection token is needed: as `Authorization: Bearer <token>`, or on a socket also as "
                f"the subprotocols `bongsu` and `{TOKEN_SUBPROTOCOL}<token>`.",
            )
        if self._verifier is None:
            raise Problem(problems.UNAUTHORIZED, "This server has no key to check tokens with.")
        try:
            claims = await self._verifier.verify_connection(token, now=time.time())
        except TokenExpired as error:
            log.info("a token was refused", reason=error.reason)
            raise Problem(problems.UNAUTHORIZED, "The token has expired; get a new one.") from None
        except InvalidToken as error:
            log.info("a token was refused", reason=error.reason)
            raise Problem(problems.UNAUTHORIZED, "The token is not valid here.") from None
        except KeysUnavailable as error:
            log.warning("tokens cannot be checked", reason=error.reason)
            raise Problem(
                problems.KEYS_UNAVAILABLE, "The keys to check tokens with cannot be read.", retry_after=1
            ) from None
        return Principal(user=claims.user, expire_at=claims.expire_at)


def _is_own(origin: str, host: str) -> bool:
    """Origin's host (and port) = Host; a default port may be written or left out."""
    if not host or host == "null":
        return False
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return False
    default = 443 if parts.scheme == "https" else 80
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host == f"{name}:{port or default}" or ((port or default) == default and host == name)


def _token(headers: Headers, subprotocols: list[str]) -> str | None:
    scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip().decode("latin-1")
    for subprotocol in subprotocols:
        if subprotocol.startswith(TOKEN_SUBPROTOCOL):
            return subprotocol[len(TOKEN_SUBPROTOCOL) :]
    return None
