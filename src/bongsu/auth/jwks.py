"""Keys from a JSON Web Key Set (RFC 7517) that an identity provider serves over HTTP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import httpx
import msgspec
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from bongsu.auth.claims import InvalidToken, KeysUnavailable
from bongsu.auth.keys import VerifyingKey, public_key

MAX_KEY_SET_BYTES: Final = 512 * 1024
MAX_KEYS: Final = 128

Fetch = Callable[[str], Awaitable[bytes]]
"""Reads a URL and returns its body. Raises `FetchError`, and ends within a bounded time."""

_log = structlog.get_logger(__name__)
_READERS: Final = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}


class FetchError(Exception):
    """A key set could not be read, for the reason in the message."""


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None
    d: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


def parse_key_set(body: bytes) -> tuple[dict[str, tuple[VerifyingKey, ...]], list[str]]:
    """The usable keys of a key set by `kid`, and for each key left out the reason why.

    RFC 7517 §5 wants unknown keys ignored, so one odd key does not take the others away. Raises
    `FetchError` when `body` is no key set at all.
    """
    try:
        jwks = msgspec.json.decode(body, type=_Jwks)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise FetchError("what was read is not a key set") from None
    if len(jwks.keys) > MAX_KEYS:
        raise FetchError(f"the key set has more than {MAX_KEYS} keys")
    keys: dict[str, tuple[VerifyingKey, ...]] = {}
    left_out: list[str] = []
    for index, raw in enumerate(jwks.keys):
        try:
            jwk = msgspec.json.decode(raw, type=_Jwk)
            keys[jwk.kid] = (*keys.get(jwk.kid, ()), _key(jwk))
        except (msgspec.MsgspecError, InvalidKeyError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            left_out.append(f"key {index}: {error}")
    return keys, left_out


def _key(jwk: _Jwk) -> VerifyingKey:
    """Raises `ValueError` and what PyJWT's readers raise for a key that must not verify tokens."""
    if jwk.kty not in _READERS:
        raise ValueError("its kty is not RSA, EC or OKP")  # a symmetric key in public is no secret
    if jwk.d is not msgspec.UNSET:
        raise ValueError("it is a private key")  # whoever reads the set could sign with it
    if jwk.use not in (None, "sig") or "verify" not in (jwk.key_ops or ["verify"]):
        raise ValueError("it is not meant for verifying")
    numbers = {name: value for name in ("kty", "crv", "n", "e", "x", "y") if (value := getattr(jwk, name))}
    key = public_key(_READERS[jwk.kty](numbers))
    if jwk.alg is None:
        return key
    if jwk.alg not in key.algorithms:
        raise ValueError("its alg does not go with its kty and crv, or is not supported")
    return replace(key, algorithms=frozenset({jwk.alg}))


