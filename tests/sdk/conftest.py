"""Two replicas behind nginx, set up by environment alone, for SDKs that know nothing of Bongsu."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest
from deploy.child import wait_until
from deploy.cluster import REPOSITORY
from deploy.replica import Replica
from tests.sdk.line import Line
from tests.servers import PreloadedCluster, outer_environment

API_KEY = "key-of-the-sdk-tests"
SECRET = "secret-of-the-sdk-tests-32-bytes-or-more"

_FULL = {
    "presence": "true",
    "join_leave": "true",
    "force_push_join_leave": "true",
    "history_size": "100",
    "history_ttl": "300s",
    "force_recovery": "true",
    "allowed_delta_types": "fossil",
    "delta_publish": "true",
    "allow_publish_for_subscriber": "true",
    "allow_presence_for_subscriber": "true",
    "allow_history_for_subscriber": "true",
}
_NAMESPACES = {
    "open": {**_FULL, "allow_subscribe_for_client": "true"},
    "smallhistory": {
        "history_size": "2",
        "history_ttl": "300s",
        "force_recovery": "true",
        "allow_subscribe_for_client": "true",
        "allow_history_for_subscriber": "true",
    },
}
SETTINGS = {
    "BONGSU_API_KEY": API_KEY,
    "BONGSU_TOKEN__HMAC_SECRET": SECRET,
    "BONGSU_CLIENT__SUBSCRIBE_TO_USER_PERSONAL_CHANNEL__ENABLED": "true",
    "BONGSU_HTTP_STREAM__ENABLED": "true",
    "BONGSU_SSE__ENABLED": "true",
    # A page may upload from another port of this machine, which is another origin.
    "BONGSU_ALLOWED_ORIGINS": '["http://127.0.0.1:*"]',
    # So short that a test can wait for it.
    "BONGSU_CLIENT__EXPIRED_CLOSE_DELAY": "1s",
    "BONGSU_CLIENT__EXPIRED_SUB_CLOSE_DELAY": "1s",
    # Channels without a namespace open with a subscription token only.
    **{f"BONGSU_CHANNELS__WITHOUT_NAMESPACE__{name.upper()}": value for name, value in _FULL.items()},
    **{
        f"BONGSU_CHANNELS__NAMESPACES__{namespace}__{name.upper()}": value
        for namespace, options in _NAMESPACES.items()
        for name, value in options.items()
    },
}


WAYS = [
    ("websocket", "json"),
    ("websocket", "protobuf"),
    ("http_stream", "json"),
    ("http_stream", "protobuf"),
    ("sse", "json"),
]
"""The transports and encodings that the JavaScript SDK is played over."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What somebody is told who is to use it: where it is, and the secrets of a backend."""

    url: str
    api_key: str = API_KEY
    secret: str = SECRET

    async def api(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call the server API as a backend does; its answer, which may be an error of the protocol's form."""
        async with httpx.AsyncClient(timeout=30) as http:
            answer = await http.post(
                f"{self.url}/api/{method}", json=body, headers={"X-API-Key": self.api_key}
            )
        return dict(answer.raise_for_status().json())

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.secret, algorithm="HS256")


def _knows_both(replica: Replica) -> bool:
    return len(httpx.get(f"{replica.url}/status").json()["cluster"]["replicas"]) == 2


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("sdk")
    (root / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
    cluster = PreloadedCluster(root, replicas=2, env={**outer_environment(), **SETTINGS})
    try:
        with cluster:
            # What reaches connections on every replica reaches those that a replica knows of: after a second.
            wait_until(lambda: all(map(_knows_both, cluster.replicas)), within=30, what="replicas in touch")
            yield Deployment(cluster.url)
    finally:
        # Elsewhere than in `root` when we are root: see deploy/postgres_server.py.
        shutil.rmtree(cluster.postgres.home, ignore_errors=True)
        shutil.rmtree(root)


@pytest.fixture
async def line(deployment: Deployment) -> AsyncIterator[Line]:
    """The network to the deployment; cut it to see what a client makes of that."""
    async with Line.to(deployment.url) as line:
        yield line
