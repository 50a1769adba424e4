"""An application that mounts Bongsu with a hook that fails now and then; `test_job_loop` runs it."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

import bongsu

MOUNTED = "/files-here"


def fails_at_first(sha256: str) -> bool:
    """Whether the hook fails when it is asked about that file for the first time: one in 20."""
    return int(sha256[:8], 16) % 20 == 5


def make_app() -> FastAPI:
    app = FastAPI()
    realtime = bongsu.mount(app, MOUNTED)

    @realtime.on_stored("scan")
    async def scan(file: bongsu.ReceivedFile) -> None:
        size = 0
        async for chunk in file.chunks():
            size += len(chunk)
        assert size == file.upload.size
        assert file.upload.sha256 is not None
        asked = Path(file.key.replace(":", "-"))  # in the directory of this test
        if fails_at_first(file.upload.sha256):
            try:
                asked.open("x").close()  # noqa: ASYNC230  # an empty file
            except FileExistsError:
                return
            raise RuntimeError("injected")

    return app
