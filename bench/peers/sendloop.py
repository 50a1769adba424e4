"""The C loop of `send()`: what the kernel takes for a delivery, whoever asks it."""

from __future__ import annotations

from pathlib import Path

from deploy.child import free_port

from bench.build import HERE, compile_c
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["SENDLOOP"]


def prepare(programs: Path) -> None:
    compile_c(programs / "sendloop", HERE / "peers" / "sendloop.c")


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    return site.serve("sendloop", [str(site.programs / "sendloop"), str(port)], port, core=core)


SENDLOOP = Peer(
    name="sendloop",
    title="C loop of `send()`",
    dialect="plain",
    path="/",
    start=start,
    prepare=prepare,
)
