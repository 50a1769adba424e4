"""Keys, and the algorithms that each may verify.

A key decides how it is used; a token's `alg` can only agree with it. That rules out the classic attacks:
`none`, and an HMAC computed with a public key as the secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms

_HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512"})
_ALGORITHM_OF_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3
_ALGORITHMS: Final = get_default_algorithms()

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A secret or public key with the JWS algorithms it may be used with, and no others.

    `valid_until` is a Unix time in seconds; None = no end.
    """

    algorithms: frozenset[str]
    material: bytes | PublicKey = field(repr=False)
    valid_until: float | None = None

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether `signature` over `signed` was made with this key by `algorithm`."""
        return algorithm in self.algorithms and _ALGORITHMS[algorithm].verify(
            signed, self.material, signature
        )


class KeySource(Protocol):
    """Where the keys come from."""

    async def find(self, *, kid: str | None, groups: Mapping[str, str], now: float) -> Sequence[VerifyingKey]:
        """The keys that a token may be signed with; none = the token is invalid.

        `kid` is the token's, `groups` what the named groups of the issuer's and audience's regular
        expressions matched, `now` a Unix time in seconds. Raises `KeysUnavailable` when nobody can tell.
        """
        ...


class StaticKeys:
    """Keys from the configuration. A token's `kid` says nothing here."""

    def __init__(self, keys: Sequence[VerifyingKey]) -> None:
        self._keys = tuple(keys)

    async def find(self, *, kid: str | None, groups: Mapping[str, str], now: float) -> Sequence[VerifyingKey]:
        return [key for key in self._keys if key.valid_until is None or now <= key.valid_until]


def hmac_key(secret: str, valid_until: float | None = None) -> VerifyingKey:
    return VerifyingKey(_HMAC_ALGORITHMS, secret.encode(), valid_until)


def public_key(key: object) -> VerifyingKey:
    """Raises `ValueError` for a kind of key, a curve or a length that is not supported."""
    match key:
        case RSAPublicKey():
            if key.key_size < _MIN_RSA_BITS:
                raise ValueError(f"is an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} or more are needed")
            return VerifyingKey(_RSA_ALGORITHMS, key)
        case EllipticCurvePublicKey():
            # RFC 7518 §3.4: one algorithm a curve.
            algorithm = _ALGORITHM_OF_CURVE.get(key.curve.name)
            if algorithm is None:
                raise ValueError(f"is a key on the curve {key.curve.name}; P-256, P-384 or P-521 is needed")
            return VerifyingKey(frozenset({algorithm}), key)
        case Ed25519PublicKey():
            return VerifyingKey(frozenset({"EdDSA"}), key)
        case _:
            raise ValueError("is a key of a kind that is not supported")


def rsa_key_from_pem(pem: str) -> VerifyingKey:
    """Raises `ValueError` when `pem` is not an RSA public key of 2,048 bits or more."""
    key = _public_key_from_pem(pem)
    if not isinstance(key, RSAPublicKey):
        raise ValueError("is not an RSA key")
    return public_key(key)


def ec_key_from_pem(pem: str) -> VerifyingKey:
    """Raises `ValueError` when `pem` is not a public key on P-256, P-384 or P-521."""
    key = _public_key_from_pem(pem)
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("is not an elliptic curve key")
    return public_key(key)


def _public_key_from_pem(pem: str) -> object:
    if "PRIVATE KEY" in pem:
        raise ValueError("is a private key; only the public one belongs here")
    try:
        return load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a PEM public key (-----BEGIN PUBLIC KEY-----)") from None
