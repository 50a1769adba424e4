"""Programs for the measurements, built or installed into one directory.

What cannot be had is said, not guessed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["HERE", "Missing", "build_load", "compile_c", "install_node", "run"]

HERE = Path(__file__).parent


class Missing(RuntimeError):
    """This program is not to be had on this machine; the message says why."""


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a build step. Raises Missing: its program is not there, or the end of its output."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed")
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        tail = done.stdout.decode(errors="replace").strip().splitlines()[-3:]
        raise Missing(f"{command[0]} failed: " + " / ".join(tail))


def compile_c(program: Path, *sources: Path) -> None:
    """With the system's compiler, unless it is newer than what it is made of. Raises Missing."""
    made_of = [*sources, *(header for source in sources for header in source.parent.glob("*.h"))]
    if program.exists() and program.stat().st_mtime > max(file.stat().st_mtime for file in made_of):
        return
    program.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Wformat=2", "-Werror"]
    run(["cc", *flags, "-o", str(program), *map(str, sources)], cwd=HERE)


def install_node(name: str, programs: Path) -> None:
    """The server of `peers/NAME` with the packages of its lock, in `programs/NAME`. Raises Missing."""
    source, home = HERE / "peers" / name, programs / name
    home.mkdir(parents=True, exist_ok=True)
    lock = home / "package-lock.json"
    same = lock.exists() and lock.read_bytes() == (source / "package-lock.json").read_bytes()
    for file in ("package.json", "package-lock.json", "server.js"):
        shutil.copy(source / file, home / file)
    if not (same and (home / "node_modules" / ".package-lock.json").exists()):
        run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=home)


def build_load(programs: Path) -> None:
    """The generator and the HTTP publisher. Raises Missing: without a C compiler nothing can be measured."""
    load = HERE / "load"
    compile_c(programs / "load", *(load / f"{part}.c" for part in ("load", "dialects", "ws", "tally")))
    compile_c(programs / "post", load / "post.c")
