"""The composition root: settings become objects, objects become one ASGI app.

Only here, in `server` and in `cli` are settings read; the rooms get constructor arguments. The two towers,
realtime and uploads, meet here and in the channel `uploads:feed`, nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any, TypeAlias, TypeVar

import msgspec
import structlog
from broadcaster import BroadcastBackend
from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount

from bongsu._version import __version__
from bongsu.api.errors import install_error_handlers
from bongsu.api.health import health_router
from bongsu.api.lingering import lingering
from bongsu.api.openapi import SECURITY, paths
from bongsu.api.server import ServerApi
from bongsu.api.tus import tus_router
from bongsu.api.uploads import uploads_router
from bongsu.auth import TokenVerifier
from bongsu.brokers import Broker, adapt, broker_from_url
from bongsu.brokers.base import Appended, BrokerError, Relayed, Streams
from bongsu.db.alone import used_alone
from bongsu.db.migrate import migrate, require_migrated
from bongsu.db.outbox import Outbox
from bongsu.db.session import Database, DatabaseUnavailable
from bongsu.jobs import admin
from bongsu.jobs.application import JobFunction, Jobs
from bongsu.jobs.queue import Queue
from bongsu.jobs.relay import Relay, Unpublishable
from bongsu.jobs.worker import Worker
from bongsu.metrics import Metrics
from bongsu.node.admission import Admission, headers_of
from bongsu.node.channels import BROADCAST, ChannelError, Channels, uploads_options
from bongsu.node.control_plane import ControlPlane
from bongsu.node.handlers import Handlers
from bongsu.node.node import Node
from bongsu.node.permissions import PlainPermissions
from bongsu.node.services import Services
from bongsu.node.target import LocalTarget
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal, Publication
from bongsu.protocol.problems import Problem
from bongsu.settings import Settings, load, without_password
from bongsu.transports.emulation import EmulationTransport
from bongsu.transports.forms import deflated_frames
from bongsu.transports.handshake import Handshakes
from bongsu.transports.plain import PlainTransport
from bongsu.transports.sockets import answer, refuse
from bongsu.transports.streaming import EVENTS, LINES, StreamTransport
from bongsu.transports.unidirectional import UnidirectionalStreamTransport, UnidirectionalWebSocketTransport
from bongsu.transports.websocket import WebSocketTransport
from bongsu.uploads import tus
from bongsu.uploads.hooks import Hook
from bongsu.uploads.service import UploadService
from bongsu.uploads.stores import StoreError, store_from_url
from bongsu.web.routes import web_router

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Serve: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HookT = TypeVar("HookT", bound=Hook)
JobFunctionT = TypeVar("JobFunctionT", bound=JobFunction)

log = structlog.get_logger("bongsu.app")


class Bongsu:
    """One replica as an ASGI app. `running()` is its life; an ASGI lifespan runs it too."""

    def __init__(self, settings: Settings, *, broker: Broker | BroadcastBackend | None = None) -> None:
        """`broker` replaces the one of `settings.broker_url`; any `BroadcastBackend` will do, slower."""
        assert settings.api_key is not None, "Settings makes or demands one"
        self.settings = settings
        self._replica_header = (b"x-bongsu-replica", settings.replica.encode())
        # Without a key it believes no token.
        self._tokens = TokenVerifier(settings.token)
        separate = settings.client.subscription_token
        self._subscription_tokens = TokenVerifier(separate) if separate.enabled else self._tokens
        self._metrics = metrics = Metrics()
        self.node = Node(
            replica=settings.replica,
            broker=adapt(broker)
            if broker
            else broker_from_url(settings.broker_url, prefix=settings.redis_prefix),
            metrics=metrics,
            position_check_delay=settings.client.channel_position_check_delay,
        )
        self.handlers = Handlers()
        self._channels = channels = Channels(
            settings.channels.without_namespace,
            settings.channels.namespaces,
            settings.channels,
            uploads=uploads_options(
                open_to_all=settings.dev, recoverable=isinstance(self.node.broker, Streams)
            ),
        )
        self._admission = Admission(
            verifier=self._tokens,
            api_key=settings.api_key.get_secret_value(),
            allowed_origins=settings.allowed_origins,
            anonymous=settings.dev,
        )
        handshakes = Handshakes(
            self.node,
            self._admission,
            connection_limit=settings.client.connection_limit,
            deflated=deflated_frames(
                level=settings.websocket.compression_level, min_size=settings.websocket.compression_min_size
            ),
        )
        self._services = Services(
            self.node,
            channels,
            self._tokens,
            self._subscription_tokens,
            settings.client,
            self.handlers,
            metrics,
            channel_max_length=settings.channels.max_length,
            anonymous=settings.dev,
            owns_upload=self._owns_upload,
        )
        self._control = control = self.node.serve_control(LocalTarget(self._services))
        self._sockets, self._streams = _client_transports(settings, self._services, control, handshakes)
        self._plain = PlainTransport(
            self.node,
            channels,
            PlainPermissions(channels, open_to_all=settings.dev, insecure=settings.client.insecure),
            self._services,
            self._admission,
            handshakes,
            settings.client,
            template=settings.plain.template,
            message_size_limit=settings.plain.message_size_limit,
        )
        self._server_api = ServerApi(self._services, control, self._admission, metrics)
        self.database = Database(settings.database_url)
        self._relay = Relay(
            self.database,
            self._publish_relayed,
            self.node.settle,
            metrics,
            settings.replica,
            poll=settings.outbox.poll,
            limit=settings.outbox.turn,
        )
        self.database.on_publication = self._relay.ring
        self.outbox = Outbox(check=self._check_channel, ring=self._relay.ring)
        """Publishes in the embedding application's own transactions."""
        queue = Queue(self.database, settings.replica, lease=settings.upload.job_lease)
        self._store = store_from_url(settings.storage_url)
        self._uploads = UploadService(
            self.database,
            self._store,
            queue,
            self._publish_event,
            settings.replica,
            settings.upload,
            ask=self._ask_to_let_go,
            open_to_all=settings.dev,
        )
        control.serve_uploads(self._uploads.let_go)
        self._worker = Worker(
            self.database,
            queue,
            self._uploads.handlers(),
            concurrency=settings.upload.jobs_at_once,
            poll=settings.upload.job_poll,
            chores=[self._uploads.sweep],
        )
        application_queue = Queue(self.database, settings.replica, lease=settings.jobs.lease)
        self.jobs = Jobs(self.database, application_queue, time_limit=settings.jobs.time_limit)
        """Enqueues the embedding application's jobs in its own transactions."""
        # A worker of their own: jobs that take long must not keep uploads from being finished.
        self._application_worker = Worker(
            self.database,
            application_queue,
            self.jobs.handlers,
            concurrency=settings.jobs.at_once,
            poll=settings.jobs.poll,
            chores=[self._forget_done_jobs, self._count_jobs],
            chore_interval=15.0,
        )
        self._http = self._make_http()

    def _make_http(self) -> FastAPI:
        app = FastAPI(
            title="Bongsu", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
        )
        install_error_handlers(app)
        if self.settings.allowed_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origin_regex="|".join(map(fnmatch.translate, self.settings.allowed_origins)),
                allow_credentials=True,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=[*tus.EXPOSED_HEADERS, "Content-Disposition", "X-Bongsu-Replica"],
            )
        app.include_router(
            health_router(
                self.node,
                [self._worker, self._application_worker, self._relay],
                dev=self.settings.dev,
                version=__version__,
            )
        )
        app.include_router(uploads_router(self._uploads, self._authorize))
        app.include_router(tus_router(self._uploads, self._authorize))
        app.include_router(
            web_router(
                title="Bongsu", version=__version__, replica=self.settings.replica, dev=self.settings.dev
            )
        )
        make_document = app.openapi

        def openapi() -> dict[str, Any]:
            if app.openapi_schema is None:
                document = make_document()
                document.setdefault("paths", {}).update(paths())
                document.setdefault("components", {}).setdefault("securitySchemes", {}).update(SECURITY)
            return make_document()

        app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
        return app

    # Life

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started in this order, stopped in the opposite one: database, storage, node, relay, jobs.

        Raises `MigrationsPending`, `DatabaseUnavailable`, `StoreError`. A broker that is away is waited for.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._tokens.aclose)
            stack.push_async_callback(self._subscription_tokens.aclose)
            with _naming("BONGSU_DATABASE_URL", self.settings.database_url):
                await self._open_database()
            stack.push_async_callback(self.database.stop)
            if self.node.broker.kind == "memory" and not stack.enter_context(used_alone(self.database)):
                log.warning(
                    "another server uses this database, and with memory:// neither hears the other's events: "
                    "set BONGSU_BROKER_URL to one Redis for both, or another BONGSU_DATABASE_URL for one"
                )
            with _naming("BONGSU_STORAGE_URL", self.settings.storage_url):
                await self._store.start()
            stack.push_async_callback(self._store.stop)
            await self.node.start()
            stack.push_async_callback(self.node.stop)
            stack.push_async_callback(self._services.stop)
            await self._relay.start()
            stack.push_async_callback(self._relay.stop)
            await self._worker.start()
            stack.push_async_callback(self._worker.stop)
            await self._application_worker.start()
            stack.push_async_callback(self._application_worker.stop)
            if self.settings.client.insecure:
                log.warning(
                    "client.insecure: whoever can reach this replica may do everything on all channels"
                )
            log.info("replica is up", broker=self.node.broker.kind, dev=self.settings.dev)
            yield

    async def _open_database(self) -> None:
        url = self.settings.database_url
        # A shared database in production changes when its operator says so (`bongsu migrate`), not because
        # one replica of a rolling upgrade happened to start first.
        if self.database.is_sqlite or self.settings.dev:
            for revision in await migrate(url):
                log.info("the database was migrated", revision=revision)
        else:
            await require_migrated(url)
        await self.database.start()

    # For whoever mounts us

    async def publish(self, channel: str, data: object) -> None:
        """Publish `data` (anything JSON) to every subscriber of `channel`, on every replica.

        Raises `BrokerUnavailable` (nothing happened, try again), `OutcomeUnknown` (also when only subscribers
        of this replica have it), `BadChannelName`, `UnknownNamespace`, and TypeError for what is not JSON.
        """
        rules = self._channels.rules(channel)
        publication = Publication(msgspec.json.encode(data), patchable=rules.options.delta_publish)
        await self.node.publish(rules, publication)

    def on_stored(self, name: str, *, time_limit: float | None = None) -> Callable[[HookT], HookT]:
        """Decorator: ask `async def hook(file: ReceivedFile)` of each upload before its content is served.

        To raise `Rejected` refuses the file for good; anything else that it raises is tried again, and so is
        a hook that takes longer than `time_limit` seconds (None: BONGSU_UPLOAD__HOOK_TIME_LIMIT). Every
        replica has to register the same hooks. Raises ValueError for a wrong name, or one that is taken.
        """
        return self._uploads.hooks.register(name, time_limit=time_limit)

    def job(self, name: str, *, time_limit: float | None = None) -> Callable[[JobFunctionT], JobFunctionT]:
        """Decorator: run `async def function(job: JobRun)` for the jobs of that name; see `Jobs.register`."""
        return self.jobs.register(name, time_limit=time_limit)

    # What the rooms are given

    async def _forget_done_jobs(self) -> None:
        async with self.database.transaction() as session:
            await admin.forget_done(session, kept=self.settings.jobs.kept)

    async def _count_jobs(self) -> None:
        async with self.database.session() as session:
            states = await admin.summary(session)
        for state in ("queued", "running", "dead"):
            jobs, oldest = states.get(state, admin.StateSummary(0, 0.0))
            self._metrics.jobs.labels(state).set(jobs)
            self._metrics.oldest_job.labels(state).set(oldest)

    async def _authorize(self, request: Request) -> Principal:
        return await self._admission.admit(headers_of(request.scope))

    def _check_channel(self, channel: str) -> None:
        self._channels.rules(channel)

    async def _owns_upload(self, upload_id: str, user: str) -> bool:
        try:
            return await self._uploads.may_read(upload_id, Principal(user=user))
        except DatabaseUnavailable as error:
            raise Problem(
                problems.DATABASE_UNAVAILABLE, "Whose upload it is cannot be looked up.", retry_after=1
            ) from error

    def _publish_relayed(self, channel: str, data: bytes, relayed: Relayed) -> asyncio.Future[Appended]:
        try:
            rules = self._channels.rules(channel)
        except ChannelError as error:
            raise Unpublishable(str(error)) from error
        publication = Publication(data, patchable=rules.options.delta_publish)
        return self.node.publish(rules, publication, relayed=relayed)

    async def _ask_to_let_go(self, replica: str, upload_id: str, offset: int | None) -> None:
        try:
            await self._control.let_go(replica, upload_id, offset)
        except BrokerError as error:
            # The upload is taken without its help: what it has not committed is sent again by the client.
            log.warning("a replica could not be asked for an upload", replica=replica, error=str(error))

    async def _publish_event(self, channel: str, data: bytes) -> None:
        """What the upload side tells its subscribers: at most once, and never in the way of the upload."""

        def told(sent: asyncio.Future[Appended]) -> None:
            error = None if sent.cancelled() else sent.exception()
            if error is not None:
                log.warning("an upload event was not delivered", channel=channel, error=str(error))

        # Sent in order, and not waited for: a broker that hangs must not hold up an answer.
        self.node.publish(self._channels.rules(channel), Publication(data)).add_done_callback(told)

    # ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        send = self._signed(send)
        path = _route_path(scope)
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send, path)
            return
        receive, send = lingering(receive, send)
        try:
            self._admission.check_method(scope["method"], headers_of(scope))
        except Problem as problem:
            await answer(problem, send)
            return
        stream = self._streams.get(path.rstrip("/"))
        if stream is not None:
            await stream(scope, receive, send)
            return
        if path.startswith("/api/"):
            await self._server_api.serve(scope, receive, send, path.removeprefix("/api/"))
            return
        if path.rstrip("/") in self._sockets or path == "/ws" or path.startswith("/ws/"):
            hint = "Open it with a WebSocket handshake (RFC 6455)."
            await answer(Problem(problems.UPGRADE_REQUIRED, hint), send)
            return
        if scope["method"] == "HEAD" and path in _PROBES:
            # FastAPI's routes answer GET alone; that a HEAD has no body is the server's business.
            scope = {**scope, "method": "GET"}
        await self._http(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        socket = self._sockets.get(path.rstrip("/"))
        if socket is not None:
            await socket(scope, receive, send)
        elif path == "/ws":
            await self._plain.serve(scope, receive, send, BROADCAST)
        elif path.startswith("/ws/"):
            await self._plain.serve(scope, receive, send, path.removeprefix("/ws/"))
        else:
            await receive()
            problem = Problem(problems.NOT_FOUND, "There is no socket here; try /ws.")
            await refuse(problem, send, extensions=scope.get("extensions"))

    def _signed(self, send: Send) -> Send:
        """Every response names the replica that gave it."""

        async def signed(message: Message) -> None:
            if message["type"] in _WITH_HEADERS:
                message["headers"] = [*message.get("headers", ()), self._replica_header]
            await send(message)

        return signed

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except BaseException as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


_PROBES = frozenset({"/livez", "/readyz", "/status", "/metrics"})
_WITH_HEADERS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


@contextlib.contextmanager
def _naming(variable: str, url: str) -> Iterator[None]:
    """Say at start which setting leads to what does not work."""
    try:
        yield
    except (DatabaseUnavailable, StoreError) as error:
        raise type(error)(f"{variable}={without_password(url)}: {error}") from error


def _client_transports(
    settings: Settings, services: Services, control: ControlPlane, handshakes: Handshakes
) -> tuple[dict[str, Serve], dict[str, Serve]]:
    """What serves the client protocol where: WebSockets, and streamed responses with what belongs to them."""
    sockets: dict[str, Serve] = {"/connection/websocket": WebSocketTransport(services, handshakes).serve}
    if settings.uni_websocket.enabled:
        sockets["/connection/uni_websocket"] = UnidirectionalWebSocketTransport(services, handshakes).serve
    streams: dict[str, Serve] = {}
    for name, enabled, kind, carrier in (
        ("http_stream", settings.http_stream.enabled, StreamTransport, LINES),
        ("sse", settings.sse.enabled, StreamTransport, EVENTS),
        ("uni_http_stream", settings.uni_http_stream.enabled, UnidirectionalStreamTransport, LINES),
        ("uni_sse", settings.uni_sse.enabled, UnidirectionalStreamTransport, EVENTS),
    ):
        if enabled:
            streams[f"/connection/{name}"] = kind(services, handshakes, carrier, name=name).serve
    if settings.http_stream.enabled or settings.sse.enabled:
        streams["/emulation"] = EmulationTransport(control, handshakes).serve
    return sockets, streams


def _route_path(scope: Scope) -> str:
    """The path below the prefix we are mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def mount(
    app: FastAPI,
    path: str = "/bongsu",
    *,
    settings: Settings | None = None,
    broker: Broker | BroadcastBackend | None = None,
) -> Bongsu:
    """Serve Bongsu below `path` of your own app, and let it live as long as your app does.

    `settings` None: from the environment. Returns the replica; its `publish` sends from Python.
    Raises `SettingsError`.
    """
    _keep_variables_out_of_logs()
    bongsu = Bongsu(settings or load(), broker=broker)
    outer = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(inner_app: Any) -> AsyncIterator[Any]:
        async with bongsu.running(), outer(inner_app) as state:
            yield state

    app.router.lifespan_context = lifespan
    app.router.routes.append(Mount(path, app=bongsu))
    return bongsu


def create_app() -> Bongsu:
    """For any ASGI server: `uvicorn --factory bongsu.app:create_app`. Settings from the environment.

    `bongsu serve` is faster: its sockets are raw. Raises `SettingsError`.
    """
    _keep_variables_out_of_logs()
    return Bongsu(load())


def _keep_variables_out_of_logs() -> None:
    """Where nobody has configured structlog, it prints tracebacks with the values of all local variables:
    tokens, passwords, payloads; and takes seconds for a long one. How logs look is not ours to say.
    """
    if structlog.is_configured():
        return
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, structlog.dev.ConsoleRenderer):
            processor.exception_formatter = structlog.dev.plain_traceback
