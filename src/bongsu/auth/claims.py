"""What a token says: parsing it, and the claims of connection and subscription tokens.

Nothing here believes a token; `bongsu.auth.verifier` does, after its signature. Source: RFC 7515 (compact
serialization), RFC 7519 (registered claims) and the Centrifuge client protocol for the others.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

# A token comes in one message of at most 64 KiB; nothing longer is looked at.
MAX_TOKEN_LENGTH: Final = 65_536

_STRING_OR_SPACE: Final = re.compile(rb'("(?:[^"\\]|\\.)*+")|[ \t\r\n]++')


class TokenError(Exception):
    """A token was not accepted. `reason` is for the log: it never holds the token or a part of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidToken(TokenError):
    """The token is malformed, badly signed, or of the wrong kind, issuer or audience. Final."""


class TokenExpired(TokenError):
    """The token is genuine, but its `exp` has passed or its `nbf` has not come. A new one helps."""


class KeysUnavailable(TokenError):
    """Nobody can tell now: the key set could not be read, or not again so soon. Trying again helps."""


class ChannelOverride(msgspec.Struct, frozen=True):
    """Options of the channel's namespace that a token replaces; None leaves them as they are."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None


class ServerSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """A channel that a connection token subscribes its connection to. Bytes are as in `ConnectionToken`."""

    info: bytes = b""
    data: bytes = b""
    override: ChannelOverride = ChannelOverride()


class ConnectionToken(msgspec.Struct, frozen=True, kw_only=True):
    """Who connects, for how long, and what to.

    `user` is "" for an anonymous user. `expire_at` is the Unix time in seconds at which the *connection*
    ends without a refresh; None = never. `info` is JSON as the token has it, without white space, or exactly
    the bytes of `b64info`, which may be anything: check them before they go into a JSON frame. `meta` is
    JSON. Both are b"" when absent or null. `subs` maps channel to subscription.
    """

    user: str
    expire_at: float | None = None
    info: bytes = b""
    meta: bytes = b""
    subs: dict[str, ServerSubscription] = {}


class SubscriptionToken(msgspec.Struct, frozen=True, kw_only=True):
    """Which user may subscribe to which channel. Fields as in `ConnectionToken`.

    The caller compares `user`, `channel` and, unless "", `client` with the connection's.
    """

    user: str
    channel: str
    client: str = ""
    expire_at: float | None = None
    info: bytes = b""
    data: bytes = b""
    override: ChannelOverride = ChannelOverride()


class Header(msgspec.Struct, frozen=True):
    """The members of a JOSE header that count. `jku`, `jwk`, `x5u` and `x5c` do not: they name the signer's
    own keys, and believing them would let anybody sign."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    b64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Value(msgspec.Struct, frozen=True):
    value: bool


class _Override(msgspec.Struct, frozen=True):
    presence: _Value | None = None
    join_leave: _Value | None = None
    force_push_join_leave: _Value | None = None
    force_recovery: _Value | None = None
    force_positioning: _Value | None = None

    def plain(self) -> ChannelOverride:
        return ChannelOverride(
            *(option and option.value for option in msgspec.structs.astuple(self)),
        )


class _Subscription(msgspec.Struct, frozen=True):
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: _Override | None = None

    def plain(self) -> ServerSubscription:
        return ServerSubscription(
            info=_payload("info", self.info, self.b64info),
            data=_payload("data", self.data, self.b64data),
            override=(self.override or _Override()).plain(),
        )


