"""One file sent with tus: from where an earlier run, or a broken connection, left off.

Source: tus resumable upload protocol 1.0.0, core and creation.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, NoReturn
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from bongsu.cli.console import Exit, reason, refusal
from bongsu.cli.unfinished import Unfinished, fingerprint

__all__ = ["NotUploaded", "ResumableUpload"]

_PIECE: Final = 256 * 1024
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
_GIVE_UP_AFTER: Final = 60.0
"""Seconds without progress; a replica should be up again by then."""

_VERSION: Final = {"Tus-Resumable": "1.0.0"}
_OK: Final = frozenset({200, 204})
# An upload that is gone, or not this user's: the one of an earlier run is then made anew.
_LOST: Final = frozenset({403, 404, 410})
# Answers after which the same bytes may well be taken: out of step, too slow, too much at once.
_PASSING: Final = frozenset({408, 409, 423, 429})


class NotUploaded(Exception):
    """Why one file was not uploaded or not stored, and the exit code that goes with it."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


class _Gone(NotUploaded):
    """There is no such upload, or not for us."""


class _Interrupted(Exception):
    """The server did not take the bytes this time; it may be asked where to go on."""


class ResumableUpload:
    """Sends `file` and tells `at(offset)` how many bytes of it the server has, as far as is known.

    The bytes go in one request as long as nothing breaks. What the server has is asked for before anything
    is sent again.
    """

    def __init__(
        self, client: httpx.Client, file: Path, at: Callable[[int], None], unfinished: Unfinished
    ) -> None:
        self._client = client
        self._file = file
        self._at = at
        self._unfinished = unfinished

    def send(self) -> str:
        """The upload's id, once the server has every byte. Raises `NotUploaded`."""
        try:
            with self._file.open("rb") as content:
                return self._send(content, self._file.stat().st_size)
        except OSError as error:
            raise NotUploaded(f"cannot be read: {error.strerror}") from error

    def _send(self, content: IO[bytes], size: int) -> str:
        key = fingerprint(str(self._client.base_url), self._file)
        path, offset = self._resumed(key, size) or (self._created(key, size), 0)
        pause, progressed = _FIRST_PAUSE, time.monotonic()
        trouble: Exception | None = None
        while offset < size:
            before = offset
            try:
                if trouble is not None:
                    offset = self._offset(path, size)
                self._at(offset)
                offset = self._append(path, content, offset, size)
                trouble = None
            except _Interrupted as error:
                trouble = error
            if offset > before:
                pause, progressed = _FIRST_PAUSE, time.monotonic()
            elif time.monotonic() - progressed > _GIVE_UP_AFTER:
                raise NotUploaded(f"{trouble}; run this again to go on", Exit.UNREACHABLE) from trouble
            if trouble is not None or offset == before:
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._at(size)
        self._unfinished.forget(key)
        return path.rstrip("/").rpartition("/")[2]

    def _resumed(self, key: str, size: int) -> tuple[str, int] | None:
        """Path and offset of what an earlier run began; None to begin anew."""
        path = self._unfinished.find(key)
        if path is None:
            return None
        try:
            return path, self._offset(path, size)
        except _Interrupted as error:
            raise NotUploaded(
                f"cannot go on at {self._client.base_url}: {error}", Exit.UNREACHABLE
            ) from error
        except _Gone:
            self._unfinished.forget(key)
            return None

    def _created(self, key: str, size: int) -> str:
        """Path of a new upload, tried for as long as the bytes would be. Raises `NotUploaded`."""
        once = uuid4().hex  # the answer to an earlier try may have been lost
        pause, began = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                return self._create(key, size, once)
            except _Interrupted as error:
                if time.monotonic() - began > _GIVE_UP_AFTER:
                    raise NotUploaded(str(error), Exit.UNREACHABLE) from error
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _create(self, key: str, size: int, once: str) -> str:
        name = base64.b64encode(self._file.name.encode("utf-8", "replace")).decode()
        headers = {
            "Upload-Length": str(size),
            "Upload-Metadata": f"filename {name}",
            "Idempotency-Key": once,
        }
        try:
            answer = self._client.post("/files/", headers={**_VERSION, **headers})
        except httpx.HTTPError as error:
            words = f"cannot upload to {self._client.base_url}: {reason(error)}"
            raise NotUploaded(words, Exit.UNREACHABLE) from error
        if answer.status_code != httpx.codes.CREATED:
            _raise_refusal(answer)
        location = answer.headers.get("location", "")
        target = httpx.URL(str(answer.url)).join(location)
        # The file and the credentials go where the user said, and nowhere else.
        if not location or (target.scheme, target.netloc) != (answer.url.scheme, answer.url.netloc):
            raise NotUploaded(
                f"{answer.url.host} answered something else than an upload; is it a Bongsu server?"
            )
        path = urlsplit(str(target)).path
        self._unfinished.keep(key, path)
        return path

    def _offset(self, path: str, size: int) -> int:
        """How many bytes the server has. Raises `_Interrupted`, and `NotUploaded` when it is gone."""
        try:
            answer = self._client.head(self._absolute(path), headers=_VERSION)
        except httpx.HTTPError as error:
            raise _Interrupted(reason(error)) from error
        if answer.status_code not in _OK:
            _raise_refusal(answer)
        return _said_offset(answer, size)

    def _append(self, path: str, content: IO[bytes], offset: int, size: int) -> int:
        headers = {
            **_VERSION,
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(size - offset),
        }
        pieces = self._pieces(content, offset, size)
        try:
            answer = self._client.patch(self._absolute(path), headers=headers, content=pieces)
        except httpx.HTTPError as error:
            raise _Interrupted(reason(error)) from error
        if answer.status_code not in _OK:
            _raise_refusal(answer)
        return _said_offset(answer, size)

    def _pieces(self, content: IO[bytes], offset: int, size: int) -> Iterator[bytes]:
        content.seek(offset)
        while offset < size:
            piece = content.read(min(_PIECE, size - offset))
            if not piece:
                raise NotUploaded("it became shorter while it was sent")
            yield piece
            offset += len(piece)
            self._at(offset)

    def _absolute(self, path: str) -> httpx.URL:
        # Not relative to the base: a server mounted below a prefix has it in the path already.
        return self._client.base_url.copy_with(path=path)


def _said_offset(answer: httpx.Response, size: int) -> int:
    said = answer.headers.get("upload-offset", "")
    if not said.isdecimal() or not 0 <= int(said[:20]) <= size:
        raise NotUploaded("the server says no usable Upload-Offset")
    return int(said)


def _raise_refusal(answer: httpx.Response) -> NoReturn:
    words = refusal(answer.status_code, answer.content)
    if answer.status_code >= 500 or answer.status_code in _PASSING:
        raise _Interrupted(words)
    raise (_Gone if answer.status_code in _LOST else NotUploaded)(words)
