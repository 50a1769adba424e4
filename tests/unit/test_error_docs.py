"""docs/errors.md lists every problem that the code can answer, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from bongsu.protocol import problems
from bongsu.protocol.problems import ProblemKind

TEXT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()


def test_the_table_of_problems_is_the_code_s_table() -> None:
    kinds = {kind.code: kind.status for kind in vars(problems).values() if isinstance(kind, ProblemKind)}
    rows = {
        code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d{3}) \|", TEXT, re.MULTILINE)
    }
    assert rows == kinds
