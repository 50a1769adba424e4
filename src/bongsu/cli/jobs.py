"""`bongsu jobs list|retry|drop`: background jobs that wait or have failed, straight from the database."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bongsu.cli.console import AsJson, Exit, fail, one_line
from bongsu.cli.operate import fail_with
from bongsu.settings import SettingsError, load, without_password

_T = TypeVar("_T")

app = typer.Typer(no_args_is_help=True, help="See and mend background jobs: list, retry, drop.")

State = Literal["queued", "running", "done", "dead"]

Ids = Annotated[list[str], typer.Argument(help="Ids of jobs, as list shows them.", metavar="ID...")]


@app.command("list")
def list_jobs(
    state: Annotated[State | None, typer.Option(help="Only these; else all that are not done.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most jobs to show, oldest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show jobs: those that wait, run, or are dead. Dead ones have failed too often, and wait for you.

    [dim]$[/dim] bongsu jobs list --state dead
    """
    from bongsu.jobs import admin

    async def work(session: Any) -> list[dict[str, Any]]:
        return [_shown(job) for job in await admin.listed(session, state=state, limit=limit)]

    jobs = _with_database(work)
    if as_json:
        typer.echo(msgspec.json.encode({"jobs": jobs}))
        return
    if not jobs:
        typer.echo("no such jobs")
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "kind", "state", "failures", "created", "error"):
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for job in jobs:
        cells = (
            job["id"],
            job["kind"],
            job["state"],
            job["failures"],
            job["created_at"],
            job["last_error"] or "",
        )
        table.add_row(*(escape(one_line(str(cell))) for cell in cells))
    # Outside a terminal each job is a line: somebody greps.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


@app.command()
def retry(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of dead jobs.", metavar="[ID]...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have dead jobs run again, as if they had never failed. Ends with 1 when an id is not a dead job's.

    [dim]$[/dim] bongsu jobs retry --all
    """
    if bool(ids) == everything:
        raise typer.BadParameter("give ids, or --all")
    from bongsu.jobs import admin
    from bongsu.uploads import rows
    from bongsu.uploads.events import tell_changed

    async def work(session: Any) -> list[str]:
        revived = await admin.revive(session, None if everything else ids)
        for job in revived:
            if job.upload_id is not None and (upload := await rows.reopen(session, job.upload_id)):
                await tell_changed(session, upload)
        return [job.id for job in revived]

    _report("retried", _with_database(work), ids or [], as_json=as_json)


@app.command()
def drop(ids: Ids, as_json: AsJson = False) -> None:
    """Delete dead jobs of the application. Ends with 1 when an id is not one's.

    The dead job of an upload goes with its upload: DELETE /uploads/{id}.

    [dim]$[/dim] bongsu jobs drop 019c3a…
    """
    from bongsu.jobs import admin

    async def work(session: Any) -> list[str]:
        return list(await admin.drop(session, ids))

    _report("dropped", _with_database(work), ids, as_json=as_json)


def _report(what: str, done: list[str], asked: list[str], *, as_json: bool) -> None:
    unknown = [each for each in asked if each not in done]
    if as_json:
        typer.echo(msgspec.json.encode({what: done, "unknown": unknown}))
    else:
        for each in done:
            typer.echo(f"{what} {each}")
        if not done and not unknown:
            typer.echo("nothing to do: no job is dead")
    if unknown and not as_json:
        fail(f"not {what}, since it is no dead job that this can be done to: {', '.join(unknown)}")
    if unknown:
        raise typer.Exit(Exit.FAILED)


def _shown(job: Any) -> dict[str, Any]:
    shown: dict[str, Any] = job.model_dump(mode="json")
    return shown


def _with_database(work: Callable[[Any], Awaitable[_T]]) -> _T:
    """What `work(session)` returns, after its commit."""
    try:
        url = load(dev=True).database_url  # the database is all that matters here
    except SettingsError as error:
        fail_with(error)
    from bongsu.db.migrate import MigrationsPending, require_migrated
    from bongsu.db.session import Database, DatabaseUnavailable

    async def run() -> _T:
        await require_migrated(url)
        database = Database(url)
        try:
            async with database.transaction() as session:
                return await work(session)
        finally:
            await database.stop()

    try:
        return asyncio.run(run())
    except MigrationsPending as error:
        fail(str(error))
    except DatabaseUnavailable as error:
        fail(f"the database cannot be reached: {without_password(str(error))}", Exit.UNREACHABLE)
