"""Bongsu: a horizontally scalable realtime broadcast and upload server. Public names only."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("bongsu")
__all__ = ["__version__"]
