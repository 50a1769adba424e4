"""tusd: its handler with its file store and locks, built with Go."""

from __future__ import annotations

from pathlib import Path

from deploy.child import free_port

from bench.build import run
from bench.peers.centrifuge import GO
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site
from bench.uploads import TUS

__all__ = ["TUSD"]


def prepare(programs: Path) -> None:
    run(["go", "build", "-o", str(programs / "tusd"), "./tusd"], cwd=GO)


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    files = site.directory / f"tusd-{port}"
    files.mkdir()
    return site.serve("tusd", [str(site.programs / "tusd"), str(port), str(files)], port, core=core)


TUSD = Peer(name="tusd", title="tusd (Go)", start=start, prepare=prepare, takes=(TUS,))
