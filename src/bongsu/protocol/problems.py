"""Errors of our own HTTP endpoints: RFC 9457 problem details, one table.

`/api/*` keeps the server API's own error form and is not here. Every problem carries a stable `code`
that clients may branch on; titles and details are for people and may change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row of the table: `code` (stable), HTTP `status`, `title` (fixed sentence)."""

    code: str
    status: int
    title: str


# When each is raised, and what the caller can do, is said in docs/errors.md; a test compares the two.
BAD_REQUEST: Final = ProblemKind("bad_request", 400, "The request could not be understood")
UNAUTHORIZED: Final = ProblemKind("unauthorized", 401, "Credentials are missing or not accepted")
FORBIDDEN: Final = ProblemKind("forbidden", 403, "Not allowed")
ORIGIN_NOT_ALLOWED: Final = ProblemKind("origin_not_allowed", 403, "This origin is not allowed")
NOT_FOUND: Final = ProblemKind("not_found", 404, "Nothing is here")
METHOD_NOT_ALLOWED: Final = ProblemKind("method_not_allowed", 405, "This method is not allowed here")
UNKNOWN_CHANNEL: Final = ProblemKind("unknown_channel", 404, "The channel's namespace is not configured")
BAD_CHANNEL: Final = ProblemKind("bad_channel", 400, "The channel name is not valid")
VALIDATION: Final = ProblemKind("validation", 422, "A parameter is missing or not valid")
IDEMPOTENCY_KEY_REUSED: Final = ProblemKind(
    "idempotency_key_reused", 422, "This Idempotency-Key was used for another request"
)
FILE_FIELD_MISSING: Final = ProblemKind("file_field_missing", 400, "The form has no file field named “file”")
FILE_NAME_MISSING: Final = ProblemKind("file_name_missing", 400, "The file has no name")
TUS_HEADER_INVALID: Final = ProblemKind("tus_header_invalid", 400, "A tus header is missing or not valid")
CHECKSUM_UNSUPPORTED: Final = ProblemKind("checksum_unsupported", 400, "Checksums of this kind are not taken")
LENGTH_FIXED: Final = ProblemKind("length_fixed", 400, "The upload's length is another one")
PARTS_UNUSABLE: Final = ProblemKind("parts_unusable", 400, "The parts cannot be concatenated")
TOO_MANY_PIECES: Final = ProblemKind("too_many_pieces", 400, "The upload came in too many requests")
MULTIPART_MALFORMED: Final = ProblemKind("multipart_malformed", 400, "The multipart body is malformed")
HEADERS_TOO_LARGE: Final = ProblemKind("headers_too_large", 431, "The request line and headers are too long")
UPLOAD_TOO_LARGE: Final = ProblemKind("upload_too_large", 413, "The file is larger than the limit")
QUOTA_EXCEEDED: Final = ProblemKind("quota_exceeded", 413, "The quota does not allow this upload")
REQUEST_TIMEOUT: Final = ProblemKind("request_timeout", 408, "The request stopped arriving")
REQUEST_TOO_LARGE: Final = ProblemKind("request_too_large", 413, "The request is larger than the limit")
UPLOAD_IS_FINAL: Final = ProblemKind("upload_is_final", 403, "A concatenated upload takes no bytes")
OFFSET_MISMATCH: Final = ProblemKind("offset_mismatch", 409, "The upload goes on at another offset")
EXPIRED: Final = ProblemKind("expired", 410, "The upload was not finished in time and is gone")
TUS_VERSION_UNSUPPORTED: Final = ProblemKind("tus_version_unsupported", 412, "Only tus 1.0.0 is spoken here")
CHECKSUM_MISMATCH: Final = ProblemKind("checksum_mismatch", 460, "The bytes are not those that were sent")
UPLOAD_NOT_STORED: Final = ProblemKind("upload_not_stored", 409, "The upload is not stored yet")
UPGRADE_REQUIRED: Final = ProblemKind("upgrade_required", 426, "This is a WebSocket endpoint")
TYPE_NOT_ALLOWED: Final = ProblemKind("type_not_allowed", 415, "Files of this type are not accepted")
UNSUPPORTED_MEDIA_TYPE: Final = ProblemKind("unsupported_media_type", 415, "This type is not accepted")
RANGE_NOT_SATISFIABLE: Final = ProblemKind("range_not_satisfiable", 416, "The range lies outside the file")
INTERNAL: Final = ProblemKind("internal", 500, "Something broke here; it has been logged")
TOO_MANY_CONNECTIONS: Final = ProblemKind("too_many_connections", 503, "This replica is full; try again")
DRAINING: Final = ProblemKind("draining", 503, "This replica is shutting down; try again")
DEAF: Final = ProblemKind("deaf", 503, "This replica does not hear the others; try again")
BROKER_UNAVAILABLE: Final = ProblemKind("broker_unavailable", 503, "The broker cannot be reached")
STORAGE_UNAVAILABLE: Final = ProblemKind("storage_unavailable", 503, "Storage cannot be reached")
KEYS_UNAVAILABLE: Final = ProblemKind("keys_unavailable", 503, "Tokens cannot be checked at the moment")
DATABASE_UNAVAILABLE: Final = ProblemKind("database_unavailable", 503, "The database cannot be reached")
DISK_FULL: Final = ProblemKind("disk_full", 507, "There is not enough room to store this")


@dataclass(slots=True)
class Problem(Exception):
    """Raise to answer a request with `kind`; `detail` says what was wrong with this one and what to do.

    `retry_after` is in whole seconds and becomes the `Retry-After` header.
    """

    kind: ProblemKind
    detail: str
    retry_after: int | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.code}: {self.detail}"

    def body(self) -> bytes:
        """The problem document (RFC 9457 §3.1) as JSON."""
        return msgspec.json.encode(
            {
                "type": f"urn:bongsu:problem:{self.kind.code}",
                "title": self.kind.title,
                "status": self.kind.status,
                "code": self.kind.code,
                "detail": self.detail,
                **self.extra,
            }
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers that belong to the document, lower-case names."""
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.kind is UNAUTHORIZED:
            headers.append((b"www-authenticate", b'Bearer realm="bongsu"'))
        if self.kind is UPGRADE_REQUIRED:
            headers += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
        return headers
