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
from tests.servers import PreloadedCluster, outer_environment

Listen = Callable[[str], Awaitable[Listener]]


@pytest.fixture
def cluster_root(tmp_path: Path) -> Iterator[Path]:
    """A directory as the runner expects it; not the clone, where a developer's own cluster may be running."""
    root = tmp_path / "clone"
    root.mkdir()
    (root / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
    yield root
    shutil.rmtree(root)


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster runs for the length of the block; its data is removed with it."""
    try:
        with cluster:
            yield cluster
    finally:
        # Elsewhere than in `root` when we are root: see deploy/postgres_server.py.
        shutil.rmtree(cluster.postgres.home, ignore_errors=True)


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas for tests that break nothing: starting them takes longer than such a test.

    In a directory whose name would be misread wherever it stands in a URL or a command unquoted.
    """
    root = tmp_path_factory.mktemp("trio") / "my 봉수 #1 %20?"
    root.mkdir()
    (root / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
    with running(Cluster(root, replicas=3, env=outer_environment())) as cluster:
        yield cluster
    shutil.rmtree(root)


@pytest.fixture
def pair(cluster_root: Path) -> Iterator[Cluster]:
    """Two replicas for a test that kills a part of its cluster."""
    with running(PreloadedCluster(cluster_root, replicas=2, env=outer_environment())) as cluster:
        yield cluster


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
