"""A whole cluster for a test: nginx with the shipped nginx.conf, replicas, Redis and PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from deploy.cluster import REPOSITORY, Cluster
from tests.e2e.listener import Listener
from tests.servers import outer_environment

StartCluster = Callable[..., Cluster]
Listen = Callable[[str], Awaitable[Listener]]


@pytest.fixture
def cluster_root(tmp_path: Path) -> Iterator[Path]:
    """A directory as the runner expects it; not the clone, where a developer's own cluster may be running."""
    root = tmp_path / "clone"
    root.mkdir()
    (root / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
    yield root
    shutil.rmtree(root)


@pytest.fixture
def start_cluster(cluster_root: Path) -> Iterator[StartCluster]:
    """`start_cluster(replicas=2)`: a running cluster, stopped after the test and its data removed."""
    with contextlib.ExitStack() as ending:

        def start(*, replicas: int, **env: str) -> Cluster:
            cluster = Cluster(cluster_root, replicas=replicas, env={**outer_environment(), **env})
            # Elsewhere than in the test's directory when we are root: see deploy/postgres_server.py.
            ending.callback(shutil.rmtree, cluster.postgres.home)
            ending.enter_context(cluster)
            return cluster

        yield start


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """`await listen(url)`: a client of the plain broadcast that keeps all it hears; closed after the test."""
    async with AsyncExitStack() as closing:

        async def connect(url: str) -> Listener:
            return await closing.enter_async_context(Listener.connected(url))

        yield connect


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client with patience for a machine that runs many tests at once."""
    async with httpx.AsyncClient(timeout=30) as client:
        yield client
