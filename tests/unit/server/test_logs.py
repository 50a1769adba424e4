"""Log lines: their form, what they carry, and what they must never show."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from bongsu.server.logs import configure_logging, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is global to the process; pytest and other tests have their own."""
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "aiosqlite", "httpcore", "httpx")
    loggers = [logging.getLogger(name) for name in names]
    before = [(x, x.level, x.handlers[:], x.filters[:], x.propagate, x.disabled) for x in loggers]
    yield
    for logger, level, handlers, filters, propagate, disabled in before:
        logger.setLevel(level)
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.propagate, logger.disabled = propagate, disabled
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines() -> Callable[[], list[dict[str, Any]]]:
    """Configures JSON at level info; the result reads what was logged."""
    stream = io.StringIO()
    configure_logging(level="info", format="auto", replica="r1", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_outside_a_terminal_is_json_with_replica_level_time_and_fields(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    structlog.get_logger("bongsu.test").info("client connected", channel="봉수", clients=3)
    (line,) = lines()
    assert list(line)[:3] == ["timestamp", "level", "message"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "client connected",
        "level": "info",
        "logger": "bongsu.test",
        "replica": "r1",
        "channel": "봉수",
        "clients": 3,
    }


def test_the_standard_librarys_loggers_use_the_same_form(lines: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("alembic.runtime.migration").warning("Running upgrade")
    first, second = lines()
    assert (first["message"], first["logger"], first["replica"]) == (
        "Started server process [7]",
        "uvicorn.error",
        "r1",
    )
    assert second["level"] == "warning"


def test_what_is_bound_to_the_context_is_in_every_line(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with structlog.contextvars.bound_contextvars(connection="c-1"):
        structlog.get_logger("bongsu.test").info("one")
        logging.getLogger("elsewhere").warning("two")
    structlog.get_logger("bongsu.test").info("three")
    assert [line.get("connection") for line in lines()] == ["c-1", "c-1", None]


def test_lines_below_the_level_are_not_written(lines: Callable[[], list[dict[str, Any]]]) -> None:
    structlog.get_logger("bongsu.test").debug("no")
    logging.getLogger("elsewhere").debug("no")
    logging.getLogger("httpx").info("HTTP Request: GET http://127.0.0.1/?x=1")
    structlog.get_logger("bongsu.test").warning("yes")
    assert [line["message"] for line in lines()] == ["yes"]


def test_a_terminal_gets_readable_lines_in_which_control_characters_are_harmless() -> None:
    stream = Terminal()
    configure_logging(level="info", format="auto", replica="r1", stream=stream)
    structlog.get_logger("bongsu.test").info("subscribed", channel="a\x1b[2Jb\nc", clients=["\x1b[2J"])
    logging.getLogger("elsewhere").warning("bad request %s", "\x1b[2J\n")
    written = stream.getvalue()
    assert "subscribed" in written
    assert "\x1b[2J" not in written
    assert written.count("\n") == 2
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        structlog.get_logger("bongsu.test").exception("refused")
    written = stream.getvalue()
    assert "\nTraceback (most recent call last):\n" in written
    assert "\x1b[2J" not in written


def test_the_format_can_be_chosen_whatever_the_stream_is() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    configure_logging(level="info", format="json", replica="r1", stream=terminal)
    logging.getLogger("x").warning("one")
    configure_logging(level="info", format="console", replica="r1", stream=pipe)
    logging.getLogger("x").warning("two")
    assert json.loads(terminal.getvalue())["message"] == "one"
    assert not pipe.getvalue().startswith("{")
    assert "\x1b" not in pipe.getvalue()


def test_uvicorn_logs_neither_requests_nor_handshakes_whose_urls_may_hold_tokens(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    logging.getLogger("uvicorn.access").info(
        '%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/?token=a", "1.1", 200
    )
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "1.2.3.4:5", "/ws?token=abc")
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" %d', "1.2.3.4:5", "/ws?token=abc", 403)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    assert [line["message"] for line in lines()] == ["Exception in ASGI application"]


def test_an_exception_is_logged_without_the_password_of_the_url_in_it(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    try:
        raise ConnectionError("cannot reach redis://user:hunter2@redis:6379/0")
    except ConnectionError:
        structlog.get_logger("bongsu.test").exception("broker lost")
        logging.getLogger("elsewhere").exception("broker lost")
    for line in lines():
        assert "ConnectionError: cannot reach redis://user:***@redis:6379/0" in line["exception"]
        assert "hunter2" not in json.dumps(line)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"api_key": "s3cret"}, {"api_key": "***"}),
        ({"X-API-Key": "s3cret"}, {"X-API-Key": "***"}),
        ({"Authorization": "Bearer s3cret"}, {"Authorization": "***"}),
        ({"access_token": "s3cret"}, {"access_token": "***"}),
        ({"hmac_secret": "s3cret"}, {"hmac_secret": "***"}),
        ({"password": "s3cret"}, {"password": "***"}),
        ({"Set-Cookie": "s3cret"}, {"Set-Cookie": "***"}),
        ({"sec-websocket-protocol": "bongsu, s3cret"}, {"sec-websocket-protocol": "***"}),
        (
            {"headers": {"authorization": "s3cret", "host": "x"}},
            {"headers": {"authorization": "***", "host": "x"}},
        ),
        ({"calls": [{"token": "s3cret"}]}, {"calls": [{"token": "***"}]}),
        ({"url": "redis://:s3cret@host/0"}, {"url": "redis://:***@host/0"}),
        ({"url": "postgresql+asyncpg://me:s3@cret@host/db"}, {"url": "postgresql+asyncpg://me:***@host/db"}),
        ({"path": "/ws?since=1&token=s3cret&x=2"}, {"path": "/ws?since=1&token=***&x=2"}),
        ({"path": "/api/publish?api_key=s3cret"}, {"path": "/api/publish?api_key=***"}),
        ({"event": f"refused {JWT} there"}, {"event": "refused *** there"}),
        ({"raw": f"bongsu.token.{JWT}".encode()}, {"raw": "bongsu.token.***"}),
        ({"error": ValueError("at redis://a:s3cret@h")}, {"error": "ValueError('at redis://a:***@h')"}),
        ({"token": None, "tokens": 3, "key": "room:1"}, {"token": None, "tokens": 3, "key": "room:1"}),
        ({"url": "https://example.org/a:b@c"}, {"url": "https://example.org/a:b@c"}),
    ],
)
def test_secrets_are_masked_and_nothing_else_is(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert redact(None, "info", fields) == expected
