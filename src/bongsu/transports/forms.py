"""How each transport carries one message."""

from __future__ import annotations

from typing import Final

from bongsu.node.variants import Form
from bongsu.transports.frames import binary_frame, text_frame


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
