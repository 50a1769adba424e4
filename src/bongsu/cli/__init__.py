"""The `bongsu` command: the server and its clients. What each command does is in docs/commands.md."""

from __future__ import annotations

from typing import Annotated

import typer

from bongsu._version import __version__
from bongsu.cli.doctor import doctor
from bongsu.cli.jobs import app as jobs
from bongsu.cli.operate import check, migrate, serve, token
from bongsu.cli.publish import publish
from bongsu.cli.subscribe import subscribe
from bongsu.cli.upload import upload

__all__ = ["app", "main"]

app = typer.Typer(
    name="bongsu",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,  # a traceback with the values of variables would show secrets
)
_SERVER = "Server"
_CLIENT = "Clients of a running server"
app.command(rich_help_panel=_SERVER)(serve)
app.command(rich_help_panel=_SERVER)(check)
app.command(rich_help_panel=_SERVER)(migrate)
app.command(rich_help_panel=_SERVER)(token)
app.command(rich_help_panel=_CLIENT)(doctor)
app.add_typer(jobs, name="jobs", rich_help_panel=_SERVER)
app.command(rich_help_panel=_CLIENT)(publish)
app.command(rich_help_panel=_CLIENT)(subscribe)
app.command(rich_help_panel=_CLIENT)(upload)


def main() -> None:
    """The console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bongsu {__version__}")
        raise typer.Exit


@app.callback()
def _bongsu(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Realtime broadcast and durable uploads. Start with [bold]bongsu serve --dev[/bold]."""
