"""Results as tables: on the terminal, and in docs/performance.md between its markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers import PEERS
from bench.results import Results, Row

__all__ = ["tables", "write_into"]


@dataclass(frozen=True)
class Column:
    title: str
    metric: str
    digits: int
    spread: bool = False
    factor: float = 1


COST = Column("CPU µs", "cpu_us", 2, spread=True)
LATENCIES = (
    Column("p50 ms", "p50_us", 1, factor=1e-3),
    Column("p99 ms", "p99_us", 1, factor=1e-3),
)
BUSY = Column("generator busy %", "load_busy", 0, factor=100)
DELIVERY = (COST, Column("Redis µs", "redis_us", 2), Column("k/s", "per_s", 0, factor=1e-3), *LATENCIES, BUSY)

HEADINGS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "fanout": ("One channel, 1,000 subscribers, 128 B: cost of a delivery, publishing included", DELIVERY),
    "single": (
        "One subscriber for each channel, published on another replica: cost of a message",
        DELIVERY,
    ),
    "connections": (
        "Connections: cost of a connect with a subscription, memory and cost of an idle client",
        (COST, Column("KiB", "kib", 1, spread=True)),
    ),
    "growth": ("Growth: cost of a delivery, 32 in flight", DELIVERY),
    "replicas": ("Replicas: cost of a delivery, all replicas together, on one core", DELIVERY),
    "stalled": (
        "Stalled readers: 250 subscribers, 100 messages of 1 KiB a second; latencies are those of the others",
        (
            *LATENCIES,
            Column("max ms", "max_us", 1, factor=1e-3),
            Column("memory + MiB", "grown_mib", 1),
            Column("closed", "gone", 0),
            Column("after s", "gone_after_s", 1),
        ),
    ),
    "publishing": (
        "Publishing over HTTP: cost of a request",
        (COST, Column("requests/s", "per_s", 0), BUSY),
    ),
    "uploads": (
        "Uploads: cost of a GiB until the file is stored",
        (
            Column("CPU s", "cpu_s", 2, spread=True),
            Column("of it until the answer", "answered_cpu_s", 2),
            Column("MiB/s", "mib_s", 0),
            Column("memory + MiB", "grown_mib", 0),
            BUSY,
        ),
    ),
}


def tables(results: Results) -> str:
    """Markdown: a table for each workload, peers that are missing, and what went wrong."""
    parts = [f"Measured on {results.machine['cpu']}, Linux {results.machine['kernel']}, "]
    parts[0] += f"Python {results.machine['python']}. Medians, in brackets the least and greatest run."
    for workload, (heading, columns) in HEADINGS.items():
        rows = [row for row in results.rows if row.workload == workload]
        if rows:
            parts.append(f"**{heading}**\n\n" + _table(rows, columns))
    wrong = [(row, problem) for row in results.rows for problem in row.problems]
    if wrong:
        parts.append("**What went wrong**\n\n" + "\n".join(_complaint(row, text) for row, text in wrong))
    if results.missing:
        lines = (f"- {PEERS[name].title}: {why}" for name, why in results.missing.items())
        parts.append("**Not to be had on this machine**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_into(page: Path, name: str, text: str) -> None:
    """Put `text` between the page's markers `<!-- bench: NAME -->` and `<!-- /bench -->`.

    Raises ValueError when the page has no such place.
    """
    pattern = re.compile(rf"(<!-- bench: {name} -->\n).*?(<!-- /bench -->)", re.DOTALL)
    old = page.read_text()
    if not pattern.search(old):
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", old))


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    used = [column for column in columns if any(column.metric in row.values for row in rows)]
    cases = list(dict.fromkeys(row.case for row in rows))
    peers = list(dict.fromkeys(row.peer for row in rows))
    order = sorted(rows, key=lambda row: (cases.index(row.case), peers.index(row.peer)))
    lines = [_line(["", "", *(column.title for column in used)])]
    lines.append("|---|---|" + "--:|" * len(used))
    shown = ""
    for row in order:
        case, shown = ("" if row.case == shown else row.case), row.case
        title = PEERS[row.peer].title + (" ⚠" if row.problems else "")
        lines.append(_line([case, title, *(_cell(row, column) for column in used)]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(row: Row, column: Column) -> str:
    median, spread = row.median(column.metric), row.spread(column.metric)
    if median is None or spread is None:
        return ""

    def number(value: float) -> str:
        return f"{value * column.factor:,.{column.digits}f}"

    if not column.spread or len(row.values[column.metric]) < 2:
        return number(median)
    return f"{number(median)} ({number(spread[0])}–{number(spread[1])})"


def _complaint(row: Row, text: str) -> str:
    return f"- {PEERS[row.peer].title}, {row.workload}, {row.case}: {text}"
