"""`bongsu serve`, `check`, `migrate` and `token`: the commands beside the server, which read its settings."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bongsu.cli.console import AsJson, Exit, fail, one_line, stderr
from bongsu.settings import (
    Settings,
    SettingsError,
    as_key,
    as_variable,
    load,
    load_explained,
    parse_duration,
    without_password,
)

_LONGEST_SHOWN = 80  # characters of a value in the table: a PEM key would fill the screen
_WIDTH_OF_A_FILE = 240


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [dim]BONGSU_HOST[/dim]")] = None,
    port: Annotated[
        int | None, typer.Option(help="TCP port; 0 = any free one.  [dim]BONGSU_PORT[/dim]")
    ] = None,
    dev: Annotated[
        bool | None,
        typer.Option(
            "--dev/--no-dev", help="Development: open to everybody who can reach it.", show_default=False
        ),
    ] = None,
) -> None:
    """Run one replica. More cores or hosts are more replicas, all with the same settings.

    Settings come from BONGSU_… variables and bongsu.toml; [bold]bongsu check[/bold] shows them.

    [dim]$[/dim] bongsu serve --dev

    [dim]$[/dim] BONGSU_BROKER_URL=redis://127.0.0.1:6379 bongsu serve --host 0.0.0.0
    """
    given = {"host": host, "port": port, "dev": dev}
    try:
        settings = load(**{name: value for name, value in given.items() if value is not None})
    except SettingsError as error:
        fail_with(error)
    _require_free(settings.host, settings.port)
    if settings.dev:
        _say_what_dev_means(settings)
    gc.disable()  # a tenth of the start would be its rounds, though nothing is garbage; the server enables it
    # Imported late: the other commands, --help and completion answer at once without the server's libraries.
    from bongsu.server import run

    raise typer.Exit(run(settings))


def check(
    dev: Annotated[
        bool | None, typer.Option("--dev/--no-dev", help="As for serve.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the settings and show what is in force and where it came from. Secrets are not shown.

    Ends with 1 and every problem when they cannot be used.

    [dim]$[/dim] BONGSU_LOG__LEVEL=debug bongsu check --dev
    """
    try:
        settings, origins = load_explained(**({} if dev is None else {"dev": dev}))
    except SettingsError as error:
        if as_json:
            typer.echo(msgspec.json.encode({"ok": False, "problems": error.problems}))
            raise typer.Exit(Exit.FAILED) from None
        fail_with(error)
    rows = [
        {
            "key": as_key(path),
            "variable": as_variable(path),
            "value": _shown(value),
            "origin": origins.get(path, "default"),
        }
        for path, value in _values(settings)
    ]
    if as_json:
        typer.echo(msgspec.json.encode({"ok": True, "settings": rows}))
        return
    table = Table(box=None, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for row in rows:
        value = row["value"] if isinstance(row["value"], str) else msgspec.json.encode(row["value"]).decode()
        if len(value) > _LONGEST_SHOWN:
            value = value[:_LONGEST_SHOWN] + "…"
        style = None if row["origin"] == "default" else "bold"
        table.add_row(
            *(escape(one_line(str(cell))) for cell in (row["key"], value, row["origin"])), style=style
        )
    # Outside a terminal there is no width to fit into: whoever greps wants each setting on its line.
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(table)


def migrate() -> None:
    """Bring the database's tables up to this version. Safe to run from several hosts at once.

    [dim]$[/dim] BONGSU_DATABASE_URL=postgresql+asyncpg://bongsu@db/bongsu bongsu migrate
    """
    try:
        # The database is all that matters here: no API key is needed to make tables.
        url = load(dev=True).database_url
    except SettingsError as error:
        fail_with(error)
    from bongsu.db.migrate import migrate as migrate_database
    from bongsu.db.session import DatabaseUnavailable

    try:
        applied = asyncio.run(migrate_database(url))
    except DatabaseUnavailable as error:
        fail(f"the database cannot be reached: {without_password(str(error))}", Exit.UNREACHABLE)
    for revision in applied:
        typer.echo(f"applied {revision}")
    if not applied:
        typer.echo("nothing to do: the database is up to date")


def token(
    user: Annotated[str, typer.Argument(help='The user id; "" for an anonymous client.')],
    channel: Annotated[
        str | None, typer.Option(help="Make a subscription token for this channel, not a connection token.")
    ] = None,
    ttl: Annotated[
        str, typer.Option(help="How long it is valid, such as 30s, 15m or 24h; 0 = for good.")
    ] = "1h",
) -> None:
    """Print a client's token, signed with BONGSU_TOKEN__HMAC_SECRET.

    [dim]$[/dim] export BONGSU_ACCESS_TOKEN=$(bongsu token 42)

    [dim]$[/dim] bongsu token 42 --channel '$room:1' --ttl 5m
    """
    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--ttl") from None
    try:
        # Signing needs the one secret; whether the rest is fit for production is for serve and check to say.
        settings = load(dev=True)
    except SettingsError as error:
        fail_with(error)
    separate = settings.client.subscription_token
    has_own_keys = channel is not None and separate.enabled
    secret = (separate if has_own_keys else settings.token).hmac_secret
    if secret is None:
        variable = "BONGSU_CLIENT__SUBSCRIPTION_TOKEN" if has_own_keys else "BONGSU_TOKEN"
        fail(f"{variable}__HMAC_SECRET is not set; other tokens are made by whoever holds the private key")
    from bongsu.auth import sign_connection_token, sign_subscription_token

    key, now, lifetime = secret.get_secret_value(), time.time(), seconds or None
    if channel is None:
        typer.echo(sign_connection_token(key, user=user, now=now, ttl=lifetime))
    else:
        typer.echo(sign_subscription_token(key, user=user, channel=channel, now=now, ttl=lifetime))


def fail_with(error: SettingsError) -> NoReturn:
    stderr.print("[bold red]error:[/bold red] the settings cannot be used")
    for problem in error.problems:
        stderr.print(f"  • {escape(one_line(problem))}")
    stderr.print("[dim]All settings: docs/settings.md, or `bongsu check --dev`[/dim]")
    raise typer.Exit(Exit.FAILED)


def _require_free(host: str, port: int) -> None:
    """End the command if the port is taken, or not for us: the whole server would start to find that out."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            return  # the server knows more ways to listen than this
        choose = "choose another port: --port, BONGSU_PORT or make run PORT=…"
        fail(f"cannot listen on {host}:{port}: {error.strerror}; {choose}")


def _say_what_dev_means(settings: Settings) -> None:
    stderr.print("[yellow]development mode: whoever can reach this server may use it[/yellow]")
    if not _is_loopback(settings.host):
        stderr.print(f"[bold red]and {escape(settings.host)} can be reached from other machines[/bold red]")
    if "api_key" not in settings.model_fields_set and settings.api_key is not None:
        # Only here, never in the log, and only a key that dies with the process.
        stderr.print(f"API key of this run: {escape(settings.api_key.get_secret_value())}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _values(group: BaseModel, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every single value in `group`, with its path."""
    for name in type(group).model_fields:
        value = getattr(group, name)
        path = (*above, name)
        if isinstance(value, BaseModel):
            yield from _values(value, path)
        elif (
            isinstance(value, dict) and value and all(isinstance(each, BaseModel) for each in value.values())
        ):
            for key, each in value.items():
                yield from _values(each, (*path, key))
        else:
            yield path, value


def _shown(value: object) -> Any:
    """`value` as it may be shown to anybody."""
    if isinstance(value, SecretStr):
        return "***"
    return without_password(value) if isinstance(value, str) else value
