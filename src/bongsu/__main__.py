"""`python -m bongsu` is `bongsu`."""

from __future__ import annotations

from bongsu.cli import main

if __name__ == "__main__":
    main()
