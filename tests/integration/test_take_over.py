"""One upload, two shipped replicas, real Redis and PostgreSQL: who reconnects lands on the other one."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.servers import RedisServer, RunningServer, wait_until

MIB = 1024 * 1024
TUS = {"Tus-Resumable": "1.0.0"}
BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}


@dataclass
class Pair:
    """Replicas `a` and `b` of one cluster."""

    a: RunningServer
    b: RunningServer

    def create(self, length: int) -> str:
        answer = httpx.post(f"{self.a.url}/files/", headers=TUS | {"Upload-Length": str(length)}, timeout=30)
        path: str = answer.headers["location"]
        return path

    def offset(self, server: RunningServer, path: str) -> int:
        return int(httpx.head(server.url + path, headers=TUS, timeout=30).headers["upload-offset"])

    def append(self, server: RunningServer, path: str, offset: int, data: bytes) -> httpx.Response:
        headers = BYTES | {"Upload-Offset": str(offset)}
        return httpx.patch(server.url + path, headers=headers, content=data, timeout=30)

    def is_stored(self, path: str, content: bytes) -> bool:
        upload = httpx.get(f"{self.b.url}/uploads/{path[-32:]}", timeout=30).json()
        assert upload["state"] != "failed", upload
        return bool(upload["sha256"] == hashlib.sha256(content).hexdigest() and upload["state"] == "stored")


@pytest.fixture
def pair(
    bongsu_server: Callable[..., RunningServer], redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> Pair:
    shared = {
        "BONGSU_BROKER_URL": redis_server.url,
        "BONGSU_DATABASE_URL": postgres_url,
        "BONGSU_STORAGE_URL": f"file://{tmp_path}/files",
        "BONGSU_UPLOAD__JOB_POLL": "0.2",
        # Nothing comes about in time by itself: no lease and no patience ends while a test waits.
        "BONGSU_UPLOAD__JOB_LEASE": "600",
        "BONGSU_UPLOAD__READ_TIMEOUT": "600",
    }
    pair = Pair(bongsu_server(**shared), bongsu_server(**shared))

    def see_each_other() -> bool:
        replicas = httpx.get(f"{pair.b.url}/status", timeout=30).json()["cluster"]["replicas"]
        return len(replicas) == 2

    wait_until(see_each_other, within=30, what="the replicas to see each other")
    return pair


@contextmanager
def standing_still(server: RunningServer, path: str, data: bytes, length: int) -> Iterator[socket.socket]:
    """A PATCH at 0 that has sent `data` of `length` bytes and sends no more, though its connection stands."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = [f"PATCH {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", "Upload-Offset: 0"]
        head += [f"{name}: {value}" for name, value in BYTES.items()]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + data)
        yield connection


def test_what_another_replica_holds_is_told_taken_over_and_not_sent_again(pair: Pair) -> None:
    """
    Setup: a request on a that has brought 3 MiB, less than a commit, and stands still.
    Do: ask b for the offset; go on there.
    Expect: nothing is sent twice; the request on a is answered 409; the file is whole. All because b asks a,
    which by itself would commit no byte of it, and keep the request for 600 s.
    """
    content = os.urandom(5 * MIB)
    path = pair.create(len(content))
    with standing_still(pair.a, path, content[: 3 * MIB], len(content)) as connection:
        wait_until(lambda: pair.offset(pair.b, path) == 3 * MIB, within=20, what="3 MiB to be told by b")
        connection.settimeout(20)
        answer = pair.append(pair.b, path, 3 * MIB, content[3 * MIB :])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(content)))
        assert connection.recv(4096).startswith(b"HTTP/1.1 409")
    wait_until(lambda: pair.is_stored(path, content), within=30, what="the file to be stored")


def test_a_frozen_replica_loses_its_upload_and_can_add_nothing_when_it_thaws(pair: Pair) -> None:
    """
    Setup: a request on a that has brought 9 MiB; a is frozen with SIGSTOP, so it answers nobody.
    Do: go on at the last commit on b, with other bytes; thaw a, and let its client send the rest.
    Expect: b finishes it; a's request is answered 409; the file is what b was sent.
    """
    lost, content = os.urandom(10 * MIB), os.urandom(10 * MIB)
    path = pair.create(len(content))
    with standing_still(pair.a, path, lost[: 9 * MIB], len(content)) as connection:
        wait_until(
            lambda: httpx.get(f"{pair.a.url}/uploads/{path[-32:]}", timeout=30).json()["size"] >= 8 * MIB,
            within=30,
            what="the first commit",
        )
        os.kill(pair.a.pid, signal.SIGSTOP)
        try:
            offset = pair.offset(pair.b, path)
            assert 8 * MIB <= offset < 10 * MIB
            assert pair.append(pair.b, path, offset, content[offset:]).status_code == 204
        finally:
            os.kill(pair.a.pid, signal.SIGCONT)
        connection.sendall(lost[9 * MIB :])
        assert connection.recv(4096).startswith(b"HTTP/1.1 409")
    whole = lost[:offset] + content[offset:]
    wait_until(lambda: pair.is_stored(path, whole), within=30, what="the file to be stored")


def test_what_a_killed_replica_had_committed_is_gone_on_with_by_the_other(pair: Pair) -> None:
    content = os.urandom(20 * MIB)
    path = pair.create(len(content))
    with standing_still(pair.a, path, content[: 19 * MIB], len(content)):
        wait_until(
            lambda: httpx.get(f"{pair.b.url}/uploads/{path[-32:]}", timeout=30).json()["size"] >= 16 * MIB,
            within=30,
            what="two commits",
        )
        pair.a.kill()
    offset = pair.offset(pair.b, path)
    assert offset >= 16 * MIB
    assert pair.append(pair.b, path, offset, content[offset:]).status_code == 204
    wait_until(lambda: pair.is_stored(path, content), within=30, what="the file to be stored")
