"""Who is there: tokens, and the API key. See docs/tokens.md."""

from __future__ import annotations

from bongsu.auth.options import TokenOptions

__all__ = ["TokenOptions"]
