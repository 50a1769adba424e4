"""Uploads over a network that breaks, onto storage that fills up or goes away: by the shipped command.

Whatever happens, a client is told, or can ask, where it stands, and nothing is left that nobody needs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.faults import Fault, FaultProxy
from tests.servers import RunningServer, S3Server, wait_until

MIB = 1024 * 1024
CONTENT = os.urandom(3 * MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SETTINGS = {
    "BONGSU_UPLOAD__JOB_POLL": "0.2",
    "BONGSU_UPLOAD__READ_TIMEOUT": "3",
}


@dataclass
class Site:
    """A running server, the network before it, and a look into its storage."""

    server: RunningServer
    network: FaultProxy
    kept: Callable[[], list[str]]
    """Keys of all segments and objects."""

    def put(self, content: bytes = CONTENT) -> httpx.Response:
        """Upload it as it is, through the network."""
        return httpx.put(f"{self.network.url}/uploads?filename=a", content=content, timeout=60)

    def post(self, content: bytes = CONTENT) -> httpx.Response:
        """Upload it as a form, through the network."""
        return httpx.post(f"{self.network.url}/upload-file/", files={"file": ("a", content)}, timeout=60)

    def uploads(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = httpx.get(f"{self.server.url}/uploads", timeout=30).json()["uploads"]
        return listed

    def is_empty(self) -> bool:
        return self.uploads() == [] and self.kept() == []

    def stored(self, upload_id: str) -> dict[str, Any]:
        """The upload, waited for."""

        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = httpx.get(f"{self.server.url}/uploads/{upload_id}", timeout=30).json()
            return answer

        wait_until(lambda: bool(ask()["state"] == "stored"), within=60, what=f"{upload_id} to be stored")
        return ask()

    def clear(self) -> None:
        key = {"X-API-Key": self.server.api_key}
        for upload in self.uploads():
            url = f"{self.server.url}/uploads/{upload['id']}"
            # 404: a broken request has just removed its own.
            assert httpx.delete(url, headers=key, timeout=30).status_code in (204, 404)
        wait_until(self.is_empty, within=30, what="all uploads to be gone")


@contextlib.contextmanager
def running(
    directory: Path, kept: Callable[[], list[str]] | None = None, **environment: str
) -> Iterator[Site]:
    server = RunningServer(directory, SETTINGS | environment, dev=True)
    storage = directory / "storage"

    def files() -> list[str]:
        return [path.name for path in storage.rglob("*") if path.is_file()]

    with contextlib.ExitStack() as stack:
        server.start()
        stack.callback(server.stop)
        yield Site(server, stack.enter_context(FaultProxy(server.port)), kept or files)


@pytest.fixture(scope="module")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("on-files")) as site:
        yield site


@pytest.fixture(scope="module")
def storage_network(s3_server: S3Server) -> Iterator[FaultProxy]:
    """Between the server and S3."""
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def on_s3(
    tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, storage_network: FaultProxy
) -> Iterator[Site]:
    url = f"s3://bongsu/{uuid4().hex[:12]}"
    environment = dict(s3_server.environment) | {"AWS_ENDPOINT_URL_S3": storage_network.url}
    directory = tmp_path_factory.mktemp("on-s3")
    with running(directory, lambda: s3_server.keys(url), BONGSU_STORAGE_URL=url, **environment) as site:
        yield site


@pytest.fixture(params=["on_files", "on_s3"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made: Site = request.getfixturevalue(request.param)
    yield made
    made.clear()


@pytest.mark.parametrize("after", [0, 300, 2 * MIB])
@pytest.mark.parametrize("kind", ["cut", "reset", "half-close"])
def test_a_form_that_is_cut_off_leaves_nothing(site: Site, kind: Any, after: int) -> None:
    """Before its first byte, within its headers, in the middle of the file."""
    happened = site.network.happened
    site.network.break_next(Fault(kind, after))
    with contextlib.suppress(httpx.TransportError):
        assert site.post().status_code == 400  # a half-closed connection can still carry an answer
    assert site.network.happened == happened + 1
    wait_until(site.is_empty, within=30, what="nothing of the upload to be left")


@pytest.mark.parametrize("after", [0, 2 * MIB])
@pytest.mark.parametrize("kind", ["cut", "reset", "half-close"])
def test_a_raw_body_that_is_cut_off_leaves_nothing(site: Site, kind: Any, after: int) -> None:
    happened = site.network.happened
    site.network.break_next(Fault(kind, after))
    with contextlib.suppress(httpx.TransportError):
        assert site.put().status_code == 400
    assert site.network.happened == happened + 1
    wait_until(site.is_empty, within=30, what="nothing of the upload to be left")


@pytest.mark.parametrize("send", [Site.post, Site.put])
def test_a_body_that_stalls_is_given_up_and_leaves_nothing(
    site: Site, send: Callable[[Site], httpx.Response]
) -> None:
    """Told with 408, where the client can still hear it; the proxy lets nothing through."""
    site.network.break_next(Fault("stall", after=2 * MIB))
    wait_until(site.is_empty, within=5, what="nothing to be there before")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send, site)
        wait_until(lambda: site.uploads() != [], within=30, what="the upload to begin")
        wait_until(site.is_empty, within=30, what="nothing of the upload to be left")
        site.network.break_open("reset")
        assert isinstance(sending.exception(timeout=30), httpx.TransportError)


def test_a_form_whose_answer_is_lost_is_stored_whole(site: Site) -> None:
    site.network.break_next(Fault("reset", after=1, direction="down"))
    with contextlib.suppress(httpx.TransportError):
        site.post()
    wait_until(lambda: len(site.uploads()) == 1, within=30, what="the upload to be listed")
    assert site.stored(site.uploads()[0]["id"])["sha256"] == SHA256


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(on_files: Site) -> None:
    """The kernel refuses to write more: here beyond a limit of the process, which also root has."""
    limits = resource.prlimit(on_files.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(on_files.server.pid, resource.RLIMIT_FSIZE, (2 * MIB, limits[1]))
    try:
        answer = on_files.post()
    finally:
        resource.prlimit(on_files.server.pid, resource.RLIMIT_FSIZE, limits)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
    assert on_files.is_empty()
    on_files.stored(on_files.post().json()["id"])
    on_files.clear()


def test_while_s3_is_away_uploads_are_refused_for_now_and_work_again_after(
    on_s3: Site, storage_network: FaultProxy
) -> None:
    before = on_s3.post().json()["id"]
    on_s3.stored(before)
    with storage_network.away():
        answer = on_s3.post()
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        download = httpx.get(f"{on_s3.server.url}/uploads/{before}/content", timeout=60)
        assert (download.status_code, download.json()["code"]) == (503, "storage_unavailable")
    after = on_s3.post().json()["id"]
    on_s3.stored(after)
    on_s3.clear()


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_connection_to_s3_that_breaks_in_an_upload_is_not_noticed(
    on_s3: Site, storage_network: FaultProxy, kind: Any
) -> None:
    storage_network.break_open("cut")
    storage_network.break_next(*[Fault(kind, after=MIB)] * 2)
    answer = on_s3.post()
    assert answer.status_code == 200
    assert on_s3.stored(answer.json()["id"])["sha256"] == SHA256
    on_s3.clear()
