"""`bongsu doctor`: a whole deployment, tried from outside: proxy, replicas, broker, database."""

from __future__ import annotations

import asyncio
import email.utils
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from bongsu.cli.console import (
    DEFAULT_URL,
    ApiKey,
    AsJson,
    Exit,
    Token,
    Url,
    credentials,
    one_line,
    reason,
    refusal,
)

_DEADLINE: Final = 10.0  # seconds for one step of a check
_PROBES: Final = 12  # requests that see which replicas are behind the address
_ACQUAINTANCE: Final = 4  # looks, a second apart, at whether the replicas know each other
_CLOCK_TOLERANCE: Final = 5.0  # seconds

Verdict = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do about it ("" when nothing)."""

    check: str
    verdict: Verdict
    seen: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where it is, and who asks."""

    url: str
    api_key: str | None
    token: str | None
    http: httpx.AsyncClient

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(f"{self.url}{path}", headers=credentials(self.api_key, self.token))

    async def api(self, method: str, **request: object) -> dict[str, Any]:
        """A call of the server API. Raises `_Refused`."""
        answer = await self.http.post(
            f"{self.url}/api/{method}", json=request, headers=credentials(self.api_key)
        )
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise _Refused("the API key is not accepted; it must be the server's BONGSU_API_KEY")
        if answer.status_code != httpx.codes.OK:
            raise _Refused(refusal(answer.status_code, answer.content))
        reply: dict[str, Any] = answer.json()
        if "error" in reply:
            raise _Refused(f"{reply['error'].get('message')} (code {reply['error'].get('code')})")
        result: dict[str, Any] = reply.get("result") or {}
        return result


class _Refused(Exception):
    """The deployment answered, and said no."""


