"""What one writes in Python first: the tutorial's ConnectionManager, and websockets' `broadcast`."""

from __future__ import annotations

import sys

from deploy.child import free_port

from bench.build import HERE
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["NAIVE", "WEBSOCKETS"]


def _start(module: str, site: Site, core: int) -> Server:
    port = free_port()
    argv = [sys.executable, "-m", f"bench.peers.{module}", str(port)]
    return site.serve(module, argv, port, cwd=HERE.parent, core=core)


def start_naive(site: Site, core: int = SERVER_CORE) -> Server:
    return _start("naive_server", site, core)


def start_websockets(site: Site, core: int = SERVER_CORE) -> Server:
    return _start("websockets_server", site, core)


NAIVE = Peer(
    name="naive",
    title="Tutorial FastAPI",
    dialect="plain",
    path="/ws",
    start=start_naive,
)

WEBSOCKETS = Peer(
    name="websockets",
    title="websockets `broadcast`",
    dialect="plain",
    path="/",
    start=start_websockets,
)
