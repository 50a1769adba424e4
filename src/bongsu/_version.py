"""The one place that knows the version; imports nothing of ours, so that every room may import it."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("bongsu")
