"""How each transport carries one message."""

from __future__ import annotations

from typing import Final, NamedTuple

from bongsu.node.variants import Form
from bongsu.transports.frames import binary_frame, deflated, text_frame


def _as_it_is(message: bytes) -> bytes:
    return message


def _line(message: bytes) -> bytes:
    return message + b"\n"


def _event(message: bytes) -> bytes:
    return b"data: %b\n\n" % message


TEXT_FRAME: Final = Form("text frame", text_frame)
BINARY_FRAME: Final = Form("binary frame", binary_frame)
# On a foreign ASGI server: one `websocket.send` a message.
TEXT_MESSAGE: Final = Form("text message", _as_it_is, joinable=False)
BINARY_MESSAGE: Final = Form("binary message", _as_it_is, joinable=False)
# Bodies of streamed responses. Protobuf messages know their length.
LINE: Final = Form("line", _line)
EVENT: Final = Form("event", _event)
DELIMITED: Final = Form("delimited", _as_it_is)


class SocketForms(NamedTuple):
    """The forms of one kind of socket."""

    text: Form
    binary: Form


FRAMES: Final = SocketForms(TEXT_FRAME, BINARY_FRAME)
MESSAGES: Final = SocketForms(TEXT_MESSAGE, BINARY_MESSAGE)


def deflated_frames(*, level: int, min_size: int) -> SocketForms:
    """For raw sockets that agreed on compression: messages of `min_size` bytes or more are deflated."""
    return SocketForms(
        Form("deflated text frame", deflated(text_frame, level=level, min_size=min_size)),
        Form("deflated binary frame", deflated(binary_frame, level=level, min_size=min_size)),
    )
