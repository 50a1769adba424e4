"""@tus/server on node with its file store."""

from __future__ import annotations

from pathlib import Path

from deploy.child import find_program, free_port

from bench.build import install_node
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site
from bench.uploads import TUS

__all__ = ["TUS_SERVER"]


def prepare(programs: Path) -> None:
    install_node("tus", programs)


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    files = site.directory / f"tus-{port}"
    files.mkdir()
    argv = [find_program("node", "nodejs"), str(site.programs / "tus" / "server.js"), str(port), str(files)]
    return site.serve("tus", argv, port, core=core)


TUS_SERVER = Peer(name="tus-server", title="@tus/server", start=start, prepare=prepare, takes=(TUS,))
