"""Routes of the live page `/`, its files below `static/` and Swagger UI at `docs`.

Both pages are rendered once, when the router is built: nothing in them depends on the request. That is
also why every URL in them is relative: the app may be mounted below any prefix, and behind a proxy that
strips it, without the pages knowing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

_HERE: Final = Path(__file__).parent

# No inline script or style and no foreign origin, so a message that slipped past escaping still could not
# run; Swagger UI 5 lives within that too. `ws: wss:` stands beside 'self' because Safari before 15.4 does
# not count sockets as 'self'. `data:` images are Swagger UI's icons.
_CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "connect-src 'self' ws: wss:",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

# On static files too: an SVG opened on its own is a document.
_HEADERS: Final = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Revalidated by ETag: a browser never mixes the page of one release with the script of another.
    "cache-control": "no-cache",
}


def web_router(*, title: str, version: str, replica: str, dev: bool) -> APIRouter:
    """Build the routes of the live page and of the API documentation.

    `title` and `version` are shown on the page; `replica` names the process that serves it; `dev` shows
    the hint that anonymous access is on, and hides the token form. The documentation reads
    `openapi.json` beside it, so the app keeps FastAPI's default `openapi_url`. None of the routes is in
    the OpenAPI document. A missing static file is `starlette.exceptions.HTTPException` 404.
    """
    # Own files first, then Swagger UI's, which the package `fastapi-swagger` ships unchanged.
    files = StaticFiles(directory=_HERE / "static", packages=[("fastapi_swagger", "resources")])
    values = {
        "title": title,
        "version": version,
        "replica": replica,
        "access": "anonymous" if dev else "token",
    }
    page = _render("page.html", values)
    docs = _render("docs.html", values)

    async def live_page(request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    async def api_documentation(request: Request) -> Response:
        return HTMLResponse(docs, headers=_HEADERS)

    async def static_file(request: Request) -> Response:
        response = await files.get_response(request.path_params["name"], request.scope)
        response.headers.update(_HEADERS)
        return response

    router = APIRouter()
    router.add_route("/", live_page, include_in_schema=False)
    router.add_route("/docs", api_documentation, include_in_schema=False)
    router.add_route("/static/{name}", static_file, include_in_schema=False)
    return router


def _render(name: str, values: Mapping[str, str]) -> bytes:
    """Fill `templates/<name>`; every value is escaped, for text and for quoted attributes alike."""
    template = Template((_HERE / "templates" / name).read_text(encoding="utf-8"))
    return template.substitute({key: escape(value) for key, value in values.items()}).encode()
