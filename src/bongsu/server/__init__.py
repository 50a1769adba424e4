"""Our uvicorn: raw sockets, bounds on what a stranger may send, and an end that loses nothing."""

from bongsu.server.run import run

__all__ = ["run"]
