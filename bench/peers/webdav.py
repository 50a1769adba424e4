"""nginx with its WebDAV module: a PUT is written to a temporary file, which is then renamed."""

from __future__ import annotations

from pathlib import Path

from deploy.child import MissingProgram, find_program, free_port

from bench.build import Missing
from bench.peers.peer import Peer
from bench.site import SERVER_CORE, Server, Site
from bench.uploads import Way, put

__all__ = ["WEBDAV"]

CONFIGURATION = """
daemon off;
user root;
master_process on;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {home}/files;
        dav_methods PUT;
    }}
}}
"""


def prepare(programs: Path) -> None:
    try:
        find_program("nginx", "nginx")
    except MissingProgram as missing:
        raise Missing(str(missing)) from None


def start(site: Site, core: int = SERVER_CORE) -> Server:
    port = free_port()
    home = site.directory / f"webdav-{port}"
    (home / "files").mkdir(parents=True)
    configuration = home / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(home=home, port=port))
    argv = [find_program("nginx", "nginx"), "-p", str(home), "-c", str(configuration), "-e", "stderr"]
    return site.serve("webdav", argv, port, core=core)


WEBDAV = Peer(
    name="webdav", title="nginx, WebDAV", start=start, prepare=prepare, takes=(Way("`PUT`", put("/bench")),)
)
