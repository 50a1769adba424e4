"""Files sent from memory, one block again and again: the client does nothing but give bytes to the kernel."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from bench.generator import LoadError

__all__ = ["TUS", "Way", "bongsu_ways", "put"]

_BLOCK: Final = memoryview(os.urandom(2**20))  # random: in a form, every 256th byte could begin a boundary
_LOOK_EVERY: Final = 0.2  # seconds; to be asked is work, too
_BOUNDARY: Final = "the-boundary-of-the-benchmark"
_HEAD: Final = (
    f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="bench"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode()
_TAIL: Final = f"\r\n--{_BOUNDARY}--\r\n".encode()
_TUS: Final = {"Tus-Resumable": "1.0.0"}


@dataclass(frozen=True)
class Way:
    """How a file is sent. Both raise `LoadError` when the server does anything else than take it."""

    name: str
    send: Callable[[int, int], str]
    """`send(port, size)` returns when the server has answered: what is asked for to see it stored."""
    await_stored: Callable[[int, str], None] = lambda port, location: None
    """Returns when there is nothing left to do for what `send` sent. At once, where the answer says that."""


def put(path: str) -> Callable[[int, int], str]:
    """A `PUT` with the file as its body."""

    def send(port: int, size: int) -> str:
        headers = {"Content-Type": "application/octet-stream"}
        return _request(port, "PUT", path, headers, size, _blocks(size)).get("location", "")

    return send


def _send_tus(port: int, size: int) -> str:
    made = _request(port, "POST", "/files/", _TUS | {"Upload-Length": str(size)})
    path = urlsplit(made["location"]).path
    headers = _TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    said = _request(port, "PATCH", path, headers, size, _blocks(size))
    if said.get("upload-offset") != str(size):
        raise LoadError(f"after {size} bytes the offset is {said.get('upload-offset')}")
    return path


def _send_form(port: int, size: int) -> str:
    def body() -> Iterator[bytes | memoryview]:
        yield _HEAD
        yield from _blocks(size)
        yield _TAIL

    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    length = len(_HEAD) + size + len(_TAIL)
    return _request(port, "POST", "/uploads", headers, length, body())["location"]


def _await_stored(port: int, location: str) -> None:
    upload = f"/uploads/{location.rpartition('/')[2]}"

    def is_stored() -> bool:
        state = _get(port, upload)["state"]
        if state == "failed":
            raise LoadError("the upload failed after it was received")
        return bool(state == "stored")

    deadline = time.monotonic() + 600
    while not is_stored():
        if time.monotonic() > deadline:
            raise LoadError("the upload was not stored within 600 s")
        time.sleep(_LOOK_EVERY)


TUS: Final = Way("tus `PATCH`", _send_tus)


def bongsu_ways() -> tuple[Way, ...]:
    """Bongsu answers when the file is safe; a job hashes it, puts it in its place and logs it."""
    return (
        Way("`PUT`", put("/uploads?filename=bench"), _await_stored),
        Way(TUS.name, _send_tus, _await_stored),
        Way("multipart form", _send_form, _await_stored),
    )


def _blocks(size: int) -> Iterator[memoryview]:
    for start in range(0, size, len(_BLOCK)):
        yield _BLOCK[: size - start]


def _request(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str],
    length: int = 0,
    body: Iterator[bytes | memoryview] | None = None,
) -> dict[str, str]:
    """The headers of the answer, their names in lower case."""
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, body, {**headers, "Content-Length": str(length)})
        response = connection.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        raise LoadError(f"{method} {path} broke off: {error}") from error
    finally:
        connection.close()
    if response.status // 100 != 2:
        raise LoadError(f"{method} {path} was answered {response.status}: {text[:200]!r}")
    return {name.lower(): value for name, value in response.getheaders()}


def _get(port: int, path: str) -> dict[str, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()