class RemoteKeySet:
    """One key set: read when first needed, kept for `ttl`, read again for a `kid` it does not have.

    There is one read at a time, whoever asks, and `retry_delay` between two, so that made-up tokens cannot
    turn this replica against the identity provider. A read that fails leaves the keys in force for one more
    `ttl`: a short outage there is none here. Durations in seconds.
    """

    def __init__(self, url: str, *, ttl: float, retry_delay: float, fetch: Fetch) -> None:
        self._url = url
        self._ttl = ttl
        self._retry_delay = retry_delay
        self._fetch = fetch
        self._keys: dict[str, tuple[VerifyingKey, ...]] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._reading: asyncio.Task[bool] | None = None

    async def find(self, kid: str, *, now: float) -> Sequence[VerifyingKey]:
        """The keys called `kid`; none only if a read that began after the call did not have them.

        Raises `KeysUnavailable` while that cannot be told. A cached or running read may be older than the
        key, and an invalid token ends a client for good: in a key rotation it would hit honest ones.
        """
        if kid in self._keys and _within(self._ttl, self._read_at, now):
            return self._keys[kid]
        certain = await self._read(now)
        if kid in self._keys and _within(2 * self._ttl, self._read_at, now):
            return self._keys[kid]
        if certain:
            return ()
        raise KeysUnavailable("the key set could not be read, or not again so soon")

    async def aclose(self) -> None:
        """End a read that is under way; those who wait for it get `KeysUnavailable`."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read(self, now: float) -> bool:
        """Whether the set was read, successfully, from after this call on."""
        mine = self._reading is None
        if self._reading is None:
            if _within(self._retry_delay, self._tried_at, now):
                return False
            self._tried_at = now
            # A task of its own: the client that caused the read may leave, the others still want the keys.
            self._reading = asyncio.create_task(self._read_once(now), name="read key set")
            self._reading.add_done_callback(self._read_ended)
        reading = self._reading
        await asyncio.wait([reading])
        return mine and not reading.cancelled() and reading.result()

    def _read_ended(self, _: asyncio.Task[bool]) -> None:
        self._reading = None

    async def _read_once(self, now: float) -> bool:
        try:
            keys, left_out = parse_key_set(await self._fetch(self._url))
        except FetchError as error:
            _log.warning("jwks_read_failed", url=_loggable(self._url), reason=str(error))
            return False
        if left_out:
            _log.warning("jwks_keys_left_out", url=_loggable(self._url), reasons=left_out)
        self._keys, self._read_at = keys, now
        return True


class JwksKeys:
    """Keys by `kid` from the key set at `template`, in which `{{name}}` stands for a named group.

    `values` lists what each group may be, so the number of key sets, and who is asked, is fixed beforehand.
    """

    def __init__(
        self,
        template: str,
        values: Mapping[str, frozenset[str]],
        *,
        ttl: float,
        retry_delay: float,
        fetch: Fetch,
    ) -> None:
        self._template = template
        self._values = values
        self._make = partial(RemoteKeySet, ttl=ttl, retry_delay=retry_delay, fetch=fetch)
        self._sets: dict[str, RemoteKeySet] = {}

    async def find(self, *, kid: str | None, groups: Mapping[str, str], now: float) -> Sequence[VerifyingKey]:
        if not kid:
            raise InvalidToken("the header has no kid")
        url = self._template
        for name, values in self._values.items():
            if groups.get(name) not in values:
                raise InvalidToken("the issuer or audience is not one of the listed ones")
            url = url.replace(f"{{{{{name}}}}}", groups[name])
        if url not in self._sets:
            self._sets[url] = self._make(url)
        return await self._sets[url].find(kid, now=now)

    async def aclose(self) -> None:
        for key_set in self._sets.values():
            await key_set.aclose()


def http_fetch(timeout: float) -> Fetch:
    """A `Fetch` over HTTP(S) that takes at most `timeout` seconds and 512 KiB, and follows no redirect.

    Certificates are checked against the system's; OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR name others.
    """
    context: ssl.SSLContext | None = None

    async def fetch(url: str) -> bytes:
        nonlocal context
        try:
            if context is None:  # reads hundreds of certificates: not on the loop, and once
                context = await asyncio.to_thread(ssl.create_default_context)
            async with asyncio.timeout(timeout), httpx.AsyncClient(verify=context, timeout=timeout) as client:
                return await _get(client, url)
        # TimeoutError is an OSError; the last two come from proxies of the environment that httpx cannot use.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError, ValueError) as error:
            raise FetchError(f"{type(error).__name__}: {error}") from None

    return fetch


async def _get(client: httpx.AsyncClient, url: str) -> bytes:
    # Not compressed: the limit below then bounds the memory, too.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:
            raise FetchError(f"answered {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_KEY_SET_BYTES:
                raise FetchError(f"is larger than {MAX_KEY_SET_BYTES} bytes")
        return bytes(body)


def _loggable(url: str) -> str:
    return url.partition("?")[0]  # what follows may be a credential


def _within(duration: float, since: float | None, now: float) -> bool:
    # abs: a wall clock that was set back must not keep old keys alive.
    return since is not None and abs(now - since) < duration
