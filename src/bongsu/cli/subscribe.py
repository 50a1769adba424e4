"""`bongsu subscribe`: the messages of a channel, one a line."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
import typer
from rich.markup import escape
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from bongsu.cli.console import DEFAULT_URL, AsJson, Exit, Token, Url, fail, one_line, reason, refusal, stderr
from bongsu.cli.console import unreachable as end_unreachable

_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 20.0
_OPEN_TIMEOUT: Final = 10.0
_MESSAGE_LIMIT: Final = 16 * 1024 * 1024
# Handshake answers that mean "later": draining or deaf replicas, and proxies without one to ask.
_TRY_AGAIN: Final = frozenset({429, 500, 502, 503, 504})


def subscribe(
    channel: Annotated[str, typer.Argument(help="Channel, such as broadcast or news:today.")],
    url: Url = DEFAULT_URL,
    token: Token = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many messages.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the messages of a channel as they come, one a line. Connects again when the connection is lost.

    Messages published in between are not repeated. Ctrl-C ends it.

    [dim]$[/dim] bongsu subscribe broadcast

    [dim]$[/dim] bongsu subscribe news:today --count 1 --json
    """
    try:
        asyncio.run(_print_messages(channel, url, token, count=count, as_json=as_json))
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


async def _print_messages(
    channel: str, url: str, token: str | None, *, count: int | None, as_json: bool
) -> None:
    printed = 0
    async for message in _messages(channel, url, token):
        # A line each, whatever is in it; --json keeps every character.
        line = (
            msgspec.json.encode({"channel": channel, "message": message}).decode()
            if as_json
            else one_line(message)
        )
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        printed += 1
        if printed == count:
            return


async def _messages(channel: str, url: str, token: str | None) -> AsyncIterator[str]:
    """The channel's messages, over as many connections as it takes. Ends the command when it is refused."""
    address = f"ws{url.removeprefix('http')}/ws/{quote(channel, safe=':')}"
    # In a subprotocol, since URLs are logged on their way.
    offered = [Subprotocol("bongsu"), Subprotocol(f"bongsu.token.{token}")] if token else None
    delay, connected_before = _FIRST_DELAY, False
    while True:
        try:
            async with connect(
                address,
                subprotocols=offered,
                compression=None,
                open_timeout=_OPEN_TIMEOUT,
                max_size=_MESSAGE_LIMIT,
            ) as socket:
                stderr.print(f"[dim]subscribed to {escape(one_line(channel))}[/dim]")
                delay, connected_before = _FIRST_DELAY, True
                # `with suppress`: the close says in its frame why, below, also when it is an orderly one.
                with suppress(ConnectionClosed):
                    while True:
                        yield _text(await socket.recv())
                why = _closed(socket.close_code, socket.close_reason)
        except InvalidStatus as error:
            why = _refused(error, has_token=bool(token))
        except (OSError, WebSocketException) as error:
            if not connected_before:
                end_unreachable(url, error)
            why = reason(error)
        # Full jitter: after a restart all clients would come back at the same moment.
        pause = delay * random.uniform(0.5, 1.0)
        stderr.print(f"[yellow]{escape(one_line(why))}; connecting again in {pause:.1f} s[/yellow]")
        await asyncio.sleep(pause)
        delay = min(delay * 2, _LONGEST_DELAY)


def _text(message: str | bytes) -> str:
    return message if isinstance(message, str) else message.decode("utf-8", "replace")


def _closed(code: int | None, why: str | None) -> str:
    """Why the connection ended, in words. Ends the command for codes that say not to come back."""
    words = f"connection closed ({code}{' ' + why if why else ''})"
    # The client protocol's ranges for "do not reconnect".
    if code is not None and (3500 <= code < 4000 or 4500 <= code < 5000):
        fail(words)
    return words


def _refused(error: InvalidStatus, *, has_token: bool) -> str:
    status, body = error.response.status_code, bytes(error.response.body or b"")
    words = refusal(status, body)
    if status in _TRY_AGAIN:
        return words
    if status == 401 and not has_token:
        words += ". Give a token with --token or BONGSU_ACCESS_TOKEN; `bongsu token USER` makes one"
    fail(words)
