"""Structured logs of the process: one line an event, JSON outside a terminal, and no secret in any of them.

Called once by `bongsu serve`. Importing this, or mounting Bongsu into another app, configures nothing: there
the host application's logging stands.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bongsu.settings import without_password

_MASK: Final = "***"
_SECRET_KEY: Final = re.compile(
    r"(?:.*_)?(?:authorization|cookie|api_?key|token|password|passwd|secret|credentials?|secret_key"
    r"|websocket_protocol|subprotocols?)",
    re.IGNORECASE,
)
_JWT: Final = re.compile(r"\beyJ[\w-]*\.[\w-]*\.[\w-]*")
_QUERY: Final = re.compile(r"([?&](?:[\w-]*(?:token|key|secret|password))=)[^&\s\"']+", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_LINES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_OF_SEVERAL_LINES: Final = frozenset({"exception", "stack"})

# Chatty below warning: SQL driver calls with their parameters, and each request of an HTTP client.
_QUIET: Final = ("aiosqlite", "httpcore", "httpx")


def configure_logging(
    *,
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "console", "json"],
    replica: str,
    stream: TextIO | None = None,
) -> None:
    """Send structlog and the standard library's logging (uvicorn, alembic, sqlalchemy) to `stream`.

    `stream` is standard error unless given. Each line names `replica` and what was bound with
    `structlog.contextvars.bind_contextvars`, such as the connection. Replaces handlers set before.
    """
    stream = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not stream.isatty())
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _ReplicaName(replica),
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.StackInfoRenderer(),
        # Before redaction, since an exception's text may hold the URL that could not be reached. Plain: the
        # pretty tracebacks of a terminal show local variables, and with them secrets.
        structlog.processors.format_exc_info,
        redact,
    ]
    if as_json:
        last += [_in_reading_order, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        last += [
            _harmless_to_terminals,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=first))
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=number, force=True)
    structlog.configure(
        processors=[*first, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    _quiet_uvicorn()


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor: masks values by the names of their keys, and secrets inside texts (URLs, JWTs)."""
    return {key: _MASK if _is_secret(key) and value else _clean(value) for key, value in event.items()}


class _ReplicaName:
    """structlog processor: names the replica in each line, since collectors mix those of all replicas."""

    def __init__(self, replica: str) -> None:
        self._replica = replica

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.setdefault("replica", self._replica)
        return event


def _in_reading_order(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor: when, how severe and what come first; collectors call the text `message`."""
    first = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "message": event.pop("event")}
    return {**first, **event}


def _harmless_to_terminals(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog processor: control characters as escapes. Channel names, user ids and what exceptions repeat
    of them come from anybody, and must not steer the operator's terminal or forge a line.
    """
    return {
        key: (_CONTROL_IN_LINES if key in _OF_SEVERAL_LINES else _CONTROL).sub(_escape, value)
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _is_secret(key: str) -> bool:
    return _SECRET_KEY.fullmatch(key.replace("-", "_")) is not None


def _clean(value: object) -> object:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, Mapping):
        return {
            name: _MASK if isinstance(name, str) and _is_secret(name) and inner else _clean(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clean_text(repr(value))  # what the renderer would do, but not past us


def _clean_text(text: str) -> str:
    text = without_password(text) if "://" in text else text
    text = _JWT.sub(_MASK, text) if "eyJ" in text else text
    return _QUERY.sub(rf"\1{_MASK}", text) if "=" in text else text


def _quiet_uvicorn() -> None:
    """No line of uvicorn's per request or handshake: they repeat the URL, whose query may hold a token.

    Connections are logged by the transports, by id. What uvicorn says of itself and of errors stays.
    """
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    error_log = logging.getLogger("uvicorn.error")
    if _not_a_handshake not in error_log.filters:
        error_log.addFilter(_not_a_handshake)


def _not_a_handshake(record: logging.LogRecord) -> bool:
    return not (isinstance(record.msg, str) and record.msg.startswith('%s - "WebSocket '))
