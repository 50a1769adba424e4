"""What a replica holds in memory while it receives: one large file, and many at one time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import pytest
from tests.scale import scaled
from tests.servers import RunningServer, S3Server, wait_until

MIB: Final = 1024 * 1024
BLOCK: Final = bytes(MIB)
# MiB beyond what an idle replica has. On S3 many writers at once wait for its answers, with what the
# HTTP server has read for each of them meanwhile, 256 KiB and more: 74 MiB were measured.
MOST_MORE: Final = {"file": 64, "s3": 96}


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(storage: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    environment: dict[str, str] = {}
    if storage == "s3":
        s3: S3Server = request.getfixturevalue("s3_server")
        environment = dict(s3.environment) | {"BONGSU_STORAGE_URL": request.getfixturevalue("s3_url")}
    made = RunningServer(tmp_path, environment, dev=True)
    made.start()
    yield made
    made.stop()


def status(pid: int, name: str) -> int:
    """A figure of /proc/<pid>/status in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    raise KeyError(name)


def upload(server: RunningServer, mebibytes: int) -> str:
    def body() -> Iterator[bytes]:
        for _ in range(mebibytes):
            yield BLOCK

    length = {"Content-Length": str(mebibytes * MIB)}
    answer = httpx.put(f"{server.url}/uploads?filename=a", content=body(), headers=length, timeout=600)
    assert answer.status_code == 202, answer.text
    upload_id: str = answer.json()["id"]
    return upload_id


def stored(server: RunningServer, upload_id: str) -> bool:
    return bool(httpx.get(f"{server.url}/uploads/{upload_id}", timeout=60).json()["state"] == "stored")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("files", "mebibytes"), [(1, scaled(128, 1024)), (64, scaled(4, 100))], ids=["alone", "at once"]
)
def test_uploads_take_little_memory_however_large_or_many_they_are(
    server: RunningServer, storage: str, files: int, mebibytes: int
) -> None:
    """Until the last is stored. Short: 1 × 128 MiB, and 64 × 4 MiB at once; soak: 1 GiB, and 64 × 100 MiB."""
    first = upload(server, 1)  # what is imported at the first upload belongs to an idle replica
    wait_until(lambda: stored(server, first), within=60, what="the first upload to be stored")
    idle = status(server.pid, "VmRSS")
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak starts anew
    with ThreadPoolExecutor(files) as clients:
        ids = list(clients.map(lambda _: upload(server, mebibytes), range(files)))
    received = status(server.pid, "VmHWM")
    wait_until(lambda: all(stored(server, one) for one in ids), within=1200, what="all to be stored")
    peak = status(server.pid, "VmHWM")
    print(f"{files} × {mebibytes} MiB: idle {idle} MiB, receiving +{received - idle}, storing +{peak - idle}")
    assert peak <= idle + MOST_MORE[storage]
