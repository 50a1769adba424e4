"""Centrifugo, the server whose client protocol Bongsu speaks, over Redis."""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploy.child import free_port

from bench.build import run
from bench.peers.bongsu import API_KEY, HMAC_SECRET, publishing_with
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["CENTRIFUGO"]

VERSION = "v6.9.1"


def prepare(programs: Path) -> None:
    if not (programs / "centrifugo").exists():
        package = f"github.com/centrifugal/centrifugo/v6@{VERSION}"
        run(["go", "install", package], cwd=programs, env={**os.environ, "GOBIN": str(programs)})


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    configuration = site.directory / f"centrifugo-{port}.json"
    configuration.write_text(
        json.dumps(
            {
                "http_server": {"address": "127.0.0.1", "port": port},
                "log": {"level": "warn"},
                "usage_stats": {"disabled": True},
                "engine": {"type": "redis", "redis": {"address": site.redis.url}},
                "http_api": {"key": API_KEY},
                "client": {
                    "token": {"hmac_secret_key": HMAC_SECRET},
                    "allow_anonymous_connect_without_token": True,
                },
                "channel": {
                    "namespaces": [
                        {
                            "name": "bench",
                            "history_size": 100,
                            "history_ttl": "300s",
                            "force_recovery": True,
                            "allow_subscribe_for_client": True,
                            "allow_subscribe_for_anonymous": True,
                            "allow_publish_for_client": True,
                            "allow_publish_for_anonymous": True,
                        }
                    ]
                },
            }
        )
    )
    argv = [str(site.programs / "centrifugo"), "--config", str(configuration)]
    return site.serve("centrifugo", argv, port, core=core)


CENTRIFUGO = Peer(
    name="centrifugo",
    title="Centrifugo",
    dialect="centrifuge",
    path="/connection/websocket",
    channel="bench:%u",
    start=start,
    prepare=prepare,
    redis=True,
    carries_channels=True,
    publish_request=publishing_with(API_KEY),
)
