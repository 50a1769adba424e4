"""`bongsu upload`: files, with their progress, until they are stored."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
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

# The server answers when the last byte is on its disk, so the wait for the answer is the long one.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_FIRST_POLL: Final = 0.1
_LONGEST_POLL: Final = 2.0
_GIVE_UP_AFTER: Final = 60.0
"""Seconds without an answer about an upload's state; a replica should be up again by then."""
_LOST: Final = frozenset({"failed", "expired"})


class _NotUploaded(Exception):
    """Why one file was not uploaded or not stored, and the exit code that goes with it."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


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

    Prints a line for each: id, state, size, SHA-256 and name; with --json the upload's record.

    [dim]$[/dim] bongsu upload film.mp4 notes.txt

    [dim]$[/dim] bongsu upload backup.tar --json --no-wait
    """
    codes: list[Exit] = []
    with httpx.Client(base_url=url, headers=credentials(api_key, token), timeout=_TIMEOUT) as client:
        for file in files:
            try:
                record = _upload(client, file, wait=wait)
            except _NotUploaded as error:
                codes.append(error.code)
                stderr.print(f"{file}: {one_line(str(error))}", style="red", markup=False)
            else:
                _print(record, file, as_json=as_json)
    if codes:
        raise typer.Exit(max(codes))


def _upload(client: httpx.Client, file: Path, *, wait: bool) -> dict[str, Any]:
    """One file, with its progress on standard error. Ends the display before anything else is printed."""
    with _progress() as progress:
        bar = _Bar(progress, file)
        try:
            record = _send(client, file, bar)
            if wait:
                record = _await_stored(client, record, bar)
        except _NotUploaded:
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

    def advance(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def say(self, state: str) -> None:
        self._progress.update(self._task, state=one_line(state))


class _Watched(io.FileIO):
    """A file that tells how much of it was read; httpx reads it piece by piece, so memory stays flat."""

    def __init__(self, file: Path, read: Callable[[int], None]) -> None:
        super().__init__(file)
        self._told = read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._told(len(data))
        return data


def _send(client: httpx.Client, file: Path, bar: _Bar) -> dict[str, Any]:
    """The upload's record as far as the server knows it when the last byte has arrived."""
    try:
        with _Watched(file, bar.advance) as content:
            answer = client.post("/uploads", files={"file": (file.name, content)})
    except httpx.HTTPError as error:
        words = f"cannot upload to {client.base_url}: {reason(error)}"
        raise _NotUploaded(words, Exit.UNREACHABLE) from error
    except OSError as error:
        raise _NotUploaded(f"cannot be read: {error.strerror}") from error
    if answer.status_code != httpx.codes.ACCEPTED:
        raise _NotUploaded(refusal(answer.status_code, answer.content))
    return _record(answer)


def _await_stored(client: httpx.Client, record: dict[str, Any], bar: _Bar) -> dict[str, Any]:
    """The record once it is stored. The upload is safe by now: a lost connection is no reason to give up."""
    path = f"/uploads/{quote(str(record['id']), safe='')}"
    pause, last_answer = _FIRST_POLL, time.monotonic()
    while True:
        try:
            answer = client.get(path)
            if answer.status_code == httpx.codes.OK:
                last_answer = time.monotonic()
                record = _record(answer)
            elif answer.status_code < 500:
                raise _NotUploaded(refusal(answer.status_code, answer.content))
            trouble = refusal(answer.status_code, answer.content)
        except httpx.HTTPError as error:
            trouble = reason(error)
        state = str(record.get("state", ""))
        if state == "stored":
            return record
        if state in _LOST:
            raise _NotUploaded(f"{state}: {record.get('error') or 'the server does not say why'}")
        if time.monotonic() - last_answer > _GIVE_UP_AFTER:
            words = f"uploaded as {record['id']}, but the server does not say whether it is stored: {trouble}"
            raise _NotUploaded(words, Exit.UNREACHABLE)
        bar.say(state)
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL)


def _record(answer: httpx.Response) -> dict[str, Any]:
    try:
        record = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        record = {}
    if "id" not in record:
        raise _NotUploaded(
            f"{answer.url.host} answered something else than an upload; is it a Bongsu server?"
        )
    return record


def _print(record: dict[str, Any], file: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(record))
        return
    shown = [record.get("id"), record.get("state", "received"), record.get("size"), record.get("sha256")]
    typer.echo("  ".join(one_line(str(value)) for value in [*shown, file] if value is not None))
