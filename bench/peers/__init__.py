"""The servers that are measured, Bongsu first."""

from __future__ import annotations

from bench.peers.bongsu import BONGSU_CLIENT, BONGSU_PLAIN
from bench.peers.peer import Peer
from bench.peers.sendloop import SENDLOOP

__all__ = ["PEERS", "Peer"]

PEERS = {peer.name: peer for peer in (BONGSU_CLIENT, BONGSU_PLAIN, SENDLOOP)}
