"""The tus protocol's headers, read and written. Pure: no upload is known here, only what is said of one.

Source: tus resumable upload protocol 1.0.0, with the extensions of `EXTENSIONS`. What is refused, and how:

| problem | status | raised for |
|---|---|---|
| `TUS_VERSION_UNSUPPORTED` | 412 | `Tus-Resumable` missing or not 1.0.0 |
| `TUS_HEADER_INVALID` | 400 | a header of tus that is missing, malformed or contradicts another or itself |
| `CHECKSUM_UNSUPPORTED` | 400 | an algorithm that is not in `CHECKSUM_ALGORITHMS` |
| `UNSUPPORTED_MEDIA_TYPE` | 415 | bytes whose `Content-Type` is not `application/offset+octet-stream` |
| `UPLOAD_IS_FINAL` | 403 | bytes for a concatenation |
| `METHOD_NOT_ALLOWED` | 405 | an `X-HTTP-Method-Override` with another method |

What depends on the upload itself (409 for another offset, 410, 413, 460, …) is the service's to raise.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final, NoReturn
from urllib.parse import urlsplit

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads.names import OCTET_STREAM, clean_content_type, clean_filename

__all__ = [
    "CHECKSUM_ALGORITHMS",
    "EXPOSED_HEADERS",
    "EXTENSIONS",
    "MAX_PARTS",
    "MEDIA_TYPE",
    "UNNAMED",
    "VERSION",
    "Append",
    "Checksum",
    "Creation",
    "Metadata",
    "capabilities",
    "check_version",
    "method_of",
    "parse_append",
    "parse_creation",
    "parse_metadata",
    "progress_headers",
    "said_once",
    "state_headers",
]

VERSION: Final = "1.0.0"
EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "checksum",
    "expiration",
    "termination",
    "concatenation",
)
CHECKSUM_ALGORITHMS: Final = ("sha1", "sha256")
MEDIA_TYPE: Final = "application/offset+octet-stream"
UNNAMED: Final = "unnamed"
"""What a file is called whose metadata has no usable name: the protocol asks for none."""

MAX_PARTS: Final = 500
"""Partial uploads that one concatenation may have."""

EXPOSED_HEADERS: Final = (
    "Location",
    "Tus-Resumable",
    "Tus-Version",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Checksum-Algorithm",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Defer-Length",
    "Upload-Metadata",
    "Upload-Concat",
    "Upload-Expires",
    "Retry-After",
)
"""Response headers that clients in pages of other origins have to be able to read (Fetch standard, CORS)."""

_LARGEST: Final = 2**63 - 1  # what the database's column holds
_MAX_METADATA: Final = 8 * 1024  # characters
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)  # bounded: int() of any length is quadratic
# Visible ASCII without the comma: the header's own separators are comma and space.
_KEY: Final = re.compile(r"[!-+\--~]+", re.ASCII)
_PART: Final = re.compile(r"(?:.*/)?files/([0-9a-f]{32})/?", re.ASCII | re.DOTALL)
_OVERRIDES: Final = frozenset({"PATCH", "DELETE", "HEAD"})


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of one request have to hash to. `algorithm` is of `CHECKSUM_ALGORITHMS`."""

    algorithm: str
    digest: bytes

    def hasher(self) -> hashlib._Hash:
        """A running hash of the algorithm, to be fed and then given to `matches`."""
        # Not for security: the client chooses sha1 to find what a bad line did to its bytes.
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def matches(self, hasher: hashlib._Hash) -> bool:
        return hasher.digest() == self.digest


@dataclass(frozen=True, slots=True)
class Metadata:
    """An `Upload-Metadata` header: as it came, to be echoed, and what we read in it."""

    header: str
    values: Mapping[str, bytes]

    @property
    def filename(self) -> str:
        """A cleaned, never empty name: `filename` as most clients call it, or Uppy's `name`."""
        return clean_filename(self._text("filename", "name")) or UNNAMED

    @property
    def content_type(self) -> str:
        """A cleaned media type: `filetype` as most clients call it, or Uppy's `type`."""
        return clean_content_type(self._text("filetype", "type"))

    def _text(self, *keys: str) -> str:
        found = (self.values[key] for key in keys if self.values.get(key))
        return next(found, b"").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Creation:
    """A `POST` that makes an upload."""

    length: int | None
    """Bytes that the upload will have; None: said later (and always for a concatenation)."""
    metadata: Metadata | None
    partial: bool
    """Whether it will be a part of a concatenation."""
    parts: tuple[str, ...]
    """Ids of the partial uploads whose concatenation it is, in order; empty: it is none."""
    with_bytes: bool
    """Whether its first bytes come in the body (creation-with-upload)."""
    checksum: Checksum | None
    """Of these bytes."""

    @property
    def filename(self) -> str:
        return self.metadata.filename if self.metadata else UNNAMED

    @property
    def content_type(self) -> str:
        return self.metadata.content_type if self.metadata else OCTET_STREAM


