"""What a file is, by its first bytes; what its sender calls it counts only where the bytes agree. Pure.

Sources: WHATWG MIME Sniffing §7.1 (markup that a browser may run), §7.2 (text or binary); the signatures of
binary formats are those of `puremagic`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Final

import puremagic

from bongsu.uploads.names import OCTET_STREAM

__all__ = ["HEAD", "is_allowed", "is_utf8", "sniff"]

HEAD: Final = 4096
"""Bytes that are looked at."""

# Possessive, as what follows here: space and comments could be divided in very many ways, and a sender would
# find out.
_SPACE: Final = rb"(?:\xef\xbb\xbf)?+[\t\n\x0c\r ]*+"
_HTML: Final = re.compile(
    _SPACE + rb"<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p)[ >]"
    rb"|" + _SPACE + rb"<!--",
    re.IGNORECASE,
)
_SVG: Final = re.compile(
    _SPACE + rb"(?:<\?xml[^>]*+>|(?><!--.*?-->)|<!doctype svg[^>]*+>|\s)*+<svg[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_XML: Final = re.compile(_SPACE + rb"<\?xml")
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_TEXT_TYPES: Final = re.compile(r"text/.+|application/(?:.+\+)?json")
_SURE: Final = 3  # bytes of a signature below which it proves nothing: two bytes are in many a file


def sniff(head: bytes, declared: str) -> str:
    """The media type of a file that begins with `head` (`HEAD` bytes, or all it has), lower case.

    `declared` (a cleaned media type) is the answer where the bytes may well be that: several formats begin
    in the same way, and text has no signature at all. `application/octet-stream` when nobody can tell.
    """
    head = head[:HEAD]
    # Before anything else: what a browser would run must never pass for something harmless.
    if _SVG.match(head):
        return "image/svg+xml"
    if _HTML.match(head):
        return "text/html"
    if _XML.match(head):
        return "text/xml"
    matches = _matches(head)
    if declared in matches:
        return declared
    if sure := [media_type for media_type, length in matches.items() if length >= _SURE]:
        return sure[0]
    if _BINARY.search(head):
        return OCTET_STREAM
    return declared if _TEXT_TYPES.fullmatch(declared) and declared not in _MARKUP else "text/plain"


def is_utf8(head: bytes) -> bool:
    """Whether a text that begins with `head` (`HEAD` bytes, or all it has) is UTF-8, as far as that tells."""
    head = head[:HEAD]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return True


def is_allowed(media_type: str, patterns: Sequence[str]) -> bool:
    """Whether one of `patterns` (`image/png`, `image/*`) names it; no patterns allow everything."""
    whole = f"{media_type.partition('/')[0]}/*"
    return not patterns or any(pattern in {media_type, whole, "*/*"} for pattern in patterns)


_MARKUP: Final = frozenset({"text/html", "text/xml"})


def _matches(head: bytes) -> dict[str, int]:
    """The formats whose signature fits best, with its length, best first; text formats are none of these."""
    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):  # nothing fits; nothing is there
        return {}
    named = [match for match in found if match.mime_type and not match.mime_type.startswith("text/")]
    best = max((match.confidence for match in named), default=0)
    matches: dict[str, int] = {}
    for match in named:
        if match.confidence == best:
            media_type = match.mime_type.lower()
            matches[media_type] = max(len(match.byte_match), matches.get(media_type, 0))
    return matches
