"""What is measured. Each workload takes one peer and yields a row for each of its cases.

The server under test has one core, the generator and Redis the other. Costs are the server's CPU time
between two reads of its clock, divided by the deliveries (connects, requests) in between: unlike throughput,
they hardly depend on what else the machine is doing. The generator checks every subscriber's sequence; what
it misses is a problem of the row.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from bench.clock import Departures, Peak, Usage, cpu_seconds, resident_bytes
from bench.generator import Generator, LoadError
from bench.peers import Peer
from bench.peers.bongsu import HMAC_SECRET
from bench.results import Row
from bench.site import LOAD_CORE, SERVER_CORE, Server, Site
from bench.uploads import Way

__all__ = ["FULL", "PUBLISHERS", "QUICK", "WORKLOADS", "Bench", "Scale", "Workload", "post", "write_tokens"]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    runs: int
    seconds: float
    """Of each run of a case."""
    long_runs: int
    """The same where a run is long: connections and growth."""
    subscribers: int
    connections: int
    many_channels: int
    growth_subscribers: tuple[int, ...]
    growth_channels: tuple[tuple[int, int], ...]
    """Clients × channels of each."""
    pairs: int
    """Of runs with and without stalled readers."""
    requests: int
    compared: tuple[str, ...] | None
    """Workloads that all servers take part in, the others being for Bongsu and the C loop; None: all."""
    upload_runs: int
    upload_mib: int
    upload_mib_each: int
    """Of the uploads that come at one time."""


FULL = Scale(
    runs=5,
    seconds=2,
    long_runs=3,
    subscribers=1000,
    connections=10_000,
    many_channels=10_000,
    growth_subscribers=(10, 100, 1000, 10_000),
    growth_channels=((1, 1), (1000, 1), (1000, 10), (1000, 100)),
    pairs=2,
    requests=20_000,
    compared=None,
    upload_runs=3,
    upload_mib=1024,
    upload_mib_each=100,
)
QUICK = Scale(
    runs=2,
    seconds=0.6,
    long_runs=2,
    subscribers=1000,
    connections=4000,
    many_channels=2000,
    growth_subscribers=(10, 1000),
    growth_channels=((1, 1), (1000, 10)),
    pairs=1,
    requests=5000,
    compared=("fanout", "single", "publishing", "uploads"),
    upload_runs=3,
    upload_mib=256,
    upload_mib_each=8,
)

PUBLISHERS = 32
"""Connections that take turns to publish: a server that answers one client's commands one after another, as
the client protocol allows, is thus not measured by the patience of a single publisher.
"""

UPLOADS_AT_ONCE = 64

STALL = 14
"""Seconds that readers are stalled: one second fills the kernel's buffers, then Bongsu gives them 5 s to make
progress and, once they are closed and counted, 5 s to drain.
"""


@dataclass(frozen=True)
class Case:
    """How is published: with so many messages in flight, or 20 a second if that is 0."""

    name: str
    in_flight: int
    publishers: int | None = None
    """How many take turns; None is all there are."""


@dataclass(frozen=True)
class Bench:
    """What every workload needs: the programs that setup built, and how much to measure."""

    programs: Path
    scale: Scale

    def site(self, directory: str) -> Site:
        return Site(Path(directory), self.programs)

    def generator(self, peer: Peer, *ports: int, **options: Any) -> Generator:
        options = {"publishers": PUBLISHERS, **options}
        return Generator(
            self.programs / "load",
            LOAD_CORE,
            dialect=peer.dialect,
            ports=ports,
            path=peer.path,
            channel=peer.channel,
            **options,
        )


Measure = Callable[[Bench, Peer], Iterator[Row]]


@dataclass(frozen=True)
class Workload:
    measure: Measure
    seconds: tuple[float, float]
    """What it takes for one peer, in full and quick, roughly: for the estimate of what is left."""
    takes: Callable[[Peer], bool] = lambda peer: bool(peer.dialect)
    """Whether it can be done with this peer."""


def fanout(bench: Bench, peer: Peer) -> Iterator[Row]:
    """One channel, 1,000 subscribers: 20 messages a second, one in flight, 32 in flight; then 20 channels."""
    cases = [
        Case("20 msg/s", 0),
        Case("1 in flight", 1),
        Case("32 in flight", 32),
        Case("32 in flight, 1 publisher", 32, publishers=1),
    ]
    with _temporary() as directory, bench.site(directory) as site:
        server = peer.start(site, SERVER_CORE)
        with bench.generator(peer, server.port) as load:
            load.open(bench.scale.subscribers)
            yield from _publish(bench, peer, "fanout", cases, load, site, [server])
        if not peer.carries_channels:
            return
        with bench.generator(peer, server.port, channels=20) as load:
            load.open(bench.scale.subscribers)
            many = [Case("32 in flight, 20 channels", 32)]
            yield from _publish(bench, peer, "fanout", many, load, site, [server])


def single(bench: Bench, peer: Peer) -> Iterator[Row]:
    """10,000 channels with one subscriber each: published on one replica, measured on another, over Redis."""
    with _temporary() as directory, bench.site(directory) as site:
        server = peer.start(site, SERVER_CORE)
        other = peer.start(site, LOAD_CORE)
        with bench.generator(peer, server.port, own=True, publish_port=other.port) as load:
            load.open(bench.scale.many_channels)
            load.open_publishers()
            cases = [Case("1 in flight", 1), Case("64 in flight", 64)]
            yield from _publish(bench, peer, "single", cases, load, site, [server])


def connections(bench: Bench, peer: Peer) -> Iterator[Row]:
    """Connect, connect command, subscribe to one channel: what it costs, also among 10,000, and keeps."""
    first = Row("connections", "first 1,000", peer.name)
    last = Row("connections", f"last 1,000 of {bench.scale.connections:,}", peer.name)
    idle = Row("connections", f"idle, {bench.scale.connections:,}", peer.name)
    total = bench.scale.connections
    for _ in range(bench.scale.long_runs):
        with _temporary() as directory, bench.site(directory) as site:
            server = peer.start(site, SERVER_CORE)
            with bench.generator(peer, server.port) as load:
                load.open(200)  # whatever a server makes once
                load.rest(0.2)
                empty = resident_bytes(server.pids)
                first.add(cpu_us=_open(load, server, 1200))
                load.open(total - 1000)
                last.add(cpu_us=_open(load, server, total))
                before = cpu_seconds(server.pids)
                load.rest(bench.scale.seconds)
                spent = cpu_seconds(server.pids) - before
                idle.add(
                    kib=(resident_bytes(server.pids) - empty) / (total - 200) / 1024,
                    cpu_us=spent / bench.scale.seconds / total * 1e6,
                )
    yield from (first, last, idle)
    if peer.dialect == "centrifuge":
        yield _connections_with_tokens(bench, peer)


def write_tokens(file: Path, count: int) -> Path:
    """A connection token for each of `count` users, one a line."""
    expiry = int(time.time()) + 3600
    users = (jwt.encode({"sub": f"user-{n}", "exp": expiry}, HMAC_SECRET) for n in range(count))
    file.write_text("\n".join(users) + "\n")
    return file


def _connections_with_tokens(bench: Bench, peer: Peer) -> Row:
    row = Row("connections", "first 1,000, with a token each", peer.name)
    for _ in range(bench.scale.long_runs):
        with _temporary() as directory, bench.site(directory) as site:
            tokens = write_tokens(Path(directory) / "tokens", 1200)
            server = peer.start(site, SERVER_CORE)
            with bench.generator(peer, server.port, tokens=tokens) as load:
                load.open(200)
                row.add(cpu_us=_open(load, server, 1200))
    return row


def growth(bench: Bench, peer: Peer) -> Iterator[Row]:
    """The cost of a delivery, 32 in flight, with more subscribers of one channel, and with more channels.

    Channels have one subscriber each, and are published to on another replica where there is one.
    """
    for subscribers in bench.scale.growth_subscribers:
        with _temporary() as directory, bench.site(directory) as site:
            server = peer.start(site, SERVER_CORE)
            publishers = min(PUBLISHERS, subscribers)
            with bench.generator(peer, server.port, publishers=publishers) as load:
                load.open(subscribers)
                cases = [Case(f"{subscribers:,} subscribers", 32)]
                yield from _publish(
                    bench, peer, "growth", cases, load, site, [server], runs=bench.scale.long_runs
                )
    if not peer.carries_channels:
        return
    for clients, channels in bench.scale.growth_channels:
        with _temporary() as directory, bench.site(directory) as site:
            server = peer.start(site, SERVER_CORE)
            publish_port = peer.start(site, LOAD_CORE).port if peer.redis else server.port
            with bench.generator(
                peer, server.port, own=True, channels=channels, publish_port=publish_port
            ) as load:
                load.open(clients)
                load.open_publishers()
                count = clients * channels
                cases = [Case(f"{count:,} channel" + "s" * (count > 1), 32)]
                yield from _publish(
                    bench, peer, "growth", cases, load, site, [server], runs=bench.scale.long_runs
                )


def replicas(bench: Bench, peer: Peer) -> Iterator[Row]:
    """The same 1,000 subscribers on one replica and on two; the cost is that of all replicas together."""
    for count in (1, 2):
        with _temporary() as directory, bench.site(directory) as site:
            servers = [peer.start(site, SERVER_CORE) for _ in range(count)]
            with bench.generator(peer, *(server.port for server in servers)) as load:
                load.open(bench.scale.subscribers)
                words = f"{count} replica" + "s" * (count > 1)
                cases = [Case(f"{words}, 20 msg/s", 0), Case(f"{words}, 32 in flight", 32)]
                yield from _publish(bench, peer, "replicas", cases, load, site, servers)


def stalled(bench: Bench, peer: Peer) -> Iterator[Row]:
    """250 subscribers, 100 messages of 1 KiB a second: first all read, then a tenth reads no more."""
    subscribers, rate = 250, 100
    calm = Row("stalled", "all read", peer.name)
    rough = Row("stalled", "10 % read nothing", peer.name)
    for _ in range(bench.scale.pairs):
        with _temporary() as directory, bench.site(directory) as site:
            server = peer.start(site, SERVER_CORE)
            with bench.generator(peer, server.port, size=1024, receive_buffer=8192) as load:
                load.open(subscribers)
                load.rate(rate, 1)
                for row, count, seconds in ((calm, 0, 5), (rough, subscribers // 10, STALL)):
                    before = resident_bytes(server.pids)
                    if count:
                        load.stall(count)
                    with Departures(server.pids) as departures:
                        answer = load.rate(rate, seconds)
                    row.add(
                        p50_us=answer["p50"],
                        p99_us=answer["p99"],
                        max_us=answer["max"],
                        grown_mib=(resident_bytes(server.pids) - before) / 2**20,
                    )
                    if count:
                        row.add(gone=departures.gone, gone_after_s=departures.after)
                    _note_problems(row, answer)
    yield from (calm, rough)


def publishing(bench: Bench, peer: Peer) -> Iterator[Row]:
    """HTTP requests that publish one message each, to a channel nobody has subscribed to."""
    assert peer.publish_request is not None
    for at_once in (1, 64):
        row = Row("publishing", f"{at_once} at once", peer.name)
        with _temporary() as directory, bench.site(directory) as site:
            server = peer.start(site, SERVER_CORE)
            for run in range(bench.scale.runs + 1):
                usage = Usage(server.pids)
                requests = bench.scale.requests if at_once > 1 else bench.scale.requests // 4
                answer = post(bench, server.port, peer.publish_request, at_once, requests)
                if run:  # the first one warms up
                    row.add(cpu_us=usage.spent() / requests * 1e6, per_s=requests / answer["seconds"])
                    row.add(load_busy=answer["generator_cpu"] / answer["seconds"])
                if answer["refused"]:
                    row.problem(f"{answer['refused']} refused: {answer['complaint']}")
        yield row


def uploads(bench: Bench, peer: Peer) -> Iterator[Row]:
    """One large file in each way that a server takes it, and many files at one time in the first of them.

    The cost is that of all the server does until nothing is left to do for the file.
    """
    for way in peer.takes:
        yield _upload(bench, peer, way, "alone", 1, bench.scale.upload_mib, bench.scale.upload_runs)
    way = peer.takes[0]
    yield _upload(bench, peer, way, "64 at once", UPLOADS_AT_ONCE, bench.scale.upload_mib_each, 1)


def _upload(bench: Bench, peer: Peer, way: Way, case: str, files: int, mebibytes: int, runs: int) -> Row:
    row = Row("uploads", f"{way.name}, {case}", peer.name)
    os.sched_setaffinity(0, {LOAD_CORE})
    with _temporary() as directory, bench.site(directory) as site, ThreadPoolExecutor(files) as clients:
        server = peer.start(site, SERVER_CORE)
        way.await_stored(server.port, way.send(server.port, 2**20))  # what is made at the first upload
        for _ in range(runs):
            usage, own, peak = Usage(server.pids), time.process_time(), Peak(server.pids)
            began = time.monotonic()
            sent = list(clients.map(lambda _: way.send(server.port, mebibytes * 2**20), range(files)))
            answered, seconds = usage.spent(), time.monotonic() - began
            busy = (time.process_time() - own) / seconds
            for location in sent:
                way.await_stored(server.port, location)
            gibibytes = files * mebibytes / 1024
            row.add(
                cpu_s=usage.spent() / gibibytes,
                answered_cpu_s=answered / gibibytes,
                mib_s=files * mebibytes / seconds,
                grown_mib=peak.grown() / 2**20,
                load_busy=busy,
            )
    return row


def post(
    bench: Bench, port: int, request: tuple[str, str, str], at_once: int, requests: int
) -> dict[str, Any]:
    """Publish over HTTP, on `at_once` connections. Returns the publisher's account; raises LoadError."""
    command = ["taskset", "-c", str(LOAD_CORE), str(bench.programs / "post")]
    command += [str(port), *request, str(at_once), str(requests)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    if done.returncode:
        raise LoadError(done.stderr.decode().strip())
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _publish(
    bench: Bench,
    peer: Peer,
    workload: str,
    cases: list[Case],
    load: Generator,
    site: Site,
    servers: list[Server],
    *,
    runs: int | None = None,
) -> Iterator[Row]:
    """A row for each case. Runs of the cases take turns."""
    load.window(8, 0.5)  # warms up
    rows = [Row(workload, case.name, peer.name) for case in cases]
    pids = [pid for server in servers for pid in server.pids]
    for _ in range(runs or bench.scale.runs):
        for row, case in zip(rows, cases, strict=True):
            usage = Usage(pids)
            redis = Usage([site.redis.pid] if peer.redis else [])
            if case.in_flight:
                answer = load.window(case.in_flight, bench.scale.seconds, publishers=case.publishers)
            else:
                answer = load.rate(20, bench.scale.seconds)
            spent, delivered = usage.spent(), max(1, answer["delivered"])
            row.add(
                cpu_us=spent / delivered * 1e6,
                redis_us=redis.spent() / delivered * 1e6,
                per_core_s=delivered / spent,
                per_s=delivered / answer["seconds"],
                p50_us=answer["p50"],
                p99_us=answer["p99"],
                load_busy=answer["generator_cpu"] / answer["seconds"],
            )
            _note_problems(row, answer)
    yield from rows


def _open(load: Generator, server: Server, total: int) -> float:
    """Connect the last 1,000 of `total`; CPU of the server for each, in µs."""
    usage = Usage(server.pids)
    load.open(total)
    return usage.spent() / 1000 * 1e6


def _note_problems(row: Row, answer: dict[str, Any]) -> None:
    for kind in ("lost", "reordered", "duplicated", "foreign"):
        if answer[kind]:
            row.problem(f"{kind}: {answer[kind]} of {answer['expected']}")
    if answer["complaint"]:
        row.problem(answer["complaint"])


def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bongsu-bench-")


WORKLOADS: dict[str, Workload] = {
    "fanout": Workload(fanout, (60, 12)),
    "single": Workload(single, (32, 8), lambda peer: peer.redis and peer.carries_channels),
    "connections": Workload(connections, (45, 18)),
    "growth": Workload(growth, (75, 18)),
    "replicas": Workload(replicas, (50, 12), lambda peer: peer.redis),
    "stalled": Workload(stalled, (44, 22)),
    "publishing": Workload(publishing, (20, 6), lambda peer: peer.publish_request is not None),
    "uploads": Workload(uploads, (150, 40), lambda peer: bool(peer.takes)),
}
