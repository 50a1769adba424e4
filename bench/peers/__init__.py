"""The servers that are measured, Bongsu first."""

from __future__ import annotations

from bench.peers.bongsu import BONGSU_CLIENT, BONGSU_PLAIN, BONGSU_UPLOADS
from bench.peers.centrifuge import CENTRIFUGE
from bench.peers.centrifugo import CENTRIFUGO
from bench.peers.nats import NATS
from bench.peers.nchan import NCHAN
from bench.peers.peer import Peer
from bench.peers.python import NAIVE, WEBSOCKETS
from bench.peers.sendloop import SENDLOOP
from bench.peers.socketio import SOCKETIO
from bench.peers.tus_server import TUS_SERVER
from bench.peers.tusd import TUSD
from bench.peers.webdav import WEBDAV

__all__ = ["PEERS", "Peer"]

PEERS = {
    peer.name: peer
    for peer in (
        BONGSU_CLIENT,
        BONGSU_PLAIN,
        SENDLOOP,
        NATS,
        CENTRIFUGO,
        CENTRIFUGE,
        NCHAN,
        SOCKETIO,
        WEBSOCKETS,
        NAIVE,
        BONGSU_UPLOADS,
        WEBDAV,
        TUSD,
        TUS_SERVER,
    )
}
