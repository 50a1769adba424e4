"""`python -m bench.profile`: where Bongsu's CPU time goes, step by step, from a profile under load.

py-spy looks at the server's stack from outside, on the generator's core. A sample belongs to the innermost
frame that a step claims; the event loop's own samples are the kernel's and uvloop's. Shares of the samples
times the CPU time of the same work just before, when nobody looked, are the cost of a step. Needs leave to
trace a process: root, or kernel.yama.ptrace_scope = 0.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.build import HERE, build_load
from bench.clock import Usage
from bench.peers import PEERS
from bench.report import write_into
from bench.site import LOAD_CORE, SERVER_CORE, Site
from bench.workloads import FULL, PUBLISHERS, Bench, post, write_tokens

__all__ = ["main"]

STEPS: tuple[tuple[str, str], ...] = (
    ("token check", r"\(bongsu/auth/"),
    ("socket write", r"BongsuWebSocketProtocol\.write |_flush.*\(bongsu/server/protocol\.py"),
    (
        "accept and handshake",
        r"\(bongsu/server/(http|door|handshake)\.py|\(bongsu/transports/(handshake|websocket)\.py|httptools_impl|"
        r"BongsuWebSocketProtocol\.(__init__|open|accept|connection_made)|\(bongsu/app\.py|"
        r"\(bongsu/node/admission\.py",
    ),
    ("Redis: publish, subscribe", r"\(bongsu/brokers/redis/(pipeline|broker|scripts|presence)\.py"),
    ("Redis: read", r"\(bongsu/brokers/(redis/(link|pump)|envelope|base)\.py"),
    ("frame and encode", r"\(bongsu/(protocol/codec/|transports/f|node/variants|server/framing)"),
    ("fan-out", r"\(bongsu/node/(hub|channel|client|backlog|healing)\.py"),
    ("ping and timers", r"\(bongsu/node/wheel\.py"),
    ("subscribe", r"\(bongsu/node/(subscriptions|recovery|permissions|channels)\.py"),
    ("HTTP request", r"\(bongsu/api/|\(bongsu/protocol/api\.py"),
    ("read a frame", r"\(bongsu/server/protocol\.py"),
    ("connect, publish: commands", r"\(bongsu/(node|protocol)/"),
    ("beacon, jobs, database", r"\(bongsu/(jobs|db|uploads)/"),
    ("event loop and kernel: accept, recv, poll", r"^Runner\.run "),
)
"""Step and the frames it claims, `function (file:line)`; of a frame that two would claim, the first one."""

PATTERNS = tuple((step, re.compile(pattern)) for step, pattern in STEPS)
REST = "other"


def step_of(stack: str) -> str | None:
    """The step of one sample, outermost frame first; None for threads that are not the event loop's."""
    frames = stack.split(";")
    if not any(frame.startswith("Runner.run ") for frame in frames):
        return None
    for frame in reversed(frames):
        for step, pattern in PATTERNS:
            if pattern.search(frame):
                return step
    return REST


def shares(collapsed: str) -> Counter[str]:
    """Samples of each step in py-spy's raw output: a stack and its count on each line."""
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        step = step_of(stack)
        if step is not None:
            counts[step] += int(count)
    return counts


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    options.add_argument("--docs", action="store_true", help="write the table into docs/performance.md")
    docs = options.parse_args().docs
    bench = Bench(HERE.parent / "var" / "bench" / "programs", FULL)
    build_load(bench.programs)
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bongsu-bench-") as directory:
        for name, measure in (("connect", _connects), ("publish", _requests), ("deliver", _deliveries)):
            home = Path(directory) / name
            home.mkdir()
            with Site(home, bench.programs) as site:
                columns.update(measure(bench, site))
    text = _table(columns)
    print(text)
    if docs:
        write_into(HERE.parent / "docs" / "performance.md", "profile", text)
    return 0


def _connects(bench: Bench, site: Site) -> dict[str, dict[str, float]]:
    peer = PEERS["bongsu"]
    server = peer.start(site, SERVER_CORE)
    tokens = write_tokens(site.directory / "tokens", 6200)
    with bench.generator(peer, server.port, tokens=tokens) as load:
        load.open(200)
        totals = iter((3200, 6200))

        def connect() -> int:
            load.open(next(totals))
            return 3000

        return {"connect": _costs(site, server.pids, connect)}


def _deliveries(bench: Bench, site: Site) -> dict[str, dict[str, float]]:
    peer = PEERS["bongsu"]
    server, columns = peer.start(site, SERVER_CORE), {}
    with bench.generator(peer, server.port) as load:
        load.open(1000)
        load.window(8, 0.5)
        columns["delivery, 20 msg/s"] = _costs(site, server.pids, lambda: load.rate(20, 6)["delivered"])
        columns["delivery, 32 in flight"] = _costs(site, server.pids, lambda: load.window(32, 4)["delivered"])
    other = peer.start(site, LOAD_CORE)
    options = {"own": True, "publish_port": other.port, "publishers": PUBLISHERS}
    with bench.generator(peer, server.port, **options) as load:
        load.open(1000)
        load.open_publishers()
        columns["message, 1,000 channels, 64 in flight"] = _costs(
            site, server.pids, lambda: load.window(64, 4)["delivered"]
        )
    return columns


def _requests(bench: Bench, site: Site) -> dict[str, dict[str, float]]:
    peer = PEERS["bongsu"]
    assert peer.publish_request is not None
    server, request = peer.start(site, SERVER_CORE), peer.publish_request

    def publish() -> int:
        post(bench, server.port, request, at_once=64, requests=20_000)
        return 20_000

    return {"`POST /api/publish`": _costs(site, server.pids, publish)}


def _costs(site: Site, pids: list[int], work: Callable[[], int]) -> dict[str, float]:
    """µs of each step for one of what `work` does; it is done twice, and returns how many that were."""
    usage = Usage(pids)
    count = work()
    cost = usage.spent() / count * 1e6
    raw = site.directory / f"{time.monotonic_ns()}.raw"
    command = ["taskset", "-c", str(LOAD_CORE), str(Path(sys.executable).parent / "py-spy"), "record"]
    command += ["--pid", str(pids[0]), "--rate", "250", "--duration", "60", "--format", "raw"]
    spy = subprocess.Popen([*command, "--output", str(raw)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert spy.stdout is not None
    try:
        spy.stdout.readline()  # it says that it is sampling
        work()
    finally:
        spy.send_signal(signal.SIGINT)  # it writes its file
        said = spy.communicate(timeout=30)[0]
    if not raw.exists():
        raise SystemExit(f"py-spy: {said.decode(errors='replace').strip()}")
    counts = shares(raw.read_text())
    total = sum(counts.values())
    return {"all": cost} | {step: cost * samples / total for step, samples in counts.items()}


def _table(columns: dict[str, dict[str, float]]) -> str:
    steps = [step for step, _ in STEPS] + [REST]
    lines = ["CPU µs | " + " | ".join(columns), "---|" + "--:|" * len(columns)]
    for step in steps:
        if any(step in column for column in columns.values()):
            cells = (f"{column[step]:.2f}" if step in column else "" for column in columns.values())
            lines.append(f"{step} | " + " | ".join(cells))
    lines.append("**all** | " + " | ".join(f"**{column['all']:.2f}**" for column in columns.values()))
    return (
        "\n".join(f"| {line} |" for line in lines).replace("| ---|", "|---|").replace("--:| |", "--:|") + "\n"
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
