"""`bongsu upload`: files, with their progress, until they are stored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import msgspec
import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

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
    stderr,
)
from bongsu.cli.resumable import NotUploaded, ResumableUpload
from bongsu.cli.unfinished import Unfinished

# The server answers when the last byte is on its disk, so the wait for the answer is the long one.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_FIRST_POLL: Final = 0.1
_LONGEST_POLL: Final = 2.0
_GIVE_UP_AFTER: Final = 60.0
"""Seconds without an answer about an upload's state; a replica should be up again by then."""
_LOST: Final = frozenset({"failed", "expired"})


def upload(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", exists=True, dir_okay=False, readable=True, help="Files to upload."),
    ],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    token: Token = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the file is stored.")] = True,
    as_json: AsJson = False,
) -> None:
    """Upload files, one after the other, and wait until each is stored.

    Run again after Ctrl-C it goes on where it was. Prints a line for each: id, state, size, SHA-256 and
    name; with --json the upload's record.

    [dim]$[/dim] bongsu upload film.mp4 notes.txt

    [dim]$[/dim] bongsu upload backup.tar --json --no-wait
    """
    codes: list[Exit] = []
    unfinished = Unfinished()
    try:
        with httpx.Client(base_url=url, headers=credentials(api_key, token), timeout=_TIMEOUT) as client:
            for file in files:
                try:
                    record = _upload(client, file, unfinished, wait=wait)
                except NotUploaded as error:
                    codes.append(error.code)
                    stderr.print(f"{file}: {one_line(str(error))}", style="red", markup=False)
                else:
                    _print(record, file, as_json=as_json)
    except KeyboardInterrupt:
        stderr.print("Interrupted. The same command goes on where it was.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if codes:
        raise typer.Exit(max(codes))


def _upload(client: httpx.Client, file: Path, unfinished: Unfinished, *, wait: bool) -> dict[str, Any]:
    """One file, with its progress on standard error. Ends the display before anything else is printed."""
    with _progress() as progress:
        bar = _Bar(progress, file)
        try:
            upload_id = ResumableUpload(client, file, bar.at, unfinished).send()
            record = _record(client, upload_id, bar, wait=wait)
        except NotUploaded:
            bar.say("failed")
            raise
        bar.say(str(record.get("state", "received")))
        return record


def _progress() -> Progress:
    # Nothing at all where standard error is no terminal: a log of progress bars helps nobody.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        console=stderr,
        disable=not stderr.is_terminal,
    )


class _Bar:
    """One file's line of the display."""

    def __init__(self, progress: Progress, file: Path) -> None:
        self._progress = progress
        self._task = progress.add_task(one_line(file.name), total=file.stat().st_size, state="")

    def at(self, offset: int) -> None:
        self._progress.update(self._task, completed=offset)

    def say(self, state: str) -> None:
        self._progress.update(self._task, state=one_line(state))


def _record(client: httpx.Client, upload_id: str, bar: _Bar, *, wait: bool) -> dict[str, Any]:
    """The upload's record, `wait`: once it is stored.

    The upload is safe by now: a lost connection is no reason to give up.
    """
    pause, last_answer = _FIRST_POLL, time.monotonic()
    while True:
        try:
            answer = client.get(f"/uploads/{quote(upload_id, safe='')}")
            if answer.status_code == httpx.codes.OK:
                last_answer = time.monotonic()
                record = _decoded(answer)
                state = str(record.get("state", ""))
                if state == "stored" or not wait:
                    return record
                if state in _LOST:
                    raise NotUploaded(f"{state}: {record.get('error') or 'the server does not say why'}")
                bar.say(state)
            elif answer.status_code < 500:
                raise NotUploaded(refusal(answer.status_code, answer.content))
            trouble = refusal(answer.status_code, answer.content)
        except httpx.HTTPError as error:
            trouble = reason(error)
        if time.monotonic() - last_answer > _GIVE_UP_AFTER:
            words = f"uploaded as {upload_id}, but the server does not say whether it is stored: {trouble}"
            raise NotUploaded(words, Exit.UNREACHABLE)
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL)


def _decoded(answer: httpx.Response) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise NotUploaded(
            f"{answer.url.host} answered something else than an upload; is it a Bongsu server?"
        ) from error


def _print(record: dict[str, Any], file: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(record))
        return
    shown = [record.get("id"), record.get("state", "received"), record.get("size"), record.get("sha256")]
    typer.echo("  ".join(one_line(str(value)) for value in [*shown, file] if value is not None))
