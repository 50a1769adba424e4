"""`POST /api/*`: the server API for backends. Plain ASGI: FastAPI costs four times as much a request.

Source: the Centrifuge server API, §18.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import structlog

from bongsu.api.requests import ClientGone
from bongsu.brokers.base import Appended, BrokerError, TooManyMembers
from bongsu.metrics import Metrics
from bongsu.node.admission import Admission, headers_of
from bongsu.node.channels import ChannelError, ChannelRules
from bongsu.node.control import Call, Disconnect, Refresh, Subscribe, Unsubscribe
from bongsu.node.control_plane import ControlPlane
from bongsu.node.handlers import Caller, RpcError
from bongsu.node.permissions import check_data
from bongsu.node.services import Services
from bongsu.node.tasks import in_time
from bongsu.protocol import api
from bongsu.protocol.api import MalformedRequest, Refused, Result
from bongsu.protocol.errors import (
    API_BAD_REQUEST,
    API_INTERNAL,
    API_NOT_AVAILABLE,
    API_NOT_FOUND,
    API_UNKNOWN_CHANNEL,
    API_UNRECOVERABLE_POSITION,
    ERROR_BAD_REQUEST,
    ERROR_UNKNOWN_CHANNEL,
    ApiError,
    Error,
    ProtocolError,
)
from bongsu.protocol.messages import HistoryResult, PresenceResult, PresenceStatsResult, RPCResult

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Answer: TypeAlias = Result | ApiError

MAX_BODY: Final = 1024 * 1024
"""Bytes of one request: as much as a client's whole outbox may hold."""

BODY_TIMEOUT: Final = 10.0
"""Seconds for the whole body to arrive; then 408."""

ERROR_MODE_HEADER: Final = b"x-centrifugo-error-mode"

METHODS: Final = frozenset(api.METHODS)
"""What is answered."""

log = structlog.get_logger("bongsu.api")