class Claims(msgspec.Struct, frozen=True):
    """The claims of both kinds of token, by their types; null counts as absent."""

    exp: float | None = None
    nbf: float | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    expire_at: float | None = None
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    channels: list[str] | None = None
    subs: dict[str, _Subscription] | None = None
    meta: msgspec.Raw = msgspec.Raw()
    channel: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: _Override | None = None
    client: str | None = None

    def audiences(self) -> list[str]:
        return [self.aud] if isinstance(self.aud, str) else self.aud or []

    def connection(self, user: str) -> ConnectionToken:
        """Raises `InvalidToken` when this is no connection token."""
        if self.channel:
            raise InvalidToken("a subscription token is not a connection token")
        subs = self.subs or dict.fromkeys(self.channels or (), _Subscription())
        if "" in subs:
            raise InvalidToken("a channel has no name")
        return ConnectionToken(
            user=user,
            expire_at=self._session_end(),
            info=_payload("info", self.info, self.b64info),
            meta=_payload("meta", self.meta, None),
            subs={channel: sub.plain() for channel, sub in subs.items()},
        )

    def subscription(self, user: str) -> SubscriptionToken:
        """Raises `InvalidToken` when this is no subscription token."""
        if not self.channel:
            raise InvalidToken("a subscription token names its channel")
        return SubscriptionToken(
            user=user,
            channel=self.channel,
            client=self.client or "",
            expire_at=self._session_end(),
            info=_payload("info", self.info, self.b64info),
            data=_payload("data", self.data, self.b64data),
            override=(self.override or _Override()).plain(),
        )

    def _session_end(self) -> float | None:
        """`expire_at` replaces `exp` for what the token opens; its 0 means never."""
        if self.expire_at is None:
            return self.exp
        if self.expire_at < 0:
            raise InvalidToken("expire_at is negative")
        return self.expire_at or None


_HEADER: Final = msgspec.json.Decoder(Header)
_CLAIMS: Final = msgspec.json.Decoder(Claims)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPTIONAL_STRING: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)


class ParsedToken(NamedTuple):
    """A token taken apart, not yet believed. `signed` is what `signature` is over."""

    header: Header
    claims: Claims
    user: str
    signed: bytes
    signature: bytes


def parse_token(token: str, user_id_claim: str) -> ParsedToken:
    """Raises `InvalidToken` for anything but three canonical base64url parts with well-typed JSON in two."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise InvalidToken(f"longer than {MAX_TOKEN_LENGTH} characters")
    parts = token.split(".")
    if len(parts) != 3:
        raise InvalidToken("not of the form header.claims.signature")
    header = _header(parts[0])
    payload, signature = _base64url(parts[1]), _base64url(parts[2])
    claims = _json(payload, _CLAIMS, "claims")
    user = _json(payload, _OBJECT, "claims").get(user_id_claim, msgspec.Raw(b"null"))
    return ParsedToken(
        header=header,
        claims=claims,
        user=_json(bytes(user), _OPTIONAL_STRING, "user id claims") or "",
        signed=token.rpartition(".")[0].encode("ascii"),
        signature=signature,
    )


@lru_cache(maxsize=16)  # of one issuer's tokens all headers are alike
def _header(part: str) -> Header:
    header = _json(_base64url(part), _HEADER, "header's members")
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise InvalidToken("the header asks for an extension that is not supported")
    return header


def _base64url(part: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise InvalidToken("a part is not base64url") from None
    # Python's decoder skips what it does not know. Only the canonical form may pass, so that nobody can
    # change a token's text without changing what it says.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode("ascii", "replace"):
        raise InvalidToken("a part is not base64url")
    return data


def _json(data: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    try:
        data.decode("utf-8")  # msgspec.Raw would let other bytes through, and into the frames of clients
        return decoder.decode(data)
    except UnicodeDecodeError:
        raise InvalidToken(f"the {what} are not UTF-8") from None
    except RecursionError:
        raise InvalidToken(f"the {what} are nested too deeply") from None
    except msgspec.MsgspecError as error:  # names the place and the types, never the value
        raise InvalidToken(f"the {what} are not what they should be: {error}") from None


def _payload(name: str, raw: msgspec.Raw, b64: str | None) -> bytes:
    if not (raw or b64):
        return b""
    if b64:
        try:
            return base64.b64decode(b64, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidToken(f"b64{name} is not base64") from None
    compact = _STRING_OR_SPACE.sub(rb"\1", bytes(raw))
    return b"" if compact == b"null" else compact
