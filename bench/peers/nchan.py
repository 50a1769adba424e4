"""nginx with the nchan module, over Redis."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from deploy.child import MissingProgram, find_program, free_port, wait_until

from bench.build import Missing
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site

__all__ = ["NCHAN"]

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

# A subscriber is sent what comes after it, as with the others: nchan would begin with the oldest message.
CONFIGURATION = """
load_module {module};
daemon off;
master_process on;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {home}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    keepalive_requests 10000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    nchan_shared_memory_size 256m;
    upstream redis {{ nchan_redis_server {redis}; }}
    server {{
        listen 127.0.0.1:{port};
        nchan_redis_pass redis;
        nchan_message_buffer_length 100;
        nchan_message_timeout 300s;
        nchan_subscriber_first_message newest;
        location ~ ^/ws/(.+)$ {{
            nchan_pubsub websocket;
            nchan_channel_id $1;
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
        }}
    }}
}}
"""


def prepare(programs: Path) -> None:
    try:
        find_program("nginx", "nginx")
    except MissingProgram as missing:
        raise Missing(str(missing)) from None
    if not MODULE.exists():
        raise Missing("nchan for nginx is not installed (Debian's libnginx-mod-nchan)")


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    home = site.directory / f"nchan-{port}"
    home.mkdir(mode=0o777)
    configuration = home / "nginx.conf"
    text = CONFIGURATION.format(module=MODULE, home=home, port=port, redis=site.redis.url)
    configuration.write_text(text)
    argv = [find_program("nginx", "nginx"), "-p", str(home), "-c", str(configuration), "-e", "stderr"]
    server = site.serve("nchan", argv, port, core=core)
    wait_until(lambda: _publishes(port), within=10, what="nchan connected to Redis")
    return server


def _publishes(port: int) -> bool:
    """It answers 503 while it has no connection to Redis yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/publish/ready", data=b"ready", timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False


NCHAN = Peer(
    name="nchan",
    title="nginx + nchan",
    dialect="plain",
    path="/ws/c%u",
    start=start,
    prepare=prepare,
    redis=True,
    publish_request=("/publish/published", "", "x" * 128),
)
