"""`bongsu serve` as a fork of a process that has imported it: a start for an eighth of the CPU time.

Most tests start servers, and most of a start is the same imports again. Here they are done once for each
process of pytest. A fork runs the shipped command line, with arguments, environment, directory and output of
its own, and ends as any process: by itself, by a signal, by kill -9. It finds nothing in memory but modules,
and importing ours starts and reads nothing. The console script itself, as users start it, is what runs in the
clusters of most of `tests/e2e`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from deploy.child import Child, Process

__all__ = ["PreloadedChild"]

_ROOT: Final = Path(__file__).parents[1]
_NUMBER: Final = struct.Struct("!i")
_MOST: Final = 128 * 1024  # bytes of an order
_LATE: Final = (
    "alembic.command",
    "bongsu.brokers.redis",
    "bongsu.server",
    "sqlalchemy.dialects.postgresql.asyncpg",
)
"""What the command imports when it is to serve, or to serve with this broker or database."""

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


class PreloadedChild(Child):
    """A child whose program is the console script `bongsu`; also on systems where it cannot be a fork."""

    def _launch(self) -> Process:
        if sys.platform != "linux" or self._env is None or self._cwd is None or _differs_early(self._env):
            return super()._launch()
        return _nursery().fork(self._argv, self._env, self._cwd, self._keep_open)


def _differs_early(env: Mapping[str, str]) -> bool:
    """Whether the interpreter would have started otherwise; asyncio looks for its debug mode later."""
    changed = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
    return any(name.startswith(("PYTHON", "LD_")) for name in changed - {"PYTHONASYNCIODEBUG"})


class Fork:
    """What `Child` needs of `subprocess.Popen`. Its parent is the nursery, which passes on how it ended."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid = pid
        self.stdout = os.fdopen(output, "rb")
        self._status = os.fdopen(status, "rb", buffering=0)
        self._code: int | None = None
        self._ended = select.poll()  # not `select`: a test may hold more than 1,024 descriptors
        self._ended.register(status)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._await(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("bongsu", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def _await(self, timeout: float | None) -> int | None:
        with self._lock:
            if self._code is None and self._ended.poll(None if timeout is None else timeout * 1000):
                with self._status:
                    told = self._status.read(_NUMBER.size)
                # Nothing: the nursery itself was killed, and with it all that it had forked.
                self._code = _NUMBER.unpack(told)[0] if told else -signal.SIGKILL
            return self._code


class Nursery:
    """The process that has imported everything. When this process ends, it ends, and its forks with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.preloaded", str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, keep_open: Sequence[int]) -> Fork:
        order = json.dumps({"argv": list(argv), "env": dict(env), "cwd": str(cwd)}).encode()
        output, their_output = os.pipe()
        status, their_status = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._orders, [order], [their_output, their_status, *keep_open])
                (pid,) = _NUMBER.unpack(self._orders.recv(_NUMBER.size))
        finally:
            os.close(their_output)
            os.close(their_status)
        return Fork(pid, output, status)

    def close(self) -> None:
        self._orders.close()
        self._process.wait()


@functools.cache
def _nursery() -> Nursery:
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


# In the nursery


def _fork_as_told(orders: socket.socket) -> None:
    """Returns in each fork, which is to run the command then. In the nursery it returns never."""
    libc = ctypes.CDLL(None)
    nursery = os.getpid()
    statuses: dict[int, int] = {}
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    while True:
        ready, _, _ = select.select([orders.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            _tell_ends(statuses)
        if orders.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(orders, _MOST, 8)
        if not message:
            os._exit(0)
        output, status, *kept = descriptors
        order = json.loads(message)
        pid = os.fork()
        if pid == 0:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != nursery:
                os._exit(1)
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            for opened in map(int, os.listdir("/proc/self/fd")):
                if opened > 2 and opened not in kept:
                    with contextlib.suppress(OSError):  # the one that the list was read from is gone
                        os.close(opened)
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(order["env"])
            sys.argv = order["argv"]
            return
        with contextlib.suppress(OSError):  # both do it: whoever is told the pid may signal the group
            os.setpgid(pid, pid)
        statuses[pid] = status
        for passed_on in (output, *kept):
            os.close(passed_on)
        orders.send(_NUMBER.pack(pid))


def _tell_ends(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with os.fdopen(statuses.pop(pid), "wb", buffering=0) as told, contextlib.suppress(BrokenPipeError):
            told.write(_NUMBER.pack(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    from bongsu.cli import main

    for late in _LATE:
        import_module(late)
    gc.collect()
    gc.freeze()  # the forks share these objects, as long as no collector looks at them
    _fork_as_told(socket.socket(fileno=int(sys.argv[1])))
    main()
