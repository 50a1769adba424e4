"""docs/uploads.md is right: its examples run, as they stand."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
from tests.servers import RunningServer

TEXT = (Path(__file__).parents[2] / "docs" / "uploads.md").read_text()


def test_the_conversation_with_curl_uploads_a_file(
    bongsu_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = bongsu_server()
    content = os.urandom(100_000)
    (tmp_path / "report.pdf").write_bytes(content)
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (conversation,) = (block for block in blocks if "Upload-Offset" in block)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{conversation}\nprintf "%s" "$address"'],
        cwd=tmp_path,
        env={**os.environ, "BONGSU_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = httpx.head(done.stdout, headers={"Tus-Resumable": "1.0.0"}).headers
    assert (told["upload-offset"], told["upload-length"]) == ("100000", "100000")
    record = httpx.get(f"{server.url}/uploads/{done.stdout.rpartition('/')[2]}").json()
    assert (record["filename"], record["size"]) == ("report.pdf", 100_000)
    assert record["sha256"] in (None, hashlib.sha256(content).hexdigest())
