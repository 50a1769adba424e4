"""Socket.IO on node with its Redis adapter."""

from __future__ import annotations

from pathlib import Path

from deploy.child import find_program, free_port

from bench.build import install_node
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["SOCKETIO"]


def prepare(programs: Path) -> None:
    install_node("socketio", programs)


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
