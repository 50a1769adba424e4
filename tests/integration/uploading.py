"""The upload side of the server as one process on a free port: real HTTP, real database, real files."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from bongsu.api.errors import install_error_handlers
from bongsu.api.lingering import lingering
from bongsu.api.tus import tus_router
from bongsu.api.uploads import uploads_router
from bongsu.brokers.base import Relayed
from bongsu.db.migrate import migrate
from bongsu.db.session import Database
from bongsu.jobs.queue import Queue
from bongsu.jobs.relay import Relay
from bongsu.jobs.worker import Worker
from bongsu.metrics import Metrics
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.service import UploadService
from bongsu.uploads.stores import LocalStore, Store

__all__ = ["UploadServer", "serving"]

PRINCIPALS = {"": Principal(), "ann": Principal(user="ann"), "bob": Principal(user="bob")} | {
    "key": Principal(trusted=True)
}


@dataclass
class UploadServer:
    """A running server. `events` is all that was published to `uploads:feed`, in order."""

    url: str
    port: int
    app: FastAPI
    service: UploadService
    database: Database
    files: Path
    worker: Worker
    events: list[dict[str, Any]] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def heard(self, channel: str, data: bytes) -> None:
        if channel == "uploads:feed":
            async with self._changed:
                self.events.append(json.loads(data))
                self._changed.notify_all()

    async def until(self, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event of which `seen` is true, waited for at most 30 s."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: any(map(seen, self.events)))
        return next(filter(seen, self.events))

    async def stored(self, upload_id: str) -> dict[str, Any]:
        seen = {"id": upload_id, "state": "stored"}.items()
        event = await self.until(lambda event: seen <= event["upload"].items())
        upload: dict[str, Any] = event["upload"]
        return upload

    async def deleted(self) -> str:
        event = await self.until(lambda e: e["event"] == "deleted")
        upload_id: str = event["upload"]["id"]
        return upload_id

    def states(self, upload_id: str) -> list[str]:
        return [e["upload"].get("state", "") for e in self.events if e["upload"]["id"] == upload_id]

    def kept_files(self) -> list[str]:
        """Every file in the store, relative to it."""
        return sorted(str(path.relative_to(self.files)) for path in self.files.rglob("*") if path.is_file())


_LISTENERS: defaultdict[str, list[UploadServer]] = defaultdict(list)
"""In place of a broker: whichever server relays, all of the same database hear it."""


async def _authorize(request: Request) -> Principal:
    principal = PRINCIPALS.get(request.headers.get("x-who", ""))
    if principal is None:
        raise Problem(problems.UNAUTHORIZED, "Who are you?")
    return principal


@asynccontextmanager
async def serving(
    database_url: str,
    files: Path,
    options: UploadOptions | None = None,
    *,
    replica: str = "r1",
    wrap: Callable[[Store], Store] = lambda store: store,
    working: bool = True,
    open_to_all: bool = True,
) -> AsyncIterator[UploadServer]:
    """Run it; `working=False` leaves the worker out, as on a replica that died right after it answered."""
    options = options or UploadOptions()
    await migrate(database_url)
    database, local = Database(database_url), LocalStore(files)
    store = wrap(local)
    await database.start()
    await store.start()
    queue = Queue(database, replica)

    async def publish(channel: str, data: bytes) -> None:
        for listener in _LISTENERS[database_url]:
            await listener.heard(channel, data)

    async def publish_relayed(channel: str, data: bytes, _relayed: Relayed) -> None:
        await publish(channel, data)

    async def settle(_channel: str, _keys: Sequence[str]) -> None:
        """There is no broker here that remembers keys."""

    relay = Relay(database, publish_relayed, settle, Metrics(), replica, poll=0.1)
    database.on_publication = relay.ring
    service = UploadService(database, store, queue, publish, replica, options, open_to_all=open_to_all)
    worker = Worker(database, queue, service.handlers(), poll=0.2, chores=[service.sweep])
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(uploads_router(service, _authorize))
    app.include_router(tus_router(service, _authorize))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, *lingering(receive, send))

    # A test that failed may hold its connections open; without a bound uvicorn would wait for them for ever.
    config = uvicorn.Config(
        application, port=0, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=5
    )
    listener = config.bind_socket()
    listener.listen()  # a client may connect from here on, before the server accepts
    http = uvicorn.Server(config)
    port = listener.getsockname()[1]
    server = UploadServer(f"http://127.0.0.1:{port}", port, app, service, database, files, worker)
    _LISTENERS[database_url].append(server)
    serving = asyncio.create_task(http.serve([listener]))
    await relay.start()
    if working:
        await worker.start()
    try:
        yield server
    finally:
        http.should_exit = True
        await serving
        await worker.stop()
        await relay.stop()
        _LISTENERS[database_url].remove(server)
        await store.stop()
        await database.stop()
