"""Public keys, and the algorithms that each may verify.

A key decides how it is used; a token's `alg` can only agree with it. That rules out the classic attacks:
`none`, and an HMAC computed with a public key as the secret.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512"})
_ALGORITHM_OF_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_MIN_RSA_BITS: Final = 2048  # RFC 7518 §3.3


def check_rsa_key(key: RSAPublicKey) -> None:
    """Raises `ValueError` for a key too short to be trusted."""
    if key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"is an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} or more are needed")


def ec_algorithm(key: EllipticCurvePublicKey) -> str:
    """The one algorithm that goes with the key's curve (RFC 7518 §3.4); `ValueError` for other curves."""
    algorithm = _ALGORITHM_OF_CURVE.get(key.curve.name)
    if algorithm is None:
        raise ValueError(f"is a key on the curve {key.curve.name}; P-256, P-384 or P-521 is needed")
    return algorithm


def rsa_key_from_pem(pem: str) -> RSAPublicKey:
    """Raises `ValueError` when `pem` is not an RSA public key of 2,048 bits or more."""
    key = _public_key_from_pem(pem)
    if not isinstance(key, RSAPublicKey):
        raise ValueError("is not an RSA key")
    check_rsa_key(key)
    return key


def ec_key_from_pem(pem: str) -> EllipticCurvePublicKey:
    """Raises `ValueError` when `pem` is not a public key on P-256, P-384 or P-521."""
    key = _public_key_from_pem(pem)
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("is not an elliptic curve key")
    ec_algorithm(key)
    return key


def _public_key_from_pem(pem: str) -> object:
    if "PRIVATE KEY" in pem:
        raise ValueError("is a private key; only the public one belongs here")
    try:
        return load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a PEM public key (-----BEGIN PUBLIC KEY-----)") from None
