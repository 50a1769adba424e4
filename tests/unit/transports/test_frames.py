"""Frames as an independent implementation reads them."""

from __future__ import annotations

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from bongsu.transports.frames import binary_frame, close_frame, deflated, pong_frame, text_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_a_frame_of_any_size_reads_back(size: int) -> None:
    payload = b"x" * size
    assert read(text_frame(payload)) == Frame(Opcode.TEXT, payload)
    assert read(binary_frame(payload)) == Frame(Opcode.BINARY, payload)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 125, 126, 500, 65536, 200_000])
def test_a_deflated_frame_of_any_size_inflates_to_what_it_was(size: int) -> None:
    payload = bytes(number * number % 251 for number in range(size))
    for frame, opcode in ((text_frame, Opcode.TEXT), (binary_frame, Opcode.BINARY)):
        deflating = deflated(frame, level=1, min_size=100)
        # Twice: the second one must not lean on the first.
        assert [read(deflating(payload), inflater()) for _ in range(2)] == [Frame(opcode, payload)] * 2
        assert bool(deflating(payload)[0] & 0x40) == (size >= 100)
        assert read(deflated(frame, level=9, min_size=0)(payload), inflater()).data == payload


def test_control_frames_read_back() -> None:
    assert read(pong_frame(b"x" * 125)) == Frame(Opcode.PONG, b"x" * 125)
    assert read(close_frame(None)) == Frame(Opcode.CLOSE, b"")
    assert read(close_frame(3008, "slow")) == Frame(Opcode.CLOSE, b"\x0b\xc0slow")


def test_a_reason_is_cut_between_characters_to_what_a_close_frame_holds() -> None:
    frame = read(close_frame(4000, "봉" * 50))
    assert bytes(frame.data)[2:].decode() == "봉" * 41


def inflater() -> PerMessageDeflate:
    return PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=15,
        local_max_window_bits=15,
    )


def read(data: bytes, *extensions: PerMessageDeflate) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=False, max_size=None, extensions=list(extensions))
    with pytest.raises(StopIteration) as done:
        next(parsing)  # asks for more only when the frame is not whole
    assert not reader.buffer
    frame: Frame = done.value.value
    return Frame(frame.opcode, bytes(frame.data), frame.fin)
