"""Lines of many programs on one terminal: who says it in front, in a colour of its own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TextIO

__all__ = ["Console"]

_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
_BOLD = "1"
_BOLD_RED = "1;31"


class Console:
    """Prints whole lines from any thread. Colours only on a terminal, and not where NO_COLOR is set."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_terminal = self._stream.isatty()
        self._coloured = self.is_terminal and "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}

    def say(self, name: str, line: str) -> None:
        """Print `line` as said by `name`."""
        with self._lock:
            self._print(f"{self._head(name)} | {line}")

    def announce(self, name: str, line: str) -> None:
        """Print `line` as said about `name` by the runner itself."""
        with self._lock:
            self._print(f"{self._head(name)} * {self._paint(line, _BOLD)}")

    def alarm(self, name: str, line: str) -> None:
        """Print a line that must not be overlooked."""
        with self._lock:
            self._print(self._paint(f"{name:<10} ! {line}", _BOLD_RED))

    def voice(self, name: str) -> Callable[[str], None]:
        """A function that prints each line it is given as said by `name`."""
        return lambda line: self.say(name, line)

    def _head(self, name: str) -> str:
        colour = self._colours.setdefault(name, str(_COLOURS[len(self._colours) % len(_COLOURS)]))
        return self._paint(f"{name:<10}", colour)

    def _paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._coloured else text

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            # `make run-cluster | head`: nobody reads any more. The programs must not block on their output
            # for it; every line is in its log file all the same.
            self._stream = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the program
