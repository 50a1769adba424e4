"""The load generator, `load/`, as a process on its own core that is told what to do."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Generator", "LoadError"]


class LoadError(RuntimeError):
    """The generator could not do what it was told; the message holds what the server answered."""


class Generator:
    """Clients of one kind against one server, or several replicas.

    Use as a context manager: leaving it ends the process, and with it all connections. Commands block until
    done and return the generator's own account; `load/load.c` lists them.
    """

    def __init__(
        self,
        program: Path,
        core: int,
        *,
        dialect: str,
        ports: Sequence[int],
        path: str,
        channel: str,
        channels: int = 1,
        own: bool = False,
        size: int = 128,
        publishers: int = 1,
        publish_port: int | None = None,
        receive_buffer: int | None = None,
        patience: int = 20,
        tokens: Path | None = None,
    ) -> None:
        arguments = ["--dialect", dialect, "--path", path, "--channel", channel, "--channels", str(channels)]
        arguments += ["--size", str(size), "--publishers", str(publishers), "--patience", str(patience)]
        for port in ports:
            arguments += ["--port", str(port)]
        if own:
            arguments.append("--own")
        if publish_port is not None:
            arguments += ["--publish-port", str(publish_port)]
        if receive_buffer is not None:
            arguments += ["--receive-buffer", str(receive_buffer)]
        if tokens is not None:
            arguments += ["--tokens", str(tokens)]
        self._publishers = publishers
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, total: int, *, at_once: int = 64) -> dict[str, Any]:
        """Have `total` subscribers, `at_once` handshakes under way. Raises LoadError if one is refused."""
        answer = self._tell(f"open {total} {at_once}", within=200)
        if answer["open"] != total:
            raise LoadError(f"{answer['open']} of {total} connected: {answer['complaint']}")
        return answer

    def open_publishers(self) -> None:
        """Connect those that only publish. Raises LoadError if one is refused."""
        answer = self._tell("publishers", within=40)
        if answer["failed"]:
            raise LoadError(f"a publisher was refused: {answer['complaint']}")

    def window(self, in_flight: int, seconds: float, *, publishers: int | None = None) -> dict[str, Any]:
        """Publish for `seconds` with that many messages in flight, then wait for the last of them.

        `publishers` of them take turns, by default all.
        """
        turns = self._publishers if publishers is None else publishers
        return self._tell(f"window {in_flight} {seconds} {turns}", within=seconds + 40)

    def rate(self, per_second: float, seconds: float) -> dict[str, Any]:
        """Publish at this rate, whatever comes back, then wait for the last message."""
        return self._tell(f"rate {per_second} {seconds} {self._publishers}", within=seconds + 40)

    def rest(self, seconds: float) -> dict[str, Any]:
        """Do nothing but answer pings."""
        return self._tell(f"rest {seconds}", within=seconds + 20)

    def stall(self, count: int) -> None:
        """The last `count` subscribers read no more."""
        self._tell(f"stall {count}", within=10)

    def _tell(self, command: str, *, within: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], within)[0]:
            raise LoadError(f"no answer to {command!r} within {within:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the generator ended at {command!r} with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
