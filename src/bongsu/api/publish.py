"""`POST /api/*`: the server API for backends. Plain ASGI: FastAPI costs four times as much a request.

Source: the Centrifuge server API, §18. So far `publish`; an unknown method is 404, as there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import msgspec

from bongsu.brokers.base import BrokerError
from bongsu.metrics import Metrics
from bongsu.node.admission import Admission, headers_of
from bongsu.node.channels import BadChannelName, ChannelRules, Channels, UnknownNamespace
from bongsu.node.node import Node
from bongsu.protocol.errors import (
    API_BAD_REQUEST,
    API_INTERNAL,
    API_NOT_AVAILABLE,
    API_UNKNOWN_CHANNEL,
    ApiError,
)
from bongsu.protocol.messages import Publication

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY: Final = 1024 * 1024
"""Bytes of one request: as much as a client's whole outbox may hold."""


class PublishRequest(msgspec.Struct):
    """Body of `publish`. `data` is any JSON, passed on byte by byte but for raw newlines."""

    channel: str = ""
    data: msgspec.Raw = msgspec.Raw()
    # Named so that they are refused, not ignored: a caller who relies on them must know.
    b64data: str = ""
    tags: dict[str, str] | None = None
    idempotency_key: str = ""
    delta: bool = False
    version: int = 0


_UNAVAILABLE: Final = ("b64data", "tags", "idempotency_key", "delta", "version")


class Refused(Exception):
    """The method answers with `error`; `detail` goes behind its message."""

    def __init__(self, error: ApiError, detail: str = "") -> None:
        super().__init__(detail)
        self.error = error
        self.message = f"{error.message}: {detail}" if detail else error.message


class ServerApi:
    """The ASGI app below `/api`."""

    def __init__(self, node: Node, channels: Channels, admission: Admission, metrics: Metrics) -> None:
        self._node = node
        self._channels = channels
        self._admission = admission
        self._metrics = metrics
        self._methods: dict[str, Callable[[bytes], Awaitable[dict[str, object]]]] = {"publish": self.publish}

    async def serve(self, scope: Scope, receive: Receive, send: Send, method: str) -> None:
        """Answer one request; `method` is the path below `/api/`."""
        if not self._admission.holds_api_key(headers_of(scope)):
            await _answer(send, 401, b"")
            return
        handler = self._methods.get(method)
        if handler is None:
            await _answer(send, 404, b"")
            return
        if scope["method"] != "POST":
            await _answer(send, 405, b"", (b"allow", b"POST"))
            return
        body = await _read(receive)
        if body is None:
            await _answer(send, 413, b"", (b"connection", b"close"))
            return
        try:
            answer: dict[str, object] = {"result": await handler(body)}
        except msgspec.DecodeError:
            await _answer(send, 400, b"")
            return
        except Refused as refused:
            self._metrics.api_errors.labels(method, refused.error.code).inc()
            answer = {"error": {"code": refused.error.code, "message": refused.message}}
        await _answer(send, 200, msgspec.json.encode(answer), (b"content-type", b"application/json"))

    async def publish(self, body: bytes) -> dict[str, object]:
        """Publish to every subscriber of a channel. Raises `Refused`, or `msgspec.DecodeError`."""
        request = _decode_publish(body)
        rules = self._rules(request.channel)
        data = bytes(request.data).replace(b"\n", b"").replace(b"\r", b"")
        if not data:
            raise Refused(API_BAD_REQUEST, "data is missing")
        for name in _UNAVAILABLE:
            if getattr(request, name):
                raise Refused(API_NOT_AVAILABLE, f"{name} is not supported yet")
        try:
            await self._node.publish(rules, Publication(data, patchable=rules.options.delta_publish))
        except BrokerError as error:
            # Nothing is retried here: of an unknown outcome only the caller can say what a double costs.
            raise Refused(API_INTERNAL, str(error)) from error
        return {}

    def _rules(self, channel: str) -> ChannelRules:
        try:
            return self._channels.rules(channel)
        except BadChannelName as error:
            raise Refused(API_BAD_REQUEST, str(error)) from None
        except UnknownNamespace as error:
            raise Refused(API_UNKNOWN_CHANNEL, str(error)) from None


def _decode_publish(body: bytes) -> PublishRequest:
    try:
        return msgspec.json.decode(body, type=PublishRequest)
    except msgspec.ValidationError as error:
        raise Refused(API_BAD_REQUEST, str(error)) from None
    except RecursionError:
        raise Refused(API_BAD_REQUEST, "the data is nested too deeply") from None


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None when it is over the limit."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body") or b""
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


def openapi_paths() -> dict[str, Any]:
    """What the API document says of these methods, since FastAPI does not see them."""
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
            }
        },
    }
    return {
        "/api/publish": {
            "post": {
                "tags": ["server API"],
                "summary": "Publish to every subscriber of a channel",
                "operationId": "publish",
                "security": [{"ApiKey": []}],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["channel", "data"],
                                "properties": {
                                    "channel": {"type": "string", "maxLength": 255},
                                    "data": {"description": "Any JSON"},
                                },
                            },
                            "example": {"channel": "broadcast", "data": {"text": "hello"}},
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "Published, or an error in the body (codes 100, 102, 107, 108)",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "oneOf": [
                                        {"type": "object", "properties": {"result": {"type": "object"}}},
                                        error,
                                    ]
                                },
                                "examples": {
                                    "published": {"value": {"result": {}}},
                                    "refused": {
                                        "value": {"error": {"code": 102, "message": "unknown channel"}}
                                    },
                                },
                            }
                        },
                    },
                    "400": {"description": "The body is not JSON"},
                    "401": {"description": "The API key is missing or wrong"},
                    "413": {"description": f"The body is over {MAX_BODY} bytes"},
                },
            }
        }
    }


OPENAPI_SECURITY: Final = {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