@dataclass(frozen=True, slots=True)
class Append:
    """A `PATCH` that brings more bytes."""

    offset: int
    length: int | None
    """The upload's length, where it is said only now."""
    checksum: Checksum | None


def method_of(method: str, headers: Mapping[str, str]) -> str:
    """The method that is meant: for clients that can only GET and POST there is a header.

    Only a POST is taken for another method: a GET passes where state-changing requests are checked for
    their origin. Raises `Problem(METHOD_NOT_ALLOWED)`.
    """
    override = headers.get("x-http-method-override")
    if override is None or method != "POST":
        return method
    wanted = override.strip().upper()
    if wanted in {"", "POST"}:
        return method
    if wanted not in _OVERRIDES:
        raise Problem(
            problems.METHOD_NOT_ALLOWED, "X-HTTP-Method-Override may say PATCH, DELETE, HEAD or POST."
        )
    return wanted


def said_once(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The headers by their lower-case names; of other protocols the first of a name.

    Raises `Problem(TUS_HEADER_INVALID)` for one of tus that comes twice and says two things: what a proxy
    goes by, or the client meant, need not be the one that we would take.
    """
    headers: dict[str, str] = {}
    for name, value in fields:
        said = headers.setdefault(name, value)
        if said != value and name.startswith(("upload-", "tus-")):
            _invalid(name.title(), "it comes twice, and says two things")
    return headers


def check_version(headers: Mapping[str, str]) -> None:
    """Every request but OPTIONS and GET says its version. Raises `Problem(TUS_VERSION_UNSUPPORTED)`."""
    said = headers.get("tus-resumable")
    if said is None or said.strip() != VERSION:
        raise Problem(problems.TUS_VERSION_UNSUPPORTED, f"Send the header Tus-Resumable: {VERSION}.")


def parse_creation(headers: Mapping[str, str]) -> Creation:
    """Raises `Problem` as the table above says. Sources: creation, concatenation and checksum extensions."""
    length = _number(headers, "upload-length")
    deferred = _deferred(headers)
    partial, parts = _concat(headers)
    has_body = _has_body(headers)
    if parts:
        if length is not None or deferred:
            _invalid("Upload-Length", "a concatenation is as long as its parts; leave it out")
        if has_body:
            raise Problem(problems.UPLOAD_IS_FINAL, "A concatenation's bytes are those of its parts.")
    elif length is None and not deferred:
        _invalid("Upload-Length", "say how many bytes the upload will have, or Upload-Defer-Length: 1")
    elif length is not None and deferred:
        _invalid("Upload-Defer-Length", "the length is either said or deferred, not both")
    with_bytes = _has_media_type(headers) and not parts
    if has_body and not with_bytes:
        _wrong_type()
    return Creation(
        length=length,
        metadata=parse_metadata(headers["upload-metadata"]) if "upload-metadata" in headers else None,
        partial=partial,
        parts=parts,
        with_bytes=with_bytes,
        checksum=_checksum(headers) if with_bytes else None,
    )


def parse_append(headers: Mapping[str, str]) -> Append:
    """Raises `Problem` as the table above says. Source: core protocol, “PATCH”."""
    if not _has_media_type(headers):
        _wrong_type()
    offset = _number(headers, "upload-offset")
    if offset is None:
        _invalid("Upload-Offset", "say where in the upload these bytes belong")
    return Append(offset, _number(headers, "upload-length"), _checksum(headers))


def parse_metadata(header: str) -> Metadata:
    """`key base64,key base64,key`: keys once each, values optional. Raises `Problem(TUS_HEADER_INVALID)`."""
    if len(header) > _MAX_METADATA:
        _invalid("Upload-Metadata", f"it may have {_MAX_METADATA} characters")
    values: dict[str, bytes] = {}
    # An empty header is what some clients send who have nothing to say.
    for pair in header.split(",") if header.strip() else ():
        key, _, encoded = pair.strip().partition(" ")
        if not _KEY.fullmatch(key):
            _invalid("Upload-Metadata", "a key is one or more ASCII characters, without spaces and commas")
        if key in values:
            _invalid("Upload-Metadata", f"the key {key[:64]!r} comes twice")
        value = _decoded(encoded.strip())
        if value is None:
            _invalid("Upload-Metadata", f"the value of {key[:64]!r} is not Base64")
        values[key] = value
    return Metadata(header, values)


def capabilities(max_size: int) -> dict[str, str]:
    """The headers that answer OPTIONS; `max_size` in bytes."""
    return {
        "Tus-Resumable": VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": ",".join(EXTENSIONS),
        "Tus-Max-Size": str(max_size),
        "Tus-Checksum-Algorithm": ",".join(CHECKSUM_ALGORITHMS),
    }


def progress_headers(*, offset: int | None, expires_at: datetime | None) -> dict[str, str]:
    """What POST, PATCH and HEAD answer. None: nothing is to be said of it."""
    headers = {"Tus-Resumable": VERSION}
    if offset is not None:
        headers["Upload-Offset"] = str(offset)
    if expires_at is not None:
        headers["Upload-Expires"] = format_datetime(expires_at.astimezone(UTC), usegmt=True)
    return headers


def state_headers(
    *,
    offset: int,
    length: int | None,
    metadata: str | None,
    partial: bool,
    parts: Sequence[str],
    expires_at: datetime | None,
) -> dict[str, str]:
    """What HEAD answers of an upload. `metadata` as it came; `parts` are paths of a concatenation's parts."""
    headers = progress_headers(offset=offset, expires_at=expires_at)
    headers["Cache-Control"] = "no-store"
    if length is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(length)
    if metadata is not None:
        headers["Upload-Metadata"] = metadata
    if partial:
        headers["Upload-Concat"] = "partial"
    elif parts:
        headers["Upload-Concat"] = f"final;{' '.join(parts)}"
    return headers


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped) or int(stripped) > _LARGEST:
        _invalid(name.title(), "a whole number of bytes, without a sign")
    return int(stripped)


