"""What a browser sees: the live page and the API documentation, whole, from our own origin."""

from __future__ import annotations

from bongsu.web.routes import web_router

__all__ = ["web_router"]
