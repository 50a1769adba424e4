"""How much of a long test runs: a little, the same every time, in `make test`; all of it in `make soak`."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = os.environ.get("BONGSU_SOAK") == "1"


def scaled(short: int, full: int) -> int:
    """`full` under `make soak`, which sets `BONGSU_SOAK=1` and runs the tests marked `soak`; else `short`."""
    return full if SOAK else short
