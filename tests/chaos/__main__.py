"""`make chaos`: seeded runs; a table and a JSON file of what was seen. Ends with 1 on a broken promise."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.cluster import REPOSITORY, Cluster
from rich.console import Console
from rich.table import Table
from tests.chaos.run import SETTINGS, Load, chaos
from tests.servers import outer_environment


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run; the next one has the next seed"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--faults", type=int, default=24, help="in each run, one every 2 seconds or so")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("var/chaos.json"), help="where the results go")
    options = parser.parse_args()
    console, results = Console(), list[dict[str, Any]]()
    for seed in range(options.seed, options.seed + options.runs):
        began = time.monotonic()

        def say(what: str, seed: int = seed, began: float = began) -> None:
            console.print(f"[dim]{time.monotonic() - began:6.1f} s  seed {seed}[/dim]  {what}")

        root = Path(tempfile.mkdtemp(prefix="bongsu-chaos-"))
        (root / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
        cluster = Cluster(root, replicas=options.replicas, env={**outer_environment(), **SETTINGS})
        try:
            with cluster:
                load = Load(clients=options.clients, faults=options.faults)
                ledger = asyncio.run(chaos(cluster, seed, load, say))
        finally:
            shutil.rmtree(cluster.postgres.home, ignore_errors=True)
            if not ledger.violations:
                shutil.rmtree(root)
        results.append({"seed": seed, "violations": ledger.violations, **dict(sorted(ledger.counts.items()))})
    console.print(_table(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    broken = [violation for result in results for violation in result["violations"]]
    for violation in broken[:50]:
        console.print(violation, style="red", markup=False)
    console.print(f"{len(broken)} broken promises in {len(results)} runs; {options.json}")
    return 1 if broken else 0


def _table(results: list[dict[str, Any]]) -> Table:
    names = sorted({name for result in results for name in result} - {"seed", "violations"})
    table = Table("", *[f"seed {result['seed']}" for result in results])
    for name in names:
        table.add_row(name, *[str(result.get(name, 0)) for result in results])
    table.add_row("promises broken", *[str(len(result["violations"])) for result in results])
    return table


if __name__ == "__main__":
    sys.exit(main())
