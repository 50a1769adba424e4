"""What the commands share: where they print, how they end, and the options that name a server."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import httpx
import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from bongsu.settings import ACCESS_TOKEN_VARIABLE, URL_VARIABLE, without_password

# Standard output is for results alone, so that it can be piped; everything said to a person goes here.
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ANSWER_LIMIT = 500  # characters of an answer that is not ours, such as a proxy's error page


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FAILED = 1
    """The server refused, or the work failed; settings that cannot be used."""
    UNREACHABLE = 2
    """The server could not be reached or did not answer. Wrong usage ends with 2 as well."""
    INTERRUPTED = 130
    """Ctrl-C."""


def _server_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise typer.BadParameter("must be an address such as http://127.0.0.1:8000")
    return value.rstrip("/")


Url = Annotated[
    str,
    typer.Option("--url", envvar=URL_VARIABLE, callback=_server_url, help="Address of the server."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="BONGSU_API_KEY",
        show_envvar=True,
        help="Key of the server API. The variable keeps it out of the process list.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=ACCESS_TOKEN_VARIABLE,
        help="A client's token, as [bold]bongsu token[/bold] makes them.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

DEFAULT_URL = "http://127.0.0.1:8000"


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Say why on standard error and end the command with `code`."""
    stderr.print(f"[bold red]error:[/bold red] {escape(one_line(message))}")
    raise typer.Exit(code)


def unreachable(url: str, error: Exception) -> NoReturn:
    """End the command because nothing answers at `url`."""
    fail(
        f"cannot reach {without_password(url)}: {reason(error)}. Is a server running there?", Exit.UNREACHABLE
    )


def reason(error: BaseException) -> str:
    """Why a connection failed, in few words: the system's own error, which libraries wrap in theirs."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionRefusedError):
            return "connection refused"
        if isinstance(inner, TimeoutError | httpx.TimeoutException):
            return "no answer in time"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


def credentials(api_key: str | None, token: str | None = None) -> dict[str, str]:
    """Request headers; in headers, since URLs are logged on their way."""
    headers = {}
    if api_key:
        headers["X-API-Key"] = api_key
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def refusal(status: int, body: bytes) -> str:
    """An error answer in words: the problem document's, or the beginning of what came instead."""
    problem = _object(body)
    title, detail, code = problem.get("title"), problem.get("detail"), problem.get("code")
    if isinstance(title, str):
        words = f"{title}: {detail}" if isinstance(detail, str) and detail else title
        return f"{words} ({code})" if isinstance(code, str) else words
    text = one_line(body.decode("utf-8", "replace").strip())[:_ANSWER_LIMIT]
    return f"the server answered {status}: {text}" if text else f"the server answered {status}"


def one_line(text: str) -> str:
    """`text` with control characters written as escapes: others' words must not steer this terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
