"""Bongsu: a horizontally scalable realtime broadcast and upload server. Public names only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bongsu._version import __version__

if TYPE_CHECKING:
    from bongsu.app import Bongsu, create_app, mount
    from bongsu.db.outbox import Outbox
    from bongsu.jobs.application import JobRun
    from bongsu.jobs.worker import Rejected, Unavailable
    from bongsu.uploads.hooks import ReceivedFile

__all__ = [
    "Bongsu",
    "JobRun",
    "Outbox",
    "ReceivedFile",
    "Rejected",
    "Unavailable",
    "__version__",
    "create_app",
    "mount",
]

_HOMES = {
    "Bongsu": "bongsu.app",
    "JobRun": "bongsu.jobs.application",
    "Outbox": "bongsu.db.outbox",
    "ReceivedFile": "bongsu.uploads.hooks",
    "Rejected": "bongsu.jobs.worker",
    "Unavailable": "bongsu.jobs.worker",
    "create_app": "bongsu.app",
    "mount": "bongsu.app",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the command line and the rooms below need none of it to say their version.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
