"""How durations, sizes and lists are written in settings. Pure."""

from __future__ import annotations

import json
import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,18})(?: ?(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB))?", re.ASCII | re.IGNORECASE)
_BYTES: Final = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
# A password may hold anything a careless operator typed, "@" and "/" too: all up to the last "@" goes.
_USERINFO: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s:@/?#]*):([^\s\"']*)@")


def parse_duration(text: str) -> float:
    """`300s`, `5m`, `1.5h`, `500ms`, `30d` or a plain number of seconds -> seconds.

    Raises `ValueError` in words for anything else, also for a sign: no setting is a negative time.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a duration such as 500ms, 30s, 5m or 1h, or a plain number of seconds")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def parse_size(text: str) -> int:
    """`65536`, `64KiB`, `10MiB`, `1GiB` (powers of 1024) or `10MB` (powers of 1000) -> bytes.

    Raises `ValueError` in words for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a size such as 65536, 64KiB, 10MiB or 1GiB")
    return int(found[1]) * _BYTES[(found[2] or "b").lower()]


def parse_list(text: str) -> list[object]:
    """A JSON list, or words separated by commas -> their list.

    Raises `ValueError` in words for text that begins like a JSON list and is none.
    """
    text = text.strip()
    if not text.startswith("["):
        return [word.strip() for word in text.split(",") if word.strip()]
    parsed = parse_json(text)
    if not isinstance(parsed, list):
        raise ValueError('must be a JSON list such as ["one","two"]')
    return parsed


def parse_json(text: str) -> object:
    """Raises `ValueError` in words when `text` is not JSON."""
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError('must be JSON, such as ["one","two"]') from None
    return parsed


def without_password(text: str) -> str:
    """`text` with the password of every URL in it (`redis://user:password@host`) replaced by `***`."""
    return _USERINFO.sub(r"\1\2:***@", text)
