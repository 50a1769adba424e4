"""One child process: started with its output captured, awaited, stopped within a bound, never left behind."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

__all__ = ["Child", "MissingProgram", "Process", "StartError", "find_program", "free_port", "wait_until"]

# Below Linux's ephemeral range (32768-60999): while a server is down, an outgoing connection could be given
# its port as a source port, and a client that keeps retrying a closed ephemeral port sooner or later connects
# to itself.
_PORTS = range(20_000, 32_000)

SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin")
"""Where programs such as nginx are that are not on everybody's PATH."""


class StartError(RuntimeError):
    """A program did not start, or not in time; the message ends with the tail of its log."""


class MissingProgram(StartError):
    """A program is not installed; the message says what to install."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, outside the range of outgoing connections.

    Raises StartError when 200 random candidates are all taken.
    """
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise StartError("no free TCP port on 127.0.0.1 between 20000 and 32000")


def find_program(name: str, package: str, extra: Sequence[Path] = ()) -> str:
    """Path of the executable `name`: from `extra` directories first, then PATH, then `SYSTEM_DIRECTORIES`.

    Raises MissingProgram, naming the Debian `package` to install.
    """
    places = [*map(str, extra), os.environ.get("PATH", os.defpath), *SYSTEM_DIRECTORIES]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise MissingProgram(f"{name} is not installed. On Debian or Ubuntu: apt-get install {package}")
    return found


def wait_until(condition: Callable[[], bool], *, within: float, what: str) -> None:
    """Poll `condition` every 20 ms. Raises TimeoutError naming `what` when it is false after `within` s."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:g} s")
        time.sleep(0.02)


class Process(Protocol):
    """What a `Child` needs of `subprocess.Popen`."""

    pid: int

    @property
    def stdout(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Child:
    """A program run in its own session, so that a terminal's Ctrl-C reaches us alone and we choose the order.

    On Linux the kernel sends `death_signal` to it when the thread that started it ends, so that nothing
    outlives a `kill -9` of the runner; start it from the main thread, therefore. Its output goes line by
    line to the file `log` and, if given, to `on_line`. The descriptors in `keep_open` stay open in it.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        grace: float = 10.0,
        on_line: Callable[[str], None] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log_path = log
        self._argv = list(argv)
        self._env = None if env is None else dict(env)
        self._cwd = cwd
        self._user = user
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._grace = grace
        self._on_line = on_line
        self._keep_open = tuple(keep_open)
        self._process: Process | None = None
        self._pump: threading.Thread | None = None
        self._expected_to_end = True
        self._asked_to_stop = False

    @property
    def pid(self) -> int:
        """Process id. Raises RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit status, negative for a signal; None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it and return at once. Raises RuntimeError if it runs, OSError if it can't be executed."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self._join_pump()
        self._expected_to_end = self._asked_to_stop = False
        self._process = self._launch()
        self._pump = threading.Thread(
            target=self._copy_output, args=(self._process,), name=f"log of {self.name}", daemon=True
        )
        self._pump.start()

    def await_ready(self, ready: Callable[[], bool], *, within: float = 60.0) -> None:
        """Wait until `ready()` holds. Raises StartError with the log's tail when it ends or time is up."""

        def ready_or_over() -> bool:
            return not self.running or ready()

        try:
            wait_until(ready_or_over, within=within, what=f"{self.name} ready")
        except TimeoutError as error:
            self.kill()
            raise StartError(f"{error}\n{self.log_tail()}") from None
        if not self.running:
            code = self.exit_code
            self.kill()  # joins the pump, so that the tail holds its last words
            raise StartError(f"{self.name} ended while starting ({describe_exit(code)})\n{self.log_tail()}")

    def ask_to_stop(self) -> None:
        """Send it its stop signal, once, and return at once."""
        if self._process is not None and self.running and not self._asked_to_stop:
            self._process.send_signal(self._stop_signal)
        self._expected_to_end = self._asked_to_stop = True

    def hurry(self, harder: signal.Signals, *, after: float) -> None:
        """Having asked it to stop, send it `harder` as well if it is still there `after` seconds from now."""
        if self._process is not None and self.running:
            try:
                self._process.wait(after)
            except subprocess.TimeoutExpired:
                self._process.send_signal(harder)

    def stop(self) -> None:
        """Ask it to end; after `grace` seconds end its whole process group. Safe to call twice."""
        self.ask_to_stop()
        if self._process is not None and self.running:
            try:
                self._process.wait(self._grace)
            except subprocess.TimeoutExpired:
                self._report(f"still there {self._grace:g} s after {self._stop_signal.name}: killing it")
                self._kill_group()
        self._join_pump()

    def kill(self) -> None:
        """End it and its process group with SIGKILL, as a power loss would, and wait until it is gone."""
        self._expected_to_end = True
        if self._process is not None and self.running:
            self._kill_group()
        self._join_pump()

    def died_unexpectedly(self) -> bool:
        """True once for each end that nobody asked for. Its process group (nginx's workers) is ended too."""
        if self._expected_to_end or self.running:
            return False
        self._expected_to_end = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._join_pump()
        return True

    def log(self) -> str:
        """All it has printed since its last start."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(f"  {self.name} | {line}" for line in self.log().splitlines()[-lines:])

    def _launch(self) -> Process:
        return subprocess.Popen(
            [*self._tie_to_parent(), *self._argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,
            pass_fds=self._keep_open,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )

    def _tie_to_parent(self) -> list[str]:
        # setpriv rather than preexec_fn: Python code between fork and exec can deadlock, since we run log
        # threads. The user changes before setpriv runs: afterwards the kernel would forget the signal.
        setpriv = shutil.which("setpriv")
        return [] if setpriv is None else [setpriv, "--pdeathsig", self._death_signal.name[3:], "--"]

    def _kill_group(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _join_pump(self) -> None:
        if self._pump is not None:
            self._pump.join(
                timeout=5
            )  # a grandchild may still hold the pipe open; its lines are not worth a hang
            self._pump = None

    def _copy_output(self, process: Process) -> None:
        assert process.stdout is not None
        with process.stdout as output, self.log_path.open("wb") as log:
            for raw in output:
                log.write(raw)
                log.flush()
                if self._on_line is not None:
                    self._on_line(raw.decode(errors="replace").rstrip("\n"))

    def _report(self, line: str) -> None:
        if self._on_line is not None:
            self._on_line(line)


def describe_exit(code: int | None) -> str:
    """`exit status 3` or `killed by SIGKILL`, for people."""
    if code is None:
        return "still running"
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
