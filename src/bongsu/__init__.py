"""Bongsu: a horizontally scalable realtime broadcast and upload server. Public names only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bongsu._version import __version__

if TYPE_CHECKING:
    from bongsu.app import Bongsu, create_app, mount
    from bongsu.db.outbox import Outbox

__all__ = ["Bongsu", "Outbox", "__version__", "create_app", "mount"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the command line and the rooms below need none of it to say their version.
    if name in ("Bongsu", "create_app", "mount"):
        from bongsu import app

        return getattr(app, name)
    if name == "Outbox":
        from bongsu.db import outbox

        return outbox.Outbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
