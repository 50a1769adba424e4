"""The stored file as a response: ranges, validators, and headers that keep a browser from running it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.utils import format_datetime
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bongsu.uploads.names import OCTET_STREAM
from bongsu.uploads.ranges import parse_range
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.stores import Reader
from bongsu.uploads.types import HEAD, is_utf8

__all__ = ["content_response"]

_CHUNK: Final = 256 * 1024
# By content, not by the uploader's word. These run no script in any browser, and are shown; the rest are
# plain bytes to be saved.
_SAFE_TYPES: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "audio/mpeg", "video/mp4", "text/plain"}
)


async def content_response(request: Request, record: UploadRecord, reader: Reader) -> Response:
    """The answer to GET or HEAD; takes over `reader` and closes it. Raises `Problem(RANGE_NOT_SATISFIABLE)`.

    Source: RFC 9110 §13 (conditional requests), §14 (ranges).
    """
    try:
        headers = _headers(record)
        if _matches(request.headers.get("if-none-match", ""), headers["etag"]):
            await reader.close()
            return Response(status_code=304, headers=headers)
        start, end, status = 0, reader.size, 200
        wanted = request.headers.get("range", "") if request.method == "GET" else ""
        if wanted and request.headers.get("if-range", headers["etag"]) in (
            headers["etag"],
            headers["last-modified"],
        ):
            chosen = parse_range(wanted, reader.size)
            if chosen is not None:
                (start, end), status = chosen, 206
                headers["content-range"] = f"bytes {start}-{end - 1}/{reader.size}"
        headers["content-length"] = str(end - start)
        if headers["content-type"] == "text/plain" and is_utf8(await reader.read(0, HEAD)):
            # Browsers guess what is not said. What else it may be we do not know either, and say nothing.
            headers["content-type"] = "text/plain; charset=utf-8"
        if request.method == "HEAD":
            await reader.close()
            return Response(status_code=status, headers=headers)
        return _Content(reader, start, end, status, headers)
    except BaseException:
        await reader.close()
        raise


class _Content(StreamingResponse):
    """Streams from a reader and closes it, also when the client leaves before the first byte."""

    def __init__(self, reader: Reader, start: int, end: int, status: int, headers: dict[str, str]) -> None:
        super().__init__(_chunks(reader, start, end), status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reader.close()


async def _chunks(reader: Reader, start: int, end: int) -> AsyncIterator[bytes]:
    while start < end:
        chunk = await reader.read(start, min(_CHUNK, end - start))
        if not chunk:  # shorter than its row says; the declared length then shows it to the client
            return
        start += len(chunk)
        yield chunk


def _headers(record: UploadRecord) -> dict[str, str]:
    assert record.stored_at is not None  # only stored content is served
    safe = record.media_type is not None and record.media_type in _SAFE_TYPES
    return {
        "content-type": record.media_type if safe and record.media_type else OCTET_STREAM,
        "content-disposition": _disposition("inline" if safe else "attachment", record.filename),
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "accept-ranges": "bytes",
        "etag": f'"{record.sha256}"',
        "last-modified": format_datetime(record.stored_at, usegmt=True),
        # Each use asks again: permission to read may have ended, and the answer is a cheap 304.
        "cache-control": "private, no-cache",
    }


def _disposition(kind: str, filename: str) -> str:
    """RFC 6266 §4.3: a plain name for the old, the whole name (RFC 8187) for the rest."""
    plain = (
        filename.encode("ascii", "replace").decode().replace("?", "_").replace("\\", "_").replace('"', "_")
    )
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _matches(if_none_match: str, etag: str) -> bool:
    candidates = {candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")}
    return "*" in candidates or etag in candidates