class ServerApi:
    """The ASGI app below `/api`."""

    def __init__(
        self, services: Services, control: ControlPlane, admission: Admission, metrics: Metrics
    ) -> None:
        self._services = services
        self._control = control
        self._node = services.node
        self._admission = admission
        self._metrics = metrics

    async def serve(self, scope: Scope, receive: Receive, send: Send, method: str) -> None:
        """Answer one request; `method` is the path below `/api/`."""
        headers = headers_of(scope)
        if not self._admission.holds_api_key(headers):
            return await _answer(send, 401)
        if method not in METHODS:
            return await _answer(send, 404)
        if scope["method"] != "POST":
            return await _answer(send, 405, b"", (b"allow", b"POST"))
        try:
            body = await in_time(BODY_TIMEOUT, _read(receive))
        except ClientGone:
            return None
        except TimeoutError:
            return await _answer(send, 408, b"", (b"connection", b"close"))
        if body is None:
            return await _answer(send, 413, b"", (b"connection", b"close"))
        try:
            answer, document = await self._call(method, body)
        except MalformedRequest:
            return await _answer(send, 400)
        status = 200
        if isinstance(answer, ApiError) and headers.get(ERROR_MODE_HEADER) == b"transport":
            status, document = answer.status, api.encode_error(answer)
        return await _answer(send, status, document, _JSON)

    async def _call(self, method: str, body: bytes) -> tuple[Answer | None, bytes]:
        """The answer and its document; a batch has no answer of its own. Raises `MalformedRequest`."""
        answer: Answer
        try:
            request = api.decode(method, body)
            if isinstance(request, api.BatchRequest):
                return None, api.encode_batch(await self._batch(request))
            answer = await self._started(method, request)
            return answer, api.encode_answer(answer)
        except Refused as refused:
            answer = self._refusal(method, refused)
        except ProtocolError:
            answer = API_NOT_AVAILABLE._replace(message="not available: a payload is not JSON")
        return answer, api.encode_answer(answer)

    async def _batch(self, batch: api.BatchRequest) -> Sequence[tuple[str, Answer]]:
        """Commands take effect in their order; publications that follow each other are one pipeline."""
        commands = api.decode_batch(batch)
        replies: list[tuple[str, Answer]] = []
        running: list[tuple[str, Awaitable[Answer]]] = []

        async def finish() -> None:
            answers = await asyncio.gather(*[answer for _, answer in running])
            replies.extend((method, answer) for (method, _), answer in zip(running, answers, strict=True))
            running.clear()

        for method, request in commands:
            if not batch.parallel and method not in _PIPELINED:
                await finish()
            if isinstance(request, Refused):
                running.append((method, _value(self._refusal(method, request))))
            else:
                running.append((method, self._started(method, request)))
        await finish()
        return replies

    def _started(self, method: str, request: api.Request) -> Awaitable[Answer]:
        """Publications are on their way when this returns, so that the order is that of the calls."""
        try:
            return self._guarded(method, self._start(request))
        except (Refused, ChannelError) as error:
            return _value(self._refusal(method, error))

    async def _guarded(self, method: str, work: Awaitable[Answer]) -> Answer:
        try:
            return await work
        except (Refused, ChannelError) as error:
            return self._refusal(method, error)
        except TooManyMembers as error:
            return self._count(method, API_NOT_AVAILABLE._replace(message=f"not available: {error}"))
        except BrokerError as error:
            # Nothing is retried here: of an unknown outcome only the caller can say what a double costs.
            return self._count(method, API_INTERNAL._replace(message=f"internal server error: {error}"))

    def _start(self, request: api.Request) -> Awaitable[Answer]:
        match request:
            case api.PublishRequest():
                return _published(self._publish(request.channel, request))
            case api.BroadcastRequest():
                return self._broadcast(request)
            case api.HistoryRequest():
                return self._history(request)
            case api.HistoryRemoveRequest():
                return self._history_remove(request)
            case api.PresenceRequest():
                return self._presence(request)
            case api.PresenceStatsRequest():
                return self._presence_stats(request)
            case api.RPCRequest():
                return self._rpc(request)
            case api.SubscribeRequest():
                return self._subscribe(request)
            case api.UnsubscribeRequest():
                return _empty(self._control.unsubscribe(_call(request, Unsubscribe, channel=request.channel)))
            case api.DisconnectRequest():
                return _empty(self._control.disconnect(_disconnect(request)))
            case api.RefreshRequest():
                expiry = {"expired": request.expired, "expire_at": request.expire_at, "info": request.info}
                return _empty(self._control.refresh(_call(request, Refresh, **expiry)))
            case api.ChannelsRequest():
                return self._channels(request)
            case api.InfoRequest():
                return self._info()
        raise AssertionError("a batch in a batch is refused")

    # Methods

    def _publish(
        self, channel: str, request: api.PublishRequest | api.BroadcastRequest
    ) -> asyncio.Future[Appended]:
        """Raises `Refused`, `ChannelError`."""
        rules = self._services.channels.rules(channel)
        if check_data(rules.options, request.data) is not None:
            detail = "data is missing" if not request.data else "data is not in the channel's format"
            raise Refused(API_BAD_REQUEST, detail)
        publication = request.publication()
        if request.delta or rules.options.delta_publish:
            publication = msgspec.structs.replace(publication, patchable=True)
        return self._node.publish(
            rules,
            publication,
            skip_history=request.skip_history,
            idempotency_key=request.idempotency_key,
            version=request.version,
            version_epoch=request.version_epoch,
        )

    def _broadcast(self, request: api.BroadcastRequest) -> Awaitable[Answer]:
        started: list[Awaitable[Answer]] = []
        for channel in request.channels:
            try:
                started.append(self._guarded("broadcast", _published(self._publish(channel, request))))
            except (Refused, ChannelError) as error:
                started.append(_value(self._refusal("broadcast", error)))

        async def finish() -> Answer:
            answers = await asyncio.gather(*started)
            return api.BroadcastResult([one for one in answers if isinstance(one, _PublishAnswers)])

        return finish()

    async def _history(self, request: api.HistoryRequest) -> Answer:
        rules = self._with_history(request.channel)
        found = await self._node.history(
            rules, since=request.since, limit=request.limit, reverse=request.reverse
        )
        if isinstance(found, HistoryResult):
            return found
        return API_BAD_REQUEST if found is ERROR_BAD_REQUEST else API_UNRECOVERABLE_POSITION

    async def _history_remove(self, request: api.HistoryRemoveRequest) -> Answer:
        await self._node.remove_history(self._with_history(request.channel))
        await self._control.forget(request.channel)
        return api.EmptyResult()

    async def _presence(self, request: api.PresenceRequest) -> Answer:
        presence = self._node.roster.presence
        if presence is None or not self._services.channels.options(request.channel).presence:
            return API_NOT_AVAILABLE
        return PresenceResult(await presence.presence(request.channel))

    async def _presence_stats(self, request: api.PresenceStatsRequest) -> PresenceStatsResult | ApiError:
        presence = self._node.roster.presence
        if presence is None or not self._services.channels.options(request.channel).presence:
            return API_NOT_AVAILABLE
        return await presence.presence_stats(request.channel)

    async def _rpc(self, request: api.RPCRequest) -> Answer:
        handler = self._services.handlers.rpc.get(request.method)
        if handler is None:
            return API_NOT_FOUND
        try:
            return RPCResult(await handler(Caller("", ""), request.params))
        except RpcError as error:
            return ApiError(error.error.code, error.error.message)
        except Exception:  # the application's own; the backend is told, and the log says what
            log.exception("an rpc handler failed", method=request.method)
            return API_INTERNAL

    async def _subscribe(self, request: api.SubscribeRequest) -> Answer:
        self._services.channels.rules(request.channel)
        call = _call(
            request,
            Subscribe,
            channel=request.channel,
            info=request.info,
            data=request.data,
            expire_at=request.expire_at,
            recover_since=request.recover_since,
            override=request.override,
        )
        error = await self._control.subscribe(call)
        if error is None:
            return api.EmptyResult()
        return API_INTERNAL._replace(message=f"internal server error: {error.message}")

    async def _channels(self, request: api.ChannelsRequest) -> Answer:
        found: dict[str, api.ChannelInfo] = {}
        missing: set[str] = set()
        cursor = ""
        while True:
            page = await self._control.channels(request.pattern, cursor=cursor)
            found.update({name: api.ChannelInfo(count) for name, count in page.channels.items()})
            missing.update(page.missing)
            cursor = page.cursor
            if not cursor:
                return api.ChannelsResult(found, sorted(missing))

    async def _info(self) -> Answer:
        page = await self._control.info()
        return api.InfoResult(page.nodes, page.missing)

    def _with_history(self, channel: str) -> ChannelRules:
        rules = self._services.channels.rules(channel)
        if not rules.options.has_history:
            raise Refused(API_NOT_AVAILABLE, "the channel has no history")
        return rules

    # Errors

    def _refusal(self, method: str, error: Refused | ChannelError) -> ApiError:
        if isinstance(error, Refused):
            kind, detail = error.error, error.detail
        else:
            kind, detail = _of_channel(error.error), str(error)
        return self._count(method, kind._replace(message=f"{kind.message}: {detail}"))

    def _count(self, method: str, error: ApiError) -> ApiError:
        self._metrics.api_errors.labels(method, error.code).inc()
        return error


