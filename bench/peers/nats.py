"""NATS: nats-server's WebSocket listener. It is its own broker: there is no Redis in between."""

from __future__ import annotations

from pathlib import Path

from deploy.child import free_port

from bench.build import run
from bench.peers.centrifuge import GO
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["NATS"]

CONFIGURATION = """
listen: 127.0.0.1:{port}
websocket {{ listen: 127.0.0.1:{websocket}, no_tls: true, compression: false }}
max_connections: 20000
"""


def prepare(programs: Path) -> None:
    package = "github.com/nats-io/nats-server/v2"
    run(["go", "build", "-o", str(programs / "nats-server"), package], cwd=GO)


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port, websocket = free_port(), free_port()
    configuration = site.directory / f"nats-{port}.conf"
    configuration.write_text(CONFIGURATION.format(port=port, websocket=websocket))
    argv = [str(site.programs / "nats-server"), "-c", str(configuration)]
    return site.serve("nats", argv, websocket, core=core)


NATS = Peer(
    name="nats",
    title="nats-server",
    dialect="nats",
    path="/",
    start=start,
    prepare=prepare,
    carries_channels=True,
)
