"""Centrifugo's engine, the centrifuge library for Go, in a server as small as can be, over Redis.

For where Centrifugo itself is not to be had, which adds its configuration and checks to this.
"""

from __future__ import annotations

from pathlib import Path

from deploy.child import free_port

from bench.build import HERE, run
from bench.peers.bongsu import HMAC_SECRET, publishing_with
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["CENTRIFUGE", "GO"]

GO = HERE / "peers" / "go"
"""The Go module whose lock holds this library and NATS."""


def prepare(programs: Path) -> None:
    run(["go", "build", "-o", str(programs / "centrifuge"), "./centrifuge"], cwd=GO)


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    argv = [str(site.programs / "centrifuge"), str(port), f"127.0.0.1:{site.redis.port}", HMAC_SECRET]
    return site.serve("centrifuge", argv, port, core=core)


CENTRIFUGE = Peer(
    name="centrifuge",
    title="centrifuge (Go)",
    instead_of="centrifugo",
    dialect="centrifuge",
    path="/connection/websocket",
    channel="bench:%u",
    start=start,
    prepare=prepare,
    redis=True,
    carries_channels=True,
    publish_request=publishing_with(HMAC_SECRET),
)
