"""A kind of server that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.site import Server, Site
from bench.uploads import Way

__all__ = ["Peer"]


@dataclass(frozen=True)
class Peer:
    """How to start a server, and what to say to it.

    `prepare(programs)` builds or installs what it needs, and raises `Missing` where that is not to be had.
    `start(site, core)` starts one process and returns when it is ready. Called twice on one site, it starts
    two replicas over the site's Redis where `redis` is set.
    """

    name: str
    title: str
    start: Callable[[Site, int], Server]
    dialect: str = ""
    """How its subscribers speak; empty for one that broadcasts nothing."""
    path: str = ""
    """Where subscribers connect; `%u` in it is the channel's number."""
    takes: tuple[Way, ...] = ()
    """How files are sent to it, where it takes any."""
    prepare: Callable[[Path], None] = lambda programs: None
    channel: str = "c%u"
    instead_of: str | None = None
    """Measured only where the peer of this name is not to be had."""
    redis: bool = False
    """It publishes through Redis; without it, what it delivers has been in its own process only."""
    carries_channels: bool = False
    """One connection carries several channels, and anyone may publish to any of them."""
    publish_request: tuple[str, str, str] | None = None
    """Path, extra header and body of an HTTP request that publishes, where there is one."""
