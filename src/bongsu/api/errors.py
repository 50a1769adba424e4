"""Every error of our own endpoints leaves through here, as `application/problem+json` (RFC 9457).

`/api/*` is the server API and has its own form. The table of codes is `bongsu.protocol.problems`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bongsu.db.session import DatabaseUnavailable
from bongsu.protocol import problems
from bongsu.protocol.problems import MEDIA_TYPE, Problem, ProblemKind
from bongsu.uploads.drafts import FULL_FOR
from bongsu.uploads.stores import StoreError, StoreFull

__all__ = ["ProblemResponse", "install_error_handlers", "problem_of", "problem_responses"]

log = structlog.stdlib.get_logger(__name__)

_RETRY_AFTER: Final = 2  # seconds; about what a restart of a database or a remount takes at least
_BY_STATUS: Final = {
    kind.status: kind
    for kind in (
        problems.BAD_REQUEST,
        problems.UNAUTHORIZED,
        problems.FORBIDDEN,
        problems.NOT_FOUND,
        problems.METHOD_NOT_ALLOWED,
    )
}


class ProblemResponse(Response):
    """A problem as a response."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.body(), problem.kind.status)
        self.raw_headers += problem.headers()


def problem_of(error: Exception) -> Problem | None:
    """What a caller is told about `error`; None for one that nobody expected.

    That the database or the storage is away is logged here, for the operator, once per refused request.
    """
    match error:
        case Problem():
            return error
        case DatabaseUnavailable():
            log.warning("a request was refused: the database is away", error=str(error))
            return Problem(problems.DATABASE_UNAVAILABLE, "Try again in a moment.", retry_after=_RETRY_AFTER)
        case StoreFull():
            log.error("a request was refused: the storage is full", error=str(error))
            return Problem(problems.DISK_FULL, "Try again later, or tell the operator.", retry_after=FULL_FOR)
        case StoreError():
            log.error("a request was refused: the storage does not work", error=str(error))
            return Problem(problems.STORAGE_UNAVAILABLE, "Try again in a moment.", retry_after=_RETRY_AFTER)
    return None


def problem_responses(*kinds: ProblemKind) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation in the OpenAPI document that may end with these problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        response = responses.setdefault(
            kind.status, {"description": "", "content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}
        )
        separator = "; " if response["description"] else ""
        response["description"] += f"{separator}{kind.title} (`{kind.code}`)"
    return responses


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` answer errors of every kind as problems; never with a traceback."""
    for known in (Problem, DatabaseUnavailable, StoreError):
        app.add_exception_handler(known, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)


async def _known(_request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    assert problem is not None  # registered for these types only
    return ProblemResponse(problem)


async def _http(_request: Request, error: Exception) -> Response:
    """What the framework itself raises: no such path, no such method, …"""
    assert isinstance(error, HTTPException)
    status = error.status_code
    kind = _BY_STATUS.get(status) or ProblemKind(f"http_{status}", status, HTTPStatus(status).phrase)
    response = ProblemResponse(Problem(kind, str(error.detail)))
    for name, value in (error.headers or {}).items():  # Allow, WWW-Authenticate
        response.headers[name] = value
    return response


async def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Place and words only: the input itself may be a secret that was sent in the wrong place.
    faults = [
        {"in": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['in']}: {fault['message']}" for fault in faults)
    return ProblemResponse(Problem(problems.VALIDATION, detail, extra={"errors": faults}))


async def _unexpected(_request: Request, _error: Exception) -> Response:
    # Not logged here: Starlette raises the error again after this response, and the server logs it, once.
    return ProblemResponse(
        Problem(problems.INTERNAL, "The request may be repeated; if it fails again, report it.")
    )
