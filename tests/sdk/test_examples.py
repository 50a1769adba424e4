"""The examples do what they say, with one another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import httpx
import jwt
import pytest
from deploy.cluster import REPOSITORY
from tests.faults import Fault, FaultProxy
from tests.servers import RunningServer, wait_until

EXAMPLES = REPOSITORY / "examples"
# How long one chat may take. Far more than it takes: a loaded machine is no failure.
_PATIENCE = 60
SECRET = "secret-of-the-examples-32-bytes-or-more"


class Chatter:
    """One of the chats as a process: a user types lines, and reads what it prints."""

    def __init__(self, command: list[str], user: str, server: RunningServer, cwd: Path) -> None:
        token = jwt.encode({"sub": user}, SECRET, algorithm="HS256")
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "BONGSU_URL": server.url, "BONGSU_ACCESS_TOKEN": token},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        # Reading a line has no time limit of its own; a process that is dead ends it.
        self._deadline = threading.Timer(_PATIENCE, self._process.kill)
        self._deadline.start()

    def __enter__(self) -> Chatter:
        return self

    def __exit__(self, *_: object) -> None:
        self._deadline.cancel()
        self._process.kill()
        with self._process:
            pass  # which closes its pipes and waits for it

    def types(self, text: str) -> None:
        print(text, file=_pipe(self._process.stdin), flush=True)

    def sees(self, line: str) -> None:
        """The next line printed is `line`."""
        assert _pipe(self._process.stdout).readline() == f"{line}\n"

    def leaves(self) -> None:
        _pipe(self._process.stdin).close()
        assert self._process.wait(timeout=30) == 0


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture
def server(bongsu_server: Callable[..., RunningServer]) -> RunningServer:
    return bongsu_server(BONGSU_CONFIG=str(EXAMPLES / "bongsu.toml"), BONGSU_TOKEN__HMAC_SECRET=SECRET)


@pytest.fixture
def chatters(server: RunningServer, tmp_path: Path) -> Iterator[dict[str, Chatter]]:
    """Ada chats in node, Bob in Python."""
    # node looks for packages beside the file; the examples themselves have none.
    (tmp_path / "chat.mjs").write_text((EXAMPLES / "chat.mjs").read_text())
    (tmp_path / "node_modules").symlink_to(REPOSITORY / "tests" / "sdk" / "node_modules")
    with ExitStack() as leaving:
        yield {
            user: leaving.enter_context(Chatter(command, user, server, tmp_path))
            for user, command in {
                "ada": ["node", "chat.mjs"],
                "bob": [sys.executable, str(EXAMPLES / "chat.py")],
            }.items()
        }


def test_a_chat_in_node_and_one_in_python_hear_each_other_and_a_backend(
    server: RunningServer, chatters: dict[str, Chatter]
) -> None:
    ada, bob = chatters["ada"], chatters["bob"]
    for chatter in (ada, bob):
        chatter.sees("You are in the room.")
    ada.types("봉수가 올랐다")
    for chatter in (ada, bob):
        chatter.sees("ada: 봉수가 올랐다")
    bob.types("I see it")
    for chatter in (ada, bob):
        chatter.sees("bob: I see it")

    published = subprocess.run(
        ["sh", str(EXAMPLES / "publish.sh")],
        env={**os.environ, "BONGSU_URL": server.url, "BONGSU_API_KEY": server.api_key},
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"offset":3' in published.stdout
    for chatter in (ada, bob):
        chatter.sees("somebody: The beacon is lit.")
        chatter.leaves()


MIB = 2**20
_WHOLE = Fault("cut", after=2**60)


@pytest.mark.parametrize(
    ("example", "faults"),
    [
        # One connection for all that it asks.
        ("upload.mjs", [Fault("stall", after=17 * MIB)]),
        # One for each request: the creation, a chunk, and the next one.
        ("upload.py", [_WHOLE, _WHOLE, Fault("stall", after=MIB)]),
    ],
)
def test_a_file_is_uploaded_with_either_client_and_goes_on_where_it_was(
    server: RunningServer, tmp_path: Path, example: str, faults: list[Fault]
) -> None:
    """setup: an upload that hangs in the middle. do: kill it; the same again. expect: one upload, whole."""
    (tmp_path / "upload.mjs").write_text((EXAMPLES / "upload.mjs").read_text())
    (tmp_path / "node_modules").symlink_to(REPOSITORY / "tests" / "sdk" / "node_modules")
    content = os.urandom(20 * MIB)
    (tmp_path / "봉수.bin").write_bytes(content)
    program = [sys.executable, str(EXAMPLES / example)] if example.endswith("py") else ["node", example]
    token = jwt.encode({"sub": "ada"}, SECRET, algorithm="HS256")
    with FaultProxy(server.port) as line:
        command = [*program, "봉수.bin"]
        env = {**os.environ, "BONGSU_URL": line.url, "BONGSU_ACCESS_TOKEN": token}
        line.break_next(*faults)
        with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) as first:
            wait_until(lambda: line.happened == 1, within=_PATIENCE, what="the upload hangs")
            first.kill()
        second = subprocess.run(
            command,
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=server.url, headers=headers) as http:
        (record,) = http.get("/uploads").json()["uploads"]
        assert record["id"] == second.stdout.strip()
        assert (record["owner"], record["filename"], record["size"]) == ("ada", "봉수.bin", 20 * MIB)

        def stored() -> bool:
            return bool(http.get(f"/uploads/{record['id']}").json()["state"] == "stored")

        wait_until(stored, within=_PATIENCE, what="it is stored")
        assert http.get(f"/files/{record['id']}").content == content
