"""The tus endpoints at `/files/`: resumable uploads for clients that speak tus 1.0.0.

Thin: `bongsu.uploads.tus` reads and writes the headers, the service does the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import structlog
from fastapi import APIRouter, BackgroundTasks, Request, Response
from fastapi.routing import APIRoute

from bongsu.api.content import content_response
from bongsu.api.errors import problem_of, problem_responses
from bongsu.api.requests import (
    IDEMPOTENCY_KEY,
    Body,
    ClientGone,
    declared_length,
    idempotency_key,
    owner_of,
    refusal,
)
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem
from bongsu.uploads import tus
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.service import UploadService

__all__ = ["tus_router"]

log = structlog.stdlib.get_logger(__name__)


class _TusRoute(APIRoute):
    """Every answer says its version of tus, refusals too; and a refusal reaches a client that still sends."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except ClientGone:
                log.info("a client left in the middle of an upload")
                response = Response(status_code=400)  # nobody reads it; the server wants one
            except Exception as error:
                problem = problem_of(error)
                if problem is None:
                    raise
                response = refusal(problem, getattr(request.state, "body", None) or Body(request.receive))
                if problem.kind is problems.TUS_VERSION_UNSUPPORTED:
                    response.headers["Tus-Version"] = tus.VERSION
            response.headers["Tus-Resumable"] = tus.VERSION
            return response

        return answer


_OPTIONAL: Final = {"required": False, "schema": {"type": "string"}}
_VERSION: Final = {
    "name": "Tus-Resumable",
    "in": "header",
    "required": True,
    "schema": {"const": tus.VERSION},
}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, **_OPTIONAL}


