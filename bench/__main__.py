"""`python -m bench`: measures, prints tables, writes JSON; `--docs` writes docs/performance.md anew."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from deploy.child import StartError

from bench.build import HERE, Missing, build_load
from bench.generator import LoadError
from bench.peers import PEERS
from bench.plot import draw_costs, draw_growth
from bench.report import tables, write_into
from bench.results import Results, Row, machine
from bench.workloads import FULL, QUICK, WORKLOADS, Bench, Scale

ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"

REFERENCES = ("bongsu", "bongsu-ws", "sendloop")
"""All that --quick measures of the workloads whose comparison takes long."""


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: everything that was started is ended
    _raise_file_limit()
    home = ROOT / "var" / "bench"
    home.mkdir(parents=True, exist_ok=True)
    if options.tables_of is not None:
        _publish(Results.load(options.tables_of), docs=options.docs)
        return 0
    results = Results(machine())
    bench = Bench(home / "programs", QUICK if options.quick else FULL)
    build_load(bench.programs)
    peers = []
    for name in options.peers or PEERS:
        peer = PEERS[name]
        if peer.instead_of in peers:
            continue
        try:
            peer.prepare(bench.programs)
            peers.append(name)
        except Missing as missing:
            results.missing[name] = str(missing)
            print(f"{peer.title}: {missing}", file=sys.stderr)
    plan = _plan(options, bench.scale, peers)
    left = _Left(plan, quick=options.quick)
    for workload, name in plan:
        print(f"{left}  {workload}, {name}", file=sys.stderr)
        results.rows += _measure(bench, workload, name)
        results.save(options.json)
        left.done(workload)
    _publish(results, docs=options.docs)
    print(f"JSON: {options.json}", file=sys.stderr)
    return 0


def _plan(options: argparse.Namespace, scale: Scale, peers: list[str]) -> list[tuple[str, str]]:
    """Workload and peer of all that is measured. Peers that were asked for by name leave nothing out."""

    def compares(workload: str) -> bool:
        return scale.compared is None or workload in scale.compared or bool(options.peers)

    return [
        (workload, name)
        for workload in options.workloads
        for name in peers
        if WORKLOADS[workload].takes(PEERS[name]) and (compares(workload) or name in REFERENCES)
    ]


class _Left:
    """How long it has taken and may take yet: what is expected of the rest, at the pace so far."""

    def __init__(self, plan: list[tuple[str, str]], *, quick: bool) -> None:
        self._quick = quick
        self._expected = sum(self._of(workload) for workload, _ in plan)
        self._done = 0.0
        self._start = time.monotonic()

    def _of(self, workload: str) -> float:
        return WORKLOADS[workload].seconds[self._quick]

    def done(self, workload: str) -> None:
        self._done += self._of(workload)

    def __str__(self) -> str:
        spent = time.monotonic() - self._start
        pace = spent / self._done if self._done else 1.0
        return f"{spent:5.0f} s, about {(self._expected - self._done) * pace:.0f} s left"


def _measure(bench: Bench, workload: str, name: str) -> list[Row]:
    """The rows of one workload on one peer. One that breaks is a row with its problem; the others go on."""
    rows: list[Row] = []
    try:
        rows.extend(WORKLOADS[workload].measure(bench, PEERS[name]))
    except (LoadError, StartError, OSError) as error:
        broken = Row(workload, "broke off", name)
        broken.problem(str(error).splitlines()[0])
        rows.append(broken)
    return rows


def _publish(results: Results, *, docs: bool) -> None:
    broadcasts, files = results.divided("uploads")
    for place, part in (("tables", broadcasts), ("uploads", files)):
        if part.rows or not results.rows:
            text = tables(part)
            print(text)
            if docs:
                write_into(PAGE, place, text)
    if docs and broadcasts.rows:
        draw_costs(broadcasts, PAGE.with_name("performance-cost.svg"))
        draw_growth(broadcasts, PAGE.with_name("performance-growth.svg"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter runs; 5 minutes, not 40")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), metavar="A,B")
    parser.add_argument("--peers", type=_names(PEERS), default=[], metavar="A,B", help="default: all")
    parser.add_argument("--json", type=Path, default=ROOT / "var" / "bench" / "results.json", metavar="FILE")
    parser.add_argument(
        "--docs", action="store_true", help="write tables and pictures of docs/performance.md"
    )
    parser.add_argument("--tables-of", type=Path, metavar="FILE", help="measure nothing: show this JSON")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return names

    return read


def _raise_file_limit() -> None:
    """10,000 clients are as many descriptors in the generator and in the server, which inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < 10_500:
        sys.exit(f"The limit of open files is {hard}; 10,000 connections need 10,500: ulimit -Hn 20000")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