_PIPELINED: Final = frozenset({"publish", "broadcast"})
_PublishAnswers: Final = (api.PublishResult, ApiError)
_JSON: Final = (b"content-type", b"application/json")


C = TypeVar("C", bound=Call)


def _call(
    request: api.SubscribeRequest | api.UnsubscribeRequest | api.DisconnectRequest | api.RefreshRequest,
    kind: type[C],
    **what: Any,
) -> C:
    """The message to every replica: whose connections, and what about them."""
    return kind(user=request.user, client=request.client, session=request.session, **what)


def _disconnect(request: api.DisconnectRequest) -> Disconnect:
    wanted = request.disconnect
    if wanted is None:
        return _call(request, Disconnect, whitelist=request.whitelist)
    return _call(request, Disconnect, whitelist=request.whitelist, code=wanted.code, reason=wanted.reason)


async def _empty(work: Awaitable[None]) -> Answer:
    await work
    return api.EmptyResult()


async def _published(appended: asyncio.Future[Appended]) -> api.PublishResult:
    position = await appended
    return api.PublishResult(position.offset, position.epoch)


async def _value(answer: Answer) -> Answer:
    return answer


def _of_channel(error: Error) -> ApiError:
    return API_UNKNOWN_CHANNEL if error is ERROR_UNKNOWN_CHANNEL else API_BAD_REQUEST


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None when it is over the limit. Raises `ClientGone`."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body") or b""
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


async def _answer(send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


__all__ = ["MAX_BODY", "METHODS", "ServerApi"]
