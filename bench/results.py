"""What was measured, as plain rows that go to JSON and to tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Results", "Row", "machine"]


@dataclass
class Row:
    """One case of one workload on one peer. `values` holds, for each metric, one number a run."""

    workload: str
    case: str
    peer: str
    values: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What went wrong, such as lost messages; figures beside it are not to be trusted alone."""

    def add(self, **metrics: float) -> None:
        """Add one run's numbers."""
        for metric, value in metrics.items():
            self.values.setdefault(metric, []).append(value)

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def median(self, metric: str) -> float | None:
        """The middle one of the runs, None if it was not measured."""
        runs = self.values.get(metric)
        return statistics.median(runs) if runs else None

    def spread(self, metric: str) -> tuple[float, float] | None:
        """Least and greatest of the runs."""
        runs = self.values.get(metric)
        return (min(runs), max(runs)) if runs else None


@dataclass
class Results:
    """Everything of one run of the bench. `missing` says why a peer is not in it."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def row(self, workload: str, case: str, peer: str) -> Row | None:
        for row in self.rows:
            if (row.workload, row.case, row.peer) == (workload, case, peer):
                return row
        return None

    def divided(self, workload: str) -> tuple[Results, Results]:
        """All but the rows of one workload, and those; each with the peers that are missing."""
        others = [row for row in self.rows if row.workload != workload]
        own = [row for row in self.rows if row.workload == workload]
        return replace(self, rows=others), replace(self, rows=own)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises OSError or ValueError when it is not what `save` wrote."""
        data: dict[str, Any] = json.loads(path.read_text())
        return cls(data["machine"], [Row(**row) for row in data["rows"]], data["missing"])


def machine() -> dict[str, str]:
    """What the figures depend on, in words."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
