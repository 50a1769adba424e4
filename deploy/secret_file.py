"""Secrets that are made once and kept in a file only their owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["read_or_make_secret"]


def read_or_make_secret(path: Path) -> str:
    """The secret in `path`: 32 random bytes as URL-safe text, made with mode 0600 on the first call."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    secret = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")
    return secret