def _deferred(headers: Mapping[str, str]) -> bool:
    said = headers.get("upload-defer-length")
    if said is not None and said.strip() != "1":
        _invalid("Upload-Defer-Length", "its only value is 1")
    return said is not None


def _concat(headers: Mapping[str, str]) -> tuple[bool, tuple[str, ...]]:
    """Whether it is a part, and of which parts it is the whole."""
    said = headers.get("upload-concat", "").strip()
    if not said or said == "partial":
        return said == "partial", ()
    kind, _, addresses = said.partition(";")
    parts = tuple(_part_id(address) for address in addresses.split())
    if kind.strip() != "final" or not parts:
        _invalid("Upload-Concat", "it is “partial”, or “final;” and the addresses of the parts")
    if len(parts) > MAX_PARTS:
        _invalid("Upload-Concat", f"up to {MAX_PARTS} parts can be concatenated")
    if len(set(parts)) < len(parts):
        _invalid("Upload-Concat", "it names a part twice")
    return False, parts


def _part_id(address: str) -> str:
    # Absolute or relative, and with any host: behind proxies a client's name for us need not be ours.
    try:
        found = _PART.fullmatch(urlsplit(address).path)
    except ValueError:  # such as an IPv6 address without its bracket
        found = None
    if found is None:
        _invalid("Upload-Concat", f"{address[:200]!r} is no address of an upload")
    return found[1]


def _checksum(headers: Mapping[str, str]) -> Checksum | None:
    said = headers.get("upload-checksum")
    if said is None:
        return None
    algorithm, _, encoded = said.strip().partition(" ")
    if algorithm not in CHECKSUM_ALGORITHMS:
        raise Problem(
            problems.CHECKSUM_UNSUPPORTED, f"Use one of {', '.join(CHECKSUM_ALGORITHMS)}, or no checksum."
        )
    digest = _decoded(encoded.strip())
    if digest is None or len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        _invalid("Upload-Checksum", f"after {algorithm} comes its digest in Base64")
    return Checksum(algorithm, digest)


def _has_media_type(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


def _has_body(headers: Mapping[str, str]) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip() != "0"


def _decoded(text: str) -> bytes | None:
    """Base64, with its padding or without, as clients differ; None when it is not."""
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _invalid(header: str, why: str) -> NoReturn:
    raise Problem(problems.TUS_HEADER_INVALID, f"{header}: {why}.")


def _wrong_type() -> NoReturn:
    raise Problem(problems.UNSUPPORTED_MEDIA_TYPE, f"Send the bytes with Content-Type: {MEDIA_TYPE}.")
