"""Where uploads that were interrupted go on: their addresses, kept in the user's state directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

__all__ = ["Unfinished", "fingerprint"]

_KEPT: Final = 30 * 86400.0
"""Seconds after which an address is dropped: no server keeps an unfinished upload for so long."""


def fingerprint(server: str, file: Path) -> str:
    """Stands for this content of this file on this server: `<file and server>.<content>`. Raises OSError.

    Size and time of change stand for the content: to hash a large file takes as long as to send it.
    """
    state = file.stat()
    place = f"{server}\0{file.resolve()}".encode("utf-8", "surrogateescape")
    content = f"{state.st_size}\0{state.st_mtime_ns}".encode()
    return f"{hashlib.sha256(place).hexdigest()}.{hashlib.sha256(content).hexdigest()}"


class Unfinished:
    """One small file for each unfinished upload, readable by its user only.

    Never raises: without a place to remember it an upload still works, only not across two runs.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` None: `$XDG_STATE_HOME/bongsu/uploads`, by default below `~/.local/state`."""
        self._directory = directory or _state_home() / "bongsu" / "uploads"

    def find(self, key: str) -> str | None:
        """The path on the server under which the upload goes on; None when there is none."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._directory / key).read_text("utf-8").strip() or None
        return None

    def keep(self, key: str, path: str) -> None:
        """Also forgets what was kept of an earlier content of the file: nothing goes on there."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_old()
            for earlier in self._directory.glob(f"{key.partition('.')[0]}.*"):
                earlier.unlink(missing_ok=True)
            # Under its name only when it is whole: a run that ends here must not leave half an address.
            with tempfile.NamedTemporaryFile("w", dir=self._directory, delete=False, encoding="utf-8") as new:
                new.write(path)
            os.replace(new.name, self._directory / key)

    def forget(self, key: str) -> None:
        with contextlib.suppress(OSError):
            (self._directory / key).unlink(missing_ok=True)

    def _drop_old(self) -> None:
        oldest = time.time() - _KEPT
        for kept in self._directory.iterdir():
            if kept.stat().st_mtime < oldest:
                kept.unlink(missing_ok=True)


def _state_home() -> Path:
    # The XDG specification: a relative path in the variable is to be ignored.
    said = os.environ.get("XDG_STATE_HOME", "")
    return Path(said) if os.path.isabs(said) else Path("~/.local/state").expanduser()
