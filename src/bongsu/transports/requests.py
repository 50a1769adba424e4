"""The requests of transports without a socket: methods, bodies, and what pages may see of the answers.

Source: the Centrifuge client protocol, §15.1 "Opening".
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import parse_qs

from bongsu.node.admission import headers_of
from bongsu.protocol import problems
from bongsu.protocol.codec import MAX_FRAME_SIZE
from bongsu.protocol.problems import Problem
from bongsu.transports.handshake import Handshakes
from bongsu.transports.sockets import Receive, Scope, Send

BODY_TIMEOUT: Final = 10.0
"""Seconds for a body to arrive: as long as a client may take to send its connect command."""

PREFLIGHT_MAX_AGE: Final = b"300"
"""Seconds a browser may go by what a preflight was answered."""


class ClientGone(Exception):
    """The client left before its request was complete: nobody is there to be answered."""


def check_method(scope: Scope, methods: tuple[str, ...]) -> None:
    """Raises `Problem`."""
    if scope["method"] not in methods:
        detail = f"Only {', '.join(methods)} and OPTIONS are."
        raise Problem(problems.METHOD_NOT_ALLOWED, detail)


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises `ClientGone`, and `Problem` for one that is too large or too slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body") or b""
                if len(body) > MAX_FRAME_SIZE:
                    raise Problem(problems.REQUEST_TOO_LARGE, f"The limit is {MAX_FRAME_SIZE} bytes.")
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_TIMEOUT:g} s."
        raise Problem(problems.BAD_REQUEST, detail) from None


def frame_in_url(scope: Scope) -> bytes | None:
    """The value of `cf_connect` in the query string, None without one."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    values = query.get("cf_connect")
    return None if values is None else values[0].encode()


def is_binary(scope: Scope) -> bool:
    """Whether the body is Protobuf. Anything else is JSON: pages send text/plain, to need no preflight."""
    kind = headers_of(scope).get(b"content-type", b"").partition(b";")[0]
    return kind.strip().lower() == b"application/octet-stream"


def refusal_headers(problem: Problem, methods: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
    """What the answer to a refused request says besides."""
    # The rest of a body that nobody reads must not be taken for the next request.
    headers = [(b"connection", b"close")]
    if problem.kind is problems.METHOD_NOT_ALLOWED:
        headers.append((b"allow", _listed(methods)))
    return headers


async def answer_preflight(
    scope: Scope, send: Send, handshakes: Handshakes, methods: tuple[str, ...]
) -> None:
    """Answer OPTIONS."""
    headers = [
        *handshakes.cross_origin(scope),
        (b"access-control-max-age", PREFLIGHT_MAX_AGE),
        (b"access-control-allow-methods", _listed(methods)),
    ]
    await answer_bare(send, 204, headers)


async def answer_bare(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """An answer without a body."""
    length = [] if status == 204 else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": b""})


def _listed(methods: tuple[str, ...]) -> bytes:
    return ", ".join((*methods, "OPTIONS")).encode()
