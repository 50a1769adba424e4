"""Tokens and keys for tests: honest ones made by PyJWT and cryptography, and others put together by hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

NOW = 1_800_000_000.0
SECRET = "a-secret-of-the-tests-that-is-as-long-as-sha-512-wants-it-to-be-64"
OTHER_SECRET = "another-secret-of-the-tests-that-is-as-long-as-sha-512-wants-it-to"

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


@cache
def rsa_key(name: str = "one", bits: int = 2048) -> RSAPrivateKey:
    """One key a name, since making them is slow."""
    return generate_rsa_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(curve: str = "P-256", name: str = "one") -> EllipticCurvePrivateKey:
    curves = {"P-256": SECP256R1(), "P-384": SECP384R1(), "P-521": SECP521R1(), "secp256k1": SECP256K1()}
    return generate_private_key(curves[curve])


@cache
def ed_key(name: str = "one") -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def public_pem(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def jwk(key: PrivateKey, kid: str, **members: object) -> dict[str, Any]:
    """The public half as a member of a key set."""
    match key:
        case RSAPrivateKey():
            numbers = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case EllipticCurvePrivateKey():
            numbers = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case Ed25519PrivateKey():
            numbers = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**numbers, "kid": kid, **members}


def token(
    key: PrivateKey | str = SECRET, alg: str = "HS256", *, kid: str | None = None, **claims: object
) -> str:
    """An honest token, as a backend makes it with PyJWT."""
    return jwt.encode(claims, key, algorithm=alg, headers=None if kid is None else {"kid": kid})


def raw_token(payload: bytes, header: bytes | None = None, secret: bytes = SECRET.encode()) -> str:
    """Any bytes as header and claims, under a good HS256 signature."""
    signed = b64(header if header is not None else b'{"alg":"HS256"}') + "." + b64(payload)
    return signed + "." + b64(hmac.digest(secret, signed.encode(), hashlib.sha256))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def dump(value: object) -> bytes:
    return json.dumps(value).encode()
