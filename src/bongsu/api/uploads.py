"""The upload endpoints: files in, the log, the content.

Without `from __future__ import annotations`: FastAPI evaluates annotations, and `Caller` is a local name.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
import structlog
from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from bongsu.api.content import content_response
from bongsu.api.errors import problem_of, problem_responses
from bongsu.api.requests import (
    IDEMPOTENCY_KEY,
    Body,
    ClientGone,
    declared_length,
    early,
    idempotency_key,
    owner_of,
    refusal,
)
from bongsu.db.models import is_id
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem
from bongsu.uploads.drafts import AlreadyReceived
from bongsu.uploads.multipart import FIELD, MAX_OVERHEAD
from bongsu.uploads.names import clean_content_type, clean_filename
from bongsu.uploads.receiver import too_large
from bongsu.uploads.record import UploadRecord
from bongsu.uploads.rows import Cursor
from bongsu.uploads.service import UploadService

__all__ = ["UploadAccepted", "UploadPage", "uploads_router"]

log = structlog.stdlib.get_logger(__name__)

MESSAGE: Final = "파일 업로드 중..."


class UploadAccepted(BaseModel):
    """The file has arrived and will be stored; `status_url` tells how far it is."""

    message: str = Field(examples=[MESSAGE])
    id: str
    status_url: str


class UploadPage(BaseModel):
    """A page of the upload log, newest first; `next` is the cursor of the next page, null at the end."""

    uploads: list[UploadRecord]
    next: str | None


# The body is parsed as it arrives, not by FastAPI, so its form is declared here.
_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": "The file, with its name",
                        }
                    },
                }
            }
        },
    }
}


_BYTES: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

_REFUSED: Final = problem_responses(
    problems.FILE_FIELD_MISSING,
    problems.FILE_NAME_MISSING,
    problems.MULTIPART_MALFORMED,
    problems.UPLOAD_TOO_LARGE,
    problems.QUOTA_EXCEEDED,
    problems.REQUEST_TIMEOUT,
    problems.UNSUPPORTED_MEDIA_TYPE,
    problems.IDEMPOTENCY_KEY_REUSED,
    problems.DATABASE_UNAVAILABLE,
    problems.STORAGE_UNAVAILABLE,
    problems.DISK_FULL,
)


def uploads_router(service: UploadService, authorize: Callable[..., Awaitable[Principal]]) -> APIRouter:
    """The routes. `authorize` is a FastAPI dependency that raises `Problem` for whom it does not let in."""
    router = APIRouter(tags=["uploads"])
    Caller = Annotated[Principal, Depends(authorize)]

    async def answered(
        request: Request,
        background: BackgroundTasks,
        receiving: Callable[[Body], Awaitable[UploadRecord]],
        accept: Callable[[UploadAccepted], Response],
    ) -> Response:
        """The response to a request that brings a file: accepted, or refused."""
        options = service.options
        body = Body(request.receive, timeout=options.read_timeout, min_rate=options.min_rate)
        try:
            record = await receiving(body)
        except AlreadyReceived as again:
            return early(accept(_accepted(request, again.record)), body)
        except ClientGone:
            log.info("a client left in the middle of an upload")
            return Response(status_code=400)  # nobody reads it; the server wants one
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            return refusal(problem, body)
        # The doorbell. Should it never ring, the worker finds the job at its next look.
        background.add_task(service.ring)
        response = accept(_accepted(request, record))
        response.background = background
        return response

    async def receive_form(
        request: Request,
        principal: Principal,
        background: BackgroundTasks,
        accept: Callable[[UploadAccepted], Response],
    ) -> Response:
        async def receiving(body: Body) -> UploadRecord:
            _check_length(request, service.options.max_size + MAX_OVERHEAD, service.options.max_size)
            return await service.intake.receive_form(
                aiter(body),
                content_type=request.headers.get("content-type", ""),
                owner=owner_of(principal),
                bound=declared_length(request),
                idempotency_key=idempotency_key(request),
            )

        return await answered(request, background, receiving, accept)

    async def upload_file(request: Request, principal: Caller, background: BackgroundTasks) -> Response:
        """Upload one file; answers as soon as it has arrived. It is then hashed, stored and logged."""
        return await receive_form(request, principal, background, _ok)

    router.add_api_route(
        "/upload-file/",
        upload_file,
        methods=["POST"],
        response_model=UploadAccepted,
        openapi_extra=_FORM,
        responses=_REFUSED,
    )
    # A redirect would make the client send the whole file twice.
    router.add_api_route(
        "/upload-file", upload_file, methods=["POST"], response_model=UploadAccepted, include_in_schema=False
    )

    @router.post(
        "/uploads",
        status_code=202,
        response_model=UploadAccepted,
        openapi_extra={**_FORM, "parameters": [IDEMPOTENCY_KEY]},
        responses=_REFUSED,
    )
    async def create_upload(request: Request, principal: Caller, background: BackgroundTasks) -> Response:
        """Upload one file, for API consumers: 202, and where to look in `Location`."""
        return await receive_form(request, principal, background, _located)

    @router.put(
        "/uploads",
        status_code=202,
        response_model=UploadAccepted,
        openapi_extra={**_BYTES, "parameters": [IDEMPOTENCY_KEY]},
        responses=_REFUSED | problem_responses(problems.BAD_REQUEST),
    )
    async def put_upload(
        request: Request,
        principal: Caller,
        background: BackgroundTasks,
        filename: Annotated[str, Query(max_length=1024, description="What the file is called")] = "",
    ) -> Response:
        """Upload one file whose bytes are the body, as `curl -T` sends it: 202 and `Location`."""

        async def receiving(body: Body) -> UploadRecord:
            if "content-range" in request.headers:  # RFC 9110 §14.5: never take a part for the whole
                raise Problem(problems.BAD_REQUEST, "A PUT brings the whole file; use /files/ for parts.")
            name = clean_filename(filename)
            if not name:
                raise Problem(problems.FILE_NAME_MISSING, "Say ?filename=, with something that can be shown.")
            _check_length(request, service.options.max_size, service.options.max_size)
            return await service.intake.receive_body(
                aiter(body),
                filename=name,
                content_type=clean_content_type(request.headers.get("content-type", "")),
                owner=owner_of(principal),
                length=declared_length(request),
                idempotency_key=idempotency_key(request),
            )

        return await answered(request, background, receiving, _located)

    @router.get("/uploads", responses=problem_responses(problems.VALIDATION, problems.DATABASE_UNAVAILABLE))
    async def list_uploads(
        principal: Caller,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=256, description="`next` of the page before")] = None,
    ) -> UploadPage:
        """The upload log: the caller's uploads of every state, newest first; with the API key everybody's."""
        records = await service.page(limit + 1, None if cursor is None else _decoded(cursor), principal)
        shown = records[:limit]
        return UploadPage(uploads=shown, next=_encoded(shown[-1]) if len(records) > limit else None)

    @router.get("/uploads/{upload_id}", responses=problem_responses(problems.FORBIDDEN, problems.NOT_FOUND))
    async def get_upload(upload_id: str, principal: Caller) -> UploadRecord:
        """One upload: how far it is, and once stored its hash and times."""
        return await service.get(upload_id, principal)

    async def content(request: Request, upload_id: str, principal: Caller) -> Response:
        """The file. Serves `Range`, `If-Range` and `If-None-Match`; always as an attachment."""
        record, reader = await service.open(upload_id, principal)
        return await content_response(request, record, reader)

    router.add_api_route(
        "/uploads/{upload_id}/content",
        content,
        methods=["GET"],
        response_class=Response,
        responses={
            200: {"description": "The file", "content": {"application/octet-stream": {}}},
            206: {"description": "The part of it that was asked for"},
            **problem_responses(
                problems.FORBIDDEN,
                problems.NOT_FOUND,
                problems.UPLOAD_NOT_STORED,
                problems.RANGE_NOT_SATISFIABLE,
            ),
        },
    )
    router.add_api_route("/uploads/{upload_id}/content", content, methods=["HEAD"], include_in_schema=False)

    @router.delete(
        "/uploads/{upload_id}",
        status_code=204,
        responses=problem_responses(problems.FORBIDDEN, problems.NOT_FOUND),
    )
    async def delete_upload(upload_id: str, principal: Caller) -> Response:
        """Remove an upload and its file. What was logged about it stays in the database."""
        await service.delete(upload_id, principal)
        return Response(status_code=204)

    return router


def _accepted(request: Request, record: UploadRecord) -> UploadAccepted:
    root: str = request.scope.get("root_path", "")
    return UploadAccepted(message=MESSAGE, id=record.id, status_url=f"{root}/uploads/{record.id}")


def _ok(accepted: UploadAccepted) -> Response:
    return JSONResponse(accepted.model_dump())


def _located(accepted: UploadAccepted) -> Response:
    return JSONResponse(accepted.model_dump(), 202, {"location": accepted.status_url})


def _check_length(request: Request, bound: int, limit: int) -> None:
    """Refuse before reading when the declared length leaves no doubt: the form around a file is bounded."""
    if (declared_length(request) or 0) > bound:
        raise too_large(limit)


def _encoded(record: UploadRecord) -> str:
    position = msgspec.json.encode((record.created_at, record.id))
    return base64.urlsafe_b64encode(position).decode().rstrip("=")


def _decoded(cursor: str) -> Cursor:
    try:
        position = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        moment, upload_id = msgspec.json.decode(position, type=tuple[datetime, str])
        if moment.tzinfo is None or not is_id(upload_id):
            raise ValueError("not a position in the log")
        return moment.astimezone(UTC), upload_id
    except (ValueError, OverflowError, binascii.Error, msgspec.MsgspecError) as error:
        raise Problem(problems.VALIDATION, "cursor: use the `next` of a page as it is.") from error
