"""A short run of `make chaos`, and that its judge sees what it is there to see."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deploy.cluster import REPOSITORY
from tests.chaos.ledger import Ledger, View
from tests.chaos.run import SETTINGS, Load, chaos
from tests.scale import scaled
from tests.servers import PreloadedCluster, outer_environment


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(scaled(1, 20)))
async def test_whatever_dies_every_client_sees_each_publication_once_or_is_told(
    tmp_path: Path, seed: int
) -> None:
    (tmp_path / "nginx.conf").symlink_to(REPOSITORY / "nginx.conf")
    cluster = PreloadedCluster(tmp_path, replicas=2, env={**outer_environment(), **SETTINGS})
    load = Load(clients=12, faults=scaled(8, 40), between=scaled(1, 2))
    try:
        with cluster:
            ledger = await chaos(cluster, seed, load, print)
    finally:
        shutil.rmtree(cluster.postgres.home, ignore_errors=True)
    assert ledger.violations == []
    assert ledger.counts["publications seen"] > ledger.counts["publishes acknowledged"] > 0
    assert ledger.counts["recovered"] > 0


@pytest.mark.parametrize(
    ("offsets", "charge"), [([1, 2, 4], "lost"), ([1, 2, 2], "doubled"), ([2, 1], "lost"), ([1, 2, 3], None)]
)
def test_the_judge_sees_what_is_lost_doubled_or_out_of_order(offsets: list[int], charge: str | None) -> None:
    ledger = Ledger()
    view = View("c", "ch", ledger)
    view.subscribed("e", 0, None, [])
    for offset in offsets:
        view.published(offset, "x")
    assert bool(ledger.violations) is (charge is not None)
    if charge is not None:
        assert charge in ledger.violations[0]


def test_the_judge_sees_a_wrong_recovery() -> None:
    for epoch, offset, recovered, missed in [
        ("other", 1, True, []),  # into another epoch
        ("e", 1, True, [(3, "x")]),  # with a hole
        ("e", 0, True, []),  # from where nobody was
        ("e", 9, False, []),  # refused, though the stream goes on
        ("other", 9, False, [(1, "x")]),  # in part
    ]:
        ledger = Ledger()
        view = View("c", "ch", ledger)
        view.subscribed("e", 1, None, [])
        view.subscribed(epoch, offset, recovered, missed)
        assert ledger.violations, (epoch, offset, recovered, missed)


def test_the_judge_sees_one_position_given_twice() -> None:
    ledger = Ledger()
    ledger.note("ch", ("e", 1), "x", by="a publisher")
    ledger.note("ch", ("e", 1), "y", by="a client")
    assert ledger.violations
