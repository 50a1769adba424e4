"""Bongsu: the shipped `bongsu serve` with Redis: on `/ws`, on the client protocol, and with uploads."""

from __future__ import annotations

from deploy.child import free_port
from deploy.replica import BONGSU

from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site
from bench.uploads import bongsu_ways

__all__ = ["API_KEY", "BONGSU_CLIENT", "BONGSU_PLAIN", "BONGSU_UPLOADS", "HMAC_SECRET"]

API_KEY = "key-of-the-benchmark"
HMAC_SECRET = "secret-of-the-benchmark-32-bytes-or-more"


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    home = site.directory / f"bongsu-{port}"
    home.mkdir()
    namespace = "BONGSU_CHANNELS__NAMESPACES__bench__"
    env = {
        "BONGSU_BROKER_URL": site.redis.url,
        "BONGSU_DATABASE_URL": f"sqlite+aiosqlite:///{home}/bongsu.sqlite",
        "BONGSU_STORAGE_URL": f"file://{home}/storage",
        "BONGSU_API_KEY": API_KEY,
        "BONGSU_TOKEN__HMAC_SECRET": HMAC_SECRET,
        "BONGSU_CLIENT__ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true",
        f"{namespace}HISTORY_SIZE": "100",
        f"{namespace}HISTORY_TTL": "300s",
        f"{namespace}FORCE_RECOVERY": "true",
        f"{namespace}ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
        f"{namespace}ALLOW_SUBSCRIBE_FOR_ANONYMOUS": "true",
        f"{namespace}ALLOW_PUBLISH_FOR_CLIENT": "true",
        f"{namespace}ALLOW_PUBLISH_FOR_ANONYMOUS": "true",
    }
    argv = [str(BONGSU), "serve", "--dev", "--host", "127.0.0.1", "--port", str(port)]
    return site.serve("bongsu", argv, port, env=env, cwd=home, ready="/readyz", core=core)


def publishing_with(key: str) -> tuple[str, str, str]:
    """Path, header and body of a request of the server API, which Centrifugo has too."""
    return "/api/publish", f"X-API-Key: {key}", '{"channel":"bench:published","data":"' + "x" * 126 + '"}'


BONGSU_PLAIN = Peer(
    name="bongsu-ws",
    title="Bongsu, `/ws`",
    dialect="plain",
    path="/ws/c%u",
    start=start,
    redis=True,
)

BONGSU_CLIENT = Peer(
    name="bongsu",
    title="Bongsu, client protocol",
    dialect="centrifuge",
    path="/connection/websocket",
    channel="bench:%u",
    start=start,
    redis=True,
    carries_channels=True,
    publish_request=publishing_with(API_KEY),
)

BONGSU_UPLOADS = Peer(name="bongsu-uploads", title="Bongsu", start=start, takes=bongsu_ways())
