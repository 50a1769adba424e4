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
from bench.workloads import FULL, QUICK, WORKLOADS, Bench

ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"


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
    for name in list(options.peers):
        try:
            PEERS[name].prepare(bench.programs)
        except Missing as missing:
            results.missing[name] = str(missing)
            print(f"{PEERS[name].title}: {missing}", file=sys.stderr)
    start = time.monotonic()
    for workload in options.workloads:
        for name in options.peers:
            if name in results.missing:
                continue
            results.rows += _measure(bench, workload, name)
            results.save(options.json)
            print(f"{time.monotonic() - start:6.0f} s  {workload}, {name}", file=sys.stderr)
    _publish(results, docs=options.docs)
    print(f"JSON: {options.json}", file=sys.stderr)
    return 0


def _measure(bench: Bench, workload: str, name: str) -> list[Row]:
    """The rows of one workload on one peer. One that breaks is a row with its problem; the others go on."""
    rows: list[Row] = []
    try:
        rows.extend(WORKLOADS[workload](bench, PEERS[name]))
    except (LoadError, StartError, OSError) as error:
        broken = Row(workload, "broke off", name)
        broken.problem(str(error).splitlines()[0])
        rows.append(broken)
    return rows


def _publish(results: Results, *, docs: bool) -> None:
    text = tables(results)
    print(text)
    if docs:
        write_into(PAGE, "tables", text)
        draw_costs(results, PAGE.with_name("performance-cost.svg"))
        draw_growth(results, PAGE.with_name("performance-growth.svg"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter runs: minutes instead of 40")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), metavar="A,B")
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), metavar="A,B")
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
