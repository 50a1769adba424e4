"""Answers that reach a client which is still sending, whoever gives them: `app` wraps every request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

__all__ = ["lingering"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_LINGER_TIME: Final = 5.0  # seconds
_LINGER_BYTES: Final = 64 * 1024 * 1024


def lingering(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """`receive` and `send` of one request whose answer may come before its body has been read.

    Such an answer is sent whole at once; then what the client still sends is read and thrown away, within
    bounds, and only then the response ends. If the connection were closed at once, the kernel would answer
    the bytes on their way with a reset, and the client would see that in place of the answer (nginx: a 502).
    """
    ended = False

    async def reading() -> Message:
        nonlocal ended
        message = await receive()
        ended = not message.get("more_body", False)  # a client that is gone sends nothing more either
        return message

    async def discard() -> None:
        thrown_away = 0
        try:
            async with asyncio.timeout(_LINGER_TIME):
                while not ended and thrown_away <= _LINGER_BYTES:
                    thrown_away += len((await reading()).get("body", b""))
        except TimeoutError:
            return

    async def answering(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if ended or not is_last:
            await send(message)
            return
        # With its length declared the client has the whole answer now; for the server it goes on.
        await send({**message, "more_body": True})
        await discard()
        await send({"type": "http.response.body", "body": b""})

    return reading, answering