def doctor(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Try a running deployment from outside: proxy, replicas, broker, database, delivery.

    Changes nothing that stays. With the API key it checks more. Ends with 1 when something failed.

    [dim]$[/dim] bongsu doctor --url https://live.example.com
    """
    findings = asyncio.run(_examine(url, api_key, token))
    if as_json:
        for finding in findings:
            typer.echo(msgspec.json.encode(asdict(finding)))
    else:
        _show(findings)
    if findings[0].verdict == "failed":
        raise typer.Exit(Exit.UNREACHABLE)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(Exit.FAILED)


async def _examine(url: str, api_key: str | None, token: str | None) -> list[Finding]:
    async with httpx.AsyncClient(timeout=_DEADLINE) as http:
        deployment = Deployment(url, api_key, token, http)
        findings = [await _run("address", _address, deployment)]
        if findings[0].verdict != "failed":
            findings += [await _run(name, check, deployment) for name, check in _CHECKS.items()]
    return findings


async def _run(
    name: str, check: Callable[[Deployment], Awaitable[Finding]], deployment: Deployment
) -> Finding:
    try:
        return await check(deployment)
    except _Refused as error:
        return Finding(name, "failed", str(error))
    except InvalidStatus as error:
        seen = refusal(error.response.status_code, bytes(error.response.body or b""))
        return Finding(name, "failed", seen)
    except (httpx.HTTPError, OSError, TimeoutError, WebSocketException) as error:
        return Finding(name, "failed", reason(error))
    except (KeyError, TypeError, ValueError) as error:
        return Finding(name, "failed", f"the answer is not one of ours ({type(error).__name__})")


async def _address(deployment: Deployment) -> Finding:
    answer = await deployment.get("/livez")
    if answer.status_code != httpx.codes.OK or "x-bongsu-replica" not in answer.headers:
        advice = "Is the address right, and does the proxy pass every path on?"
        return Finding("address", "failed", refusal(answer.status_code, answer.content), advice)
    parts = urlsplit(deployment.url)
    if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        advice = "Tokens and messages can be read on their way: serve it over https."
        return Finding("address", "warning", f"{deployment.url} answers", advice)
    return Finding("address", "ok", f"{deployment.url} answers")


async def _replicas(deployment: Deployment) -> Finding:
    answering = set()
    for _ in range(_PROBES):
        async with httpx.AsyncClient(timeout=_DEADLINE) as fresh:  # another connection may be another replica
            answering.add((await fresh.get(f"{deployment.url}/livez")).headers["x-bongsu-replica"])
    for _ in range(_ACQUAINTANCE):
        status = (await deployment.get("/status")).json()
        known = {each["replica"]: each["version"] for each in status["cluster"]["replicas"]}
        if answering <= known.keys():
            break
        await asyncio.sleep(1)  # one that has just started is heard of with its next heartbeat
    seen = f"{len(known)} in the cluster, {len(answering)} answered here: {', '.join(sorted(known))}"
    if strangers := answering - known.keys():
        advice = "They answer here but belong to another cluster: one broker and prefix for all?"
        return Finding("replicas", "failed", f"{seen}; and {', '.join(sorted(strangers))}", advice)
    if len(set(known.values())) > 1:
        versions = ", ".join(sorted(set(known.values())))
        return Finding("replicas", "warning", f"{seen}; versions {versions}", "Fine during an upgrade only.")
    if status["broker"]["kind"] == "memory" and len(answering) > 1:
        return Finding("replicas", "failed", seen, "They have no broker between them: set BONGSU_BROKER_URL.")
    return Finding("replicas", "ok", seen)


async def _ready(deployment: Deployment) -> Finding:
    answer = await deployment.get("/readyz")
    body = answer.json()
    seen = f"{body['health']}, broker {body['broker']}"
    if answer.status_code == httpx.codes.OK:
        return Finding("ready", "ok", seen)
    return Finding(
        "ready",
        "failed",
        seen,
        "What the states mean is in docs/architecture.md; the replica's log says why.",
    )


async def _mode(deployment: Deployment) -> Finding:
    status = (await deployment.get("/status")).json()
    if status["dev"]:
        return Finding("mode", "warning", "development: open to everybody", "Start it without --dev.")
    return Finding("mode", "ok", "tokens are asked for")


async def _clock(deployment: Deployment) -> Finding:
    sent = time.time()
    answer = await deployment.get("/livez")
    theirs = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
    # The header has whole seconds, and the answer took some time.
    off = max(0.0, sent - 1 - theirs, theirs - time.time())
    if off > _CLOCK_TOLERANCE:
        return Finding(
            "clock", "warning", f"{off:.0f} s off", "Tokens expire by the server's clock: run NTP."
        )
    return Finding("clock", "ok", "within a few seconds of ours")


async def _websocket(deployment: Deployment) -> Finding:
    async with _client(deployment) as (_, greeting):
        return Finding("websocket", "ok", f"connected to {greeting['version']}")


async def _stream(deployment: Deployment) -> Finding:
    """A proxy that buffers gives the first line when the response ends, which is never."""
    request = deployment.http.stream(
        "POST",
        f"{deployment.url}/connection/http_stream",
        content=_command(1, "connect", {"token": deployment.token} if deployment.token else {}),
        headers={"Content-Type": "application/json"},
    )
    async with request as answer:
        if answer.status_code == httpx.codes.NOT_FOUND:
            return Finding("http stream", "skipped", "not enabled")
        if answer.status_code != httpx.codes.OK:
            raise _Refused(refusal(answer.status_code, await answer.aread()))
        try:
            first = await anext(answer.aiter_lines())
        except httpx.ReadTimeout:
            advice = "The proxy must not buffer responses: see nginx.conf."
            return Finding("http stream", "failed", "no line arrives", advice)
        _result(first, "connect")
        return Finding("http stream", "ok", "lines arrive as they are sent")


async def _delivery(deployment: Deployment) -> Finding:
    """From the server API on any replica to a socket on another, through the broker."""
    if not deployment.api_key:
        return Finding("delivery", "skipped", "needs the API key", "Give --api-key or BONGSU_API_KEY.")
    channel, word = f"doctor-{secrets.token_hex(8)}", secrets.token_hex(8)
    async with _client(deployment) as (socket, greeting):
        user = _subject(deployment.token)
        await deployment.api("subscribe", user=user, channel=channel, client=greeting["client"])
        sent = time.perf_counter()
        await deployment.api("publish", channel=channel, data=word)
        async with asyncio.timeout(_DEADLINE):
            while word not in str(await socket.recv()):
                pass
        took = time.perf_counter() - sent
    return Finding("delivery", "ok", f"published and received in {took * 1000:.0f} ms")


async def _control(deployment: Deployment) -> Finding:
    if not deployment.api_key:
        return Finding("control", "skipped", "needs the API key")
    result = await deployment.api("info")
    nodes, missing = len(result["nodes"]), result.get("missing") or []
    if missing:
        advice = "They hold a lease and don't answer: look at their logs."
        return Finding("control", "failed", f"{', '.join(missing)} did not answer", advice)
    return Finding("control", "ok", f"{nodes} answered a survey")


async def _uploads(deployment: Deployment) -> Finding:
    answer = await deployment.get("/uploads?limit=1")
    if answer.status_code == httpx.codes.UNAUTHORIZED and not (deployment.token or deployment.api_key):
        return Finding("uploads", "skipped", "needs a token or the API key")
    if answer.status_code != httpx.codes.OK:
        raise _Refused(refusal(answer.status_code, answer.content))
    answer.json()["uploads"]
    return Finding("uploads", "ok", "the log can be read")


_CHECKS: Final = {
    "replicas": _replicas,
    "ready": _ready,
    "mode": _mode,
    "clock": _clock,
    "websocket": _websocket,
    "http stream": _stream,
    "delivery": _delivery,
    "control": _control,
    "uploads": _uploads,
}


@asynccontextmanager
async def _client(deployment: Deployment) -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
    """A connection of the client protocol, and the result of its connect command."""
    address = f"ws{deployment.url.removeprefix('http')}/connection/websocket"
    async with connect(address, open_timeout=_DEADLINE, close_timeout=1, compression=None) as socket:
        await socket.send(_command(1, "connect", {"token": deployment.token} if deployment.token else {}))
        async with asyncio.timeout(_DEADLINE):
            yield socket, _result(str(await socket.recv()), "connect")


def _command(number: int, method: str, request: dict[str, Any]) -> str:
    return msgspec.json.encode({"id": number, method: request}).decode()


def _result(line: str, method: str) -> dict[str, Any]:
    reply: dict[str, Any] = msgspec.json.decode(line.splitlines()[0])
    refused = reply.get("error") or reply.get("push", {}).get("disconnect")
    if refused:
        raise _Refused(f"{refused.get('message') or refused.get('reason')} (code {refused.get('code')})")
    result: dict[str, Any] = reply[method]
    return result


def _subject(token: str | None) -> str:
    """The user of a token, unverified: the server checks it, we only have to name the same user."""
    if not token:
        return ""
    import jwt

    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return str(claims.get("sub", ""))


_MARKS: Final = {
    "ok": "[green]ok[/green]",
    "warning": "[yellow]warning[/yellow]",
    "failed": "[bold red]failed[/bold red]",
    "skipped": "[dim]skipped[/dim]",
}


def _show(findings: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        pad = " " * (len("skipped") - len(finding.verdict))
        console.print(
            f"{_MARKS[finding.verdict]}{pad}  {finding.check:<{width}}  {escape(one_line(finding.seen))}"
        )
        if finding.advice:
            console.print(f"{'':<{width + 11}}[dim]{escape(finding.advice)}[/dim]")