# Read by `bongsu.uploads.tus`, not by FastAPI, so they are declared here. Not as required ones: what is
# missing is then refused as tus says, and not by the page that shows this document.
_CREATION: Final = [
    _VERSION,
    _header("Upload-Length", "Bytes that the upload will have"),
    _header("Upload-Defer-Length", "1: the length is said later"),
    _header("Upload-Metadata", "Pairs of a key and its value in Base64, such as `filename`, `filetype`"),
    _header("Upload-Concat", "`partial`, or `final;` and the addresses of the parts"),
    IDEMPOTENCY_KEY,
]
_APPEND: Final = [
    _VERSION,
    _header("Upload-Offset", "Where in the upload the bytes belong"),
    _header("Upload-Length", "Bytes that the upload will have, if that was not said before"),
    _header("Upload-Checksum", "`sha1` or `sha256`, and the digest of the body in Base64"),
]
_BYTES: Final = {"content": {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
_NOTED: Final = {"parameters": [_VERSION]}
_ALWAYS: Final = (
    problems.TUS_VERSION_UNSUPPORTED,
    problems.TUS_HEADER_INVALID,
    problems.DATABASE_UNAVAILABLE,
)
_STORING: Final = (problems.STORAGE_UNAVAILABLE, problems.DISK_FULL)
_FOUND: Final = (problems.FORBIDDEN, problems.NOT_FOUND, problems.EXPIRED)
_CREATING: Final = (
    *_ALWAYS,
    problems.UPLOAD_TOO_LARGE,
    problems.IDEMPOTENCY_KEY_REUSED,
    *_STORING,
)
_APPENDING: Final = (
    *_ALWAYS,
    *_FOUND,
    problems.CHECKSUM_UNSUPPORTED,
    problems.UPLOAD_IS_FINAL,
    problems.OFFSET_MISMATCH,
    problems.UPLOAD_TOO_LARGE,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.CHECKSUM_MISMATCH,
    *_STORING,
)


def tus_router(service: UploadService, authorize: Callable[[Request], Awaitable[Principal]]) -> APIRouter:
    """The routes. `authorize` says who asks, and raises `Problem` for whom it does not let in."""
    router = APIRouter(tags=["tus"], route_class=_TusRoute)
    files = _Files(service, authorize)

    def route(path: str, method: str, endpoint: _Endpoint, status: int = 200, **rest: Any) -> None:
        router.add_api_route(
            path, endpoint, methods=[method], status_code=status, response_class=Response, **rest
        )

    route(
        "/files/",
        "POST",
        files.create,
        201,
        openapi_extra={"parameters": _CREATION, "requestBody": _BYTES},
        responses=problem_responses(*_CREATING),
    )
    # A redirect would make the client send its bytes twice.
    route("/files", "POST", files.create, 201, include_in_schema=False)
    route("/files/", "OPTIONS", files.options, 204)
    one = "/files/{upload_id}"
    for path in ("/files", one):
        route(path, "OPTIONS", files.options, 204, include_in_schema=False)
    found = problem_responses(*_ALWAYS, *_FOUND)
    route(one, "HEAD", files.tell, openapi_extra=_NOTED, responses=found)
    route(
        one,
        "PATCH",
        files.append,
        204,
        openapi_extra={"parameters": _APPEND, "requestBody": _BYTES},
        responses=problem_responses(*_APPENDING),
    )
    route(
        one,
        "DELETE",
        files.terminate,
        204,
        openapi_extra=_NOTED,
        responses=problem_responses(*_ALWAYS, *_FOUND),
    )
    route(one, "POST", files.stand_in, include_in_schema=False)
    unavailable = (problems.NOT_FOUND, problems.UPLOAD_NOT_STORED, problems.RANGE_NOT_SATISFIABLE)
    route(one, "GET", files.content, responses=problem_responses(*unavailable))
    return router


_Endpoint = Callable[..., Awaitable[Response]]


class _Files:
    """The endpoints. Their docstrings are what the API's document says of them."""

    def __init__(self, service: UploadService, authorize: Callable[[Request], Awaitable[Principal]]) -> None:
        self._service = service
        self._authorize = authorize

    async def options(self) -> Response:
        """What of tus is spoken here; needs no credentials."""
        return Response(status_code=204, headers=tus.capabilities(self._service.options.max_size))

    async def create(self, request: Request, background: BackgroundTasks) -> Response:
        """Make an upload, or put partial ones together; the first bytes may come along."""
        if tus.method_of(request.method, request.headers) != "POST":
            raise Problem(problems.METHOD_NOT_ALLOWED, "Uploads are made here with POST; the rest is theirs.")
        principal = await self._authorize(request)
        wanted = tus.parse_creation(_headers(request))
        key = idempotency_key(request)
        described: dict[str, Any] = {
            "filename": wanted.filename,
            "content_type": wanted.content_type,
            "owner": owner_of(principal),
            "metadata": None if wanted.metadata is None else wanted.metadata.header,
            "idempotency_key": key,
        }
        if wanted.parts:
            record = await self._service.create_final(wanted.parts, **described)
        else:
            record = await self._service.create(length=wanted.length, partial=wanted.partial, **described)
        # With the key of an earlier request it may have bytes already; the client then goes on behind them.
        if wanted.with_bytes and record.size == 0:
            try:
                record = await self._receive(
                    request, record.id, principal, tus.Append(0, None, wanted.checksum)
                )
            except Exception as error:
                if key is None:  # nobody knows its address, or ever will
                    await self._service.terminate(record.id, principal)
                    raise
                if not isinstance(error, Problem) or error.kind is not problems.OFFSET_MISMATCH:
                    raise
                # Another request with this key brings the bytes. Whoever has the address can go on.
                record = await self._service.get(record.id, principal)
        background.add_task(self._service.ring)
        headers = tus.progress_headers(
            offset=record.size if wanted.with_bytes else None, expires_at=record.expires_at
        )
        return Response(status_code=201, headers={**headers, "Location": _path(request, record.id)})

    async def tell(self, request: Request, upload_id: str) -> Response:
        """How far an upload is, whichever replica receives it."""
        principal = await self._authorize(request)
        _headers(request)
        record = await self._service.head(upload_id, principal)
        headers = tus.state_headers(
            offset=record.size,
            length=record.length,
            metadata=record.metadata,
            partial=record.partial,
            parts=[_path(request, part) for part in record.parts],
            expires_at=record.expires_at,
        )
        return Response(headers=headers)

    async def append(self, request: Request, upload_id: str, background: BackgroundTasks) -> Response:
        """Send bytes on from where the upload is. When they are all there it is hashed, stored and logged."""
        principal = await self._authorize(request)
        record = await self._receive(request, upload_id, principal, tus.parse_append(_headers(request)))
        # The doorbell. Should it never ring, the worker finds the job at its next look.
        background.add_task(self._service.ring)
        headers = tus.progress_headers(offset=record.size, expires_at=record.expires_at)
        return Response(status_code=204, headers=headers)

    async def terminate(self, request: Request, upload_id: str) -> Response:
        """Remove an upload, finished or not."""
        principal = await self._authorize(request)
        _headers(request)
        await self._service.terminate(upload_id, principal)
        return Response(status_code=204)

    async def stand_in(self, request: Request, upload_id: str, background: BackgroundTasks) -> Response:
        """A POST for a client that can send nothing else."""
        match tus.method_of(request.method, request.headers):
            case "PATCH":
                return await self.append(request, upload_id, background)
            case "DELETE":
                return await self.terminate(request, upload_id)
            case "HEAD":
                return await self.tell(request, upload_id)
        raise Problem(problems.METHOD_NOT_ALLOWED, "An upload takes a POST only with X-HTTP-Method-Override.")

    async def content(self, request: Request, upload_id: str) -> Response:
        """The file, once it is stored: the same as at `/uploads/{upload_id}/content`."""
        principal = await self._authorize(request)
        return await content_response(request, *await self._service.open(upload_id, principal))

    async def _receive(
        self, request: Request, upload_id: str, principal: Principal, wanted: tus.Append
    ) -> UploadRecord:
        async with self._service.append(
            upload_id,
            offset=wanted.offset,
            principal=principal,
            length=wanted.length,
            checksum=wanted.checksum,
            size=declared_length(request),
        ) as receiver:
            options = self._service.options
            # Kept for a refusal, which has to read what the client still sends.
            body = Body(request.receive, timeout=options.read_timeout, min_rate=options.min_rate)
            request.state.body = body
            async for chunk in body:
                await receiver.write(chunk)
            return await receiver.finish()


def _headers(request: Request) -> Mapping[str, str]:
    """Those of a request of our version. Raises `Problem`:
    `TUS_VERSION_UNSUPPORTED`, `TUS_HEADER_INVALID`.
    """
    headers = tus.said_once(request.headers.items())
    tus.check_version(headers)
    return headers


def _path(request: Request, upload_id: str) -> str:
    """Relative to the server: behind proxies we do not know by which name we are called."""
    root: str = request.scope.get("root_path", "")
    return f"{root}/files/{upload_id}"
