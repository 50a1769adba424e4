"""Comparing secrets that clients present."""

from __future__ import annotations

import hashlib
import hmac


def same_secret(given: str | bytes, expected: str | bytes) -> bool:
    """Whether `given` is the secret `expected`, in a time that tells nothing about it. "" matches nothing."""
    # Digests are of one length, so not even the secret's length shows.
    return bool(expected) and hmac.compare_digest(_digest(given), _digest(expected))


def _digest(secret: str | bytes) -> bytes:
    # surrogatepass: any text that a header can hold is compared, none is an error.
    return hashlib.sha256(
        secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    ).digest()
