"""`make run-cluster`'s runner as a program: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from deploy.child import Child
from deploy.cluster import REPOSITORY
from deploy.postgres_server import home_for
from tests.e2e.listener import open_stalled_socket
from tests.servers import answers, free_port, outer_environment, wait_until


class Runner:
    """The runner in a directory of its own, and what can be seen of it from outside."""

    def __init__(self, root: Path, log: Path, *, replicas: int = 1, **env: str) -> None:
        self.root = root
        self.port = free_port()
        self.child = Child(
            "runner",
            [
                *(sys.executable, "-m", "deploy.cluster", "--root", str(root)),
                *("--replicas", str(replicas), "--port", str(self.port)),
            ],
            log=log,
            env={**outer_environment(), **env},
            cwd=REPOSITORY,
            grace=60,
        )

    @property
    def state(self) -> Path:
        return self.root / "var" / "cluster"

    def start(self) -> None:
        self.child.start()
        # nginx answers a moment before the runner has said so.
        self.child.await_ready(
            lambda: "Bongsu is at" in self.child.log() and answers(f"http://127.0.0.1:{self.port}/readyz"),
            within=60,
        )

    def processes(self) -> list[psutil.Process]:
        """All processes below the runner."""
        return psutil.Process(self.child.pid).children(recursive=True)


@pytest.fixture
def runner(request: pytest.FixtureRequest, cluster_root: Path, tmp_path: Path) -> Iterator[Runner]:
    """Not started yet; with one replica unless the test asks for more."""
    runner = Runner(cluster_root, tmp_path / "runner.log", replicas=getattr(request, "param", 1))
    yield runner
    runner.child.stop()
    shutil.rmtree(home_for(runner.state / "postgres"), ignore_errors=True)


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run. One that has ended, but whose parent has not asked for its status, does not."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # it ended between the two questions
            return False

    return [process for process in processes if runs(process)]


def run_traces(directory: Path) -> list[Path]:
    """What a finished run must not leave: sockets, pid files, lists of ports, temporary directories."""
    return [
        path
        for path in directory.rglob("*")
        if stat.S_ISSOCK(path.lstat().st_mode)
        or path.suffix == ".pid"
        or path.name in {"nginx", "listen.conf", "replicas.conf", "initdb.password"}
    ]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_only_data_stays(runner: Runner, ending: signal.Signals) -> None:
    runner.start()
    processes = runner.processes()
    names = {process.name() for process in processes}
    assert {"redis-server", "postgres", "nginx"} <= names, names
    home = home_for(runner.state / "postgres")

    os.kill(runner.child.pid, ending)
    wait_until(lambda: not runner.child.running, within=60, what="the runner ended")

    assert runner.child.exit_code == 0, runner.child.log()
    assert still_alive(processes) == []
    assert run_traces(runner.state) == []
    assert run_traces(home) == []
    assert (home / "data" / "PG_VERSION").exists()
    assert (runner.state / "redis").is_dir()
    for secret in ("api.key", "token.secret", "postgres.password"):
        assert stat.S_IMODE((runner.state / secret).stat().st_mode) == 0o600
    said = runner.child.log()
    for part in ("redis", "postgres", "database", "replica-1", "nginx"):
        assert any(line.split()[:2] == [part, "*"] for line in said.splitlines()), (part, said)
    for secret in ("api.key", "token.secret", "postgres.password"):
        assert (runner.state / secret).read_text().strip() not in said


def test_a_client_that_takes_nothing_holds_up_no_end(runner: Runner) -> None:
    """nginx waits for its connections to end, and one that has been handed over to the kernel never does."""
    runner.start()
    base = f"http://127.0.0.1:{runner.port}"
    headers = {"X-API-Key": (runner.state / "api.key").read_text().strip()}
    with open_stalled_socket(base):
        for _ in range(500):  # 2 MB: more than its kernel and nginx's take for it
            body = {"channel": "broadcast", "data": "x" * 4096}
            httpx.post(f"{base}/api/publish", json=body, headers=headers).raise_for_status()
        runner.child.stop()
    assert runner.child.exit_code == 0, runner.child.log()
    assert "killing it" not in runner.child.log()


def test_nothing_outlives_a_runner_that_was_killed_and_the_next_one_has_its_data(runner: Runner) -> None:
    runner.start()
    processes = runner.processes()
    key = (runner.state / "api.key").read_text()

    os.kill(runner.child.pid, signal.SIGKILL)
    wait_until(lambda: not still_alive(processes), within=60, what="all programs of the killed runner ended")

    runner.child.stop()
    runner.start()
    assert (runner.state / "api.key").read_text() == key


def test_a_second_runner_in_the_same_directory_is_refused(runner: Runner, tmp_path: Path) -> None:
    runner.start()
    second = Runner(runner.root, tmp_path / "second.log")
    second.child.start()
    wait_until(lambda: not second.child.running, within=30, what="the second runner ended")
    second.child.stop()
    assert second.child.exit_code == 1
    assert f"a cluster runs in {runner.state} already" in second.child.log()
    assert answers(f"http://127.0.0.1:{runner.port}/readyz")


@pytest.mark.parametrize("runner", [2], indirect=True)
def test_a_part_that_dies_is_reported_and_the_others_go_on(runner: Runner) -> None:
    runner.start()
    [replica] = [p for p in runner.processes() if p.environ().get("BONGSU_REPLICA") == "replica-1"]
    replica.kill()
    wait_until(
        lambda: "replica-1  ! DIED (killed by SIGKILL)" in runner.child.log(),
        within=30,
        what="the death reported",
    )
    assert answers(f"http://127.0.0.1:{runner.port}/readyz")


def test_a_taken_port_is_refused_with_a_sentence_and_nothing_is_left_running(runner: Runner) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", runner.port))
        taken.listen()
        runner.child.start()
        wait_until(lambda: not runner.child.running, within=60, what="the runner gave up")
        runner.child.stop()
    assert runner.child.exit_code == 1
    assert f"port {runner.port} is taken; choose another" in runner.child.log()
    assert run_traces(runner.state) == []


def test_a_missing_program_is_named_with_what_to_install(cluster_root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-programs"
    empty.mkdir()
    code = (
        "import deploy.child, deploy.cluster, sys, pathlib;"
        "deploy.child.SYSTEM_DIRECTORIES = ();"
        "sys.exit(deploy.cluster.run(pathlib.Path(sys.argv[1]), 1, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cluster_root)],
        env={**outer_environment(), "PATH": str(empty)},
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert "redis-server is not installed. On Debian or Ubuntu: apt-get install redis-server" in done.stdout


def test_settings_that_the_runner_makes_itself_are_refused_not_overwritten(
    cluster_root: Path, tmp_path: Path
) -> None:
    runner = Runner(cluster_root, tmp_path / "runner.log", BONGSU_BROKER_URL="redis://elsewhere")
    runner.child.start()
    wait_until(lambda: not runner.child.running, within=30, what="the runner gave up")
    runner.child.stop()
    assert runner.child.exit_code == 2
    assert "unset BONGSU_BROKER_URL" in runner.child.log()
