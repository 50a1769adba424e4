"""What a process has used, as the kernel counts it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Departures", "Peak", "Usage", "cpu_seconds", "family", "resident_bytes"]


def family(pid: int) -> list[int]:
    """The process and all that descend from it: nginx's workers do its work."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time, user and kernel, of all threads of these processes so far.

    Read from each process's CPU clock, in nanoseconds; /proc/<pid>/stat counts in hundredths of a second, too
    coarse for 20 messages. The number of the clock is the kernel's interface (clock_getcpuclockid(3)): the
    process id's complement, then 2 for "as scheduled".
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory these processes hold in RAM: `Rss` of /proc/<pid>/smaps_rollup, which counts every page."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


class Usage:
    """CPU seconds of some processes between its making and `spent()`."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._start = cpu_seconds(self._pids)

    def spent(self) -> float:
        return cpu_seconds(self._pids) - self._start


class Peak:
    """How much more memory some processes hold at their peaks than when this is made."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        for pid in self._pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak starts anew
        self._before = self._sum("VmRSS")

    def grown(self) -> int:
        """Bytes; the peaks of the processes need not have been at one time."""
        return self._sum("VmHWM") - self._before

    def _sum(self, figure: str) -> int:
        total = 0
        for pid in self._pids:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(f"{figure}:"):
                    total += int(line.split()[1]) * 1024
        return total


class Departures:
    """Sees processes let go of sockets, from their side: a client that reads nothing cannot see it end.

    (Closing a socket whose peer's window is shut sends neither FIN nor RST until the kernel gives up.)
    A context manager; after it `gone` descriptors are closed, the last one `after` seconds from its entry.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="descriptors")
        self.gone = 0
        self.after = 0.0

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._before = self._count()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()

    def _count(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._pids)

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            gone = self._before - self._count()
            if gone > self.gone:
                self.gone, self.after = gone, time.monotonic() - self._start
