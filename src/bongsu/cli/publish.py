"""`bongsu publish`: one message through the server API."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import httpx
import msgspec
import typer

from bongsu.cli.console import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    Exit,
    Url,
    credentials,
    fail,
    reason,
    refusal,
    unreachable,
)

_TIMEOUT = httpx.Timeout(10.0)


def publish(
    channel: Annotated[str, typer.Argument(help="Channel, such as broadcast or news:today.")],
    data: Annotated[str, typer.Argument(metavar="JSON", help="The message as JSON; - reads standard input.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Publish a message to a channel. It arrives byte for byte as it was given.

    [dim]$[/dim] bongsu publish broadcast '"hello"'

    [dim]$[/dim] echo '{"score": 3}' | bongsu publish game:7 -
    """
    raw = (sys.stdin.buffer.read() if data == "-" else data.encode("utf-8", "surrogateescape")).strip()
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"not JSON ({error}). A text needs quotes: '\"hello\"'") from None
    result = _send(url, api_key, b'{"channel":%b,"data":%b}' % (msgspec.json.encode(channel), raw))
    if as_json:
        typer.echo(msgspec.json.encode(result))


def _send(url: str, api_key: str | None, body: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **credentials(api_key)}
    try:
        answer = httpx.post(f"{url}/api/publish", content=body, headers=headers, timeout=_TIMEOUT)
    except httpx.ConnectError as error:
        unreachable(url, error)
    except httpx.HTTPError as error:
        fail(
            f"{reason(error)}, after the message was sent: it may or may not have been published",
            Exit.UNREACHABLE,
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        if api_key:
            fail("the server does not accept this API key; it must be the server's BONGSU_API_KEY")
        fail("an API key is needed: give the server's with --api-key or BONGSU_API_KEY")
    if answer.status_code != httpx.codes.OK:
        fail(refusal(answer.status_code, answer.content))
    try:
        reply = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        fail(f"{url} answered something else than JSON; is it a Bongsu server?")
    if isinstance(refused := reply.get("error"), dict):
        fail(f"not published: {refused.get('message')} (code {refused.get('code')})")
    result = reply.get("result")
    return result if isinstance(result, dict) else {}
