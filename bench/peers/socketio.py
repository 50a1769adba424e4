"""Socket.IO on node with its Redis adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.child import find_program, free_port

from bench.build import HERE, run
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["SOCKETIO"]

SOURCE = HERE / "peers" / "socketio"


def prepare(programs: Path) -> None:
    home = programs / "socketio"
    home.mkdir(parents=True, exist_ok=True)
    lock = home / "package-lock.json"
    same = lock.exists() and lock.read_bytes() == (SOURCE / "package-lock.json").read_bytes()
    for name in ("package.json", "package-lock.json", "server.js"):
        shutil.copy(SOURCE / name, home / name)
    if not (same and (home / "node_modules" / ".package-lock.json").exists()):
        run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=home)


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    script = str(site.programs / "socketio" / "server.js")
    argv = [find_program("node", "nodejs"), script, str(port), site.redis.url]
    return site.serve("socketio", argv, port, core=core)


SOCKETIO = Peer(
    name="socketio",
    title="Socket.IO, Redis adapter",
    dialect="socketio",
    path="/socket.io/?EIO=4&transport=websocket",
    start=start,
    prepare=prepare,
    redis=True,
    carries_channels=True,
)
