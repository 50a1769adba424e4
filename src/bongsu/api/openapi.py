"""What the API document says of the server API, which FastAPI does not see."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from bongsu.api.server import MAX_BODY

SECURITY: Final = {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}

_STRING: Final = {"type": "string"}
_CHANNEL: Final = {"type": "string", "maxLength": 255}
_COUNT: Final = {"type": "integer", "minimum": 0}
_PAYLOAD: Final[dict[str, Any]] = {
    "data": {"description": "Any JSON"},
    "b64data": {"type": "string", "description": "Any bytes in base64, instead of data"},
    "skip_history": {"type": "boolean"},
    "tags": {"type": "object", "additionalProperties": _STRING},
    "idempotency_key": {"type": "string", "description": "A repeat within 5 minutes publishes nothing"},
    "delta": {"type": "boolean"},
    "version": {"type": "integer", "description": "Not newer than the last one: publishes nothing"},
    "version_epoch": _STRING,
}
_POSITION: Final = {"type": "object", "properties": {"offset": _COUNT, "epoch": _STRING}}
_OBJECT: Final = {"type": "object"}
_WHOSE: Final[dict[str, Any]] = {"user": _STRING, "client": _STRING, "session": _STRING}
_INFO: Final = {"user": "42", "client": "9f0c1c2e-6b0b-4b7e-8c55-0d2b8b6f7a11"}


class _Method(NamedTuple):
    summary: str
    properties: dict[str, Any]
    required: list[str]
    request: dict[str, Any]
    answer: dict[str, Any]


_METHODS: Final[dict[str, _Method]] = {
    "publish": _Method(
        "Publish to every subscriber of a channel",
        {"channel": _CHANNEL, **_PAYLOAD},
        ["channel", "data"],
        {"channel": "news", "data": {"text": "hello"}},
        {"result": {"offset": 1, "epoch": "xQmZTbAh"}},
    ),
    "broadcast": _Method(
        "Publish the same to several channels",
        {"channels": {"type": "array", "items": _CHANNEL}, **_PAYLOAD},
        ["channels", "data"],
        {"channels": ["news", "sport"], "data": {"text": "hello"}},
        {"result": {"responses": [{"result": {}}, {"result": {}}]}},
    ),
    "presence": _Method(
        "Who is subscribed to a channel",
        {"channel": _CHANNEL},
        ["channel"],
        {"channel": "news"},
        {"result": {"presence": {_INFO["client"]: _INFO}}},
    ),
    "presence_stats": _Method(
        "How many are subscribed to a channel",
        {"channel": _CHANNEL},
        ["channel"],
        {"channel": "news"},
        {"result": {"num_clients": 2, "num_users": 1}},
    ),
    "history": _Method(
        "What was published in a channel; without a limit only its position",
        {
            "channel": _CHANNEL,
            "limit": {"type": "integer", "description": "Negative: all that is kept"},
            "since": _POSITION,
            "reverse": {"type": "boolean"},
        },
        ["channel"],
        {"channel": "news", "limit": 10},
        {
            "result": {
                "publications": [{"data": {"text": "hello"}, "offset": 1}],
                "epoch": "xQmZTbAh",
                "offset": 1,
            }
        },
    ),
    "history_remove": _Method(
        "Forget what was published in a channel; its position goes on",
        {"channel": _CHANNEL},
        ["channel"],
        {"channel": "news"},
        {"result": {}},
    ),
    "subscribe": _Method(
        "Subscribe the connections of a user to a channel",
        {**_WHOSE, "channel": _CHANNEL, "info": {}, "data": {}, "expire_at": _COUNT, "override": _OBJECT},
        ["user", "channel"],
        {"user": "42", "channel": "news"},
        {"result": {}},
    ),
    "unsubscribe": _Method(
        "End the subscription of a user's connections to a channel",
        {**_WHOSE, "channel": _CHANNEL},
        ["user", "channel"],
        {"user": "42", "channel": "news"},
        {"result": {}},
    ),
    "disconnect": _Method(
        "Close the connections of a user",
        {**_WHOSE, "whitelist": {"type": "array", "items": _STRING}, "disconnect": _OBJECT},
        ["user"],
        {"user": "42", "disconnect": {"code": 4500, "reason": "banned"}},
        {"result": {}},
    ),
    "refresh": _Method(
        "Change when the connections of a user expire",
        {**_WHOSE, "expired": {"type": "boolean"}, "expire_at": _COUNT, "info": {}},
        ["user"],
        {"user": "42", "expired": True},
        {"result": {}},
    ),
    "channels": _Method(
        "Channels with subscribers, on whichever replica",
        {"pattern": {"type": "string", "description": "A glob; unset = all"}},
        [],
        {"pattern": "chat:*"},
        {"result": {"channels": {"chat:1": {"num_clients": 2}}}},
    ),
    "info": _Method(
        "The replicas, and how much each serves",
        {},
        [],
        {},
        {
            "result": {
                "nodes": [{"uid": "replica-1", "name": "replica-1", "version": "0.1.0", "num_clients": 2}]
            }
        },
    ),
    "rpc": _Method(
        "Call a handler of the application that mounts the server",
        {"method": _STRING, "params": {"description": "Any JSON"}},
        ["method"],
        {"method": "time", "params": {}},
        {"result": {"data": {"now": 1}}},
    ),
    "batch": _Method(
        "Several commands in one request, in their order",
        {"commands": {"type": "array", "items": {"type": "object"}}, "parallel": {"type": "boolean"}},
        ["commands"],
        {"commands": [{"publish": {"channel": "news", "data": 1}}]},
        {"replies": [{"publish": {}}]},
    ),
}

_ERROR: Final = {"error": {"code": 102, "message": "unknown channel: namespace “x” is not configured"}}


def paths() -> dict[str, Any]:
    """OpenAPI path items of every method, with examples."""
    return {f"/api/{name}": {"post": _operation(name, method)} for name, method in _METHODS.items()}


def _operation(name: str, method: _Method) -> dict[str, Any]:
    body = {"type": "object", "required": method.required, "properties": method.properties}
    return {
        "tags": ["server API"],
        "summary": method.summary,
        "operationId": f"api_{name}",
        "security": [{"ApiKey": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": method.request}},
        },
        "responses": {
            "200": {
                "description": "The result; or an error, by its code",
                "content": {
                    "application/json": {
                        "schema": {"type": "object"},
                        "examples": {"result": {"value": method.answer}, "error": {"value": _ERROR}},
                    }
                },
            },
            "400": {"description": "The body is not JSON of this form"},
            "401": {"description": "The API key is missing or wrong"},
            "413": {"description": f"The body is over {MAX_BODY} bytes"},
        },
    }
