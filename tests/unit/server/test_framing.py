"""Frames of a client: whole messages out of any cut of the bytes, and each broken rule with its code."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from bongsu.server.framing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_CODE,
    PING,
    PONG,
    TEXT,
    BrokenFrame,
    FrameReader,
    Message,
    close_code,
)

FIN = 0x80
RSV1 = 0x40


def frame(opcode: int, payload: bytes = b"", *, first: int = FIN, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    size = len(payload)
    body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    if size < 126:
        head = bytes((first | opcode, 0x80 | size))
    elif size < 65536:
        head = struct.pack("!BBH", first | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first | opcode, 0x80 | 127, size)
    return head + mask + body


def read(data: bytes, *, max_size: int = 100_000, inflates: bool = False, step: int = 0) -> list[Message]:
    """All messages of `data`, fed in pieces of `step` bytes."""
    reader = FrameReader(max_size, inflates=inflates)
    found = []
    for start in range(0, len(data), step or len(data)):
        reader.feed(data[start : start + (step or len(data))])
        while (message := reader.read()) is not None:
            found.append(message)
    return found


def broken(data: bytes, *, max_size: int = 1000, inflates: bool = False) -> int:
    with pytest.raises(BrokenFrame) as refused:
        read(data, max_size=max_size, inflates=inflates)
    return refused.value.code


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_messages_of_each_kind_of_length_are_read(size: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    assert read(frame(BINARY, payload)) == [Message(BINARY, payload)]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_the_cut_of_the_bytes_does_not_matter(step: int) -> None:
    data = (
        frame(TEXT, b"one")
        + frame(TEXT, b"tw", first=0)
        + frame(PING, b"in between")
        + frame(CONTINUATION, b"", first=0)
        + frame(CONTINUATION, b"o")
        + frame(BINARY, b"x" * 70_000)
        + frame(PONG)
        + frame(CLOSE, b"\x03\xe8bye")
    )
    assert read(data, step=step) == [
        Message(TEXT, b"one"),
        Message(PING, b"in between"),
        Message(TEXT, b"two"),
        Message(BINARY, b"x" * 70_000),
        Message(PONG, b""),
        Message(CLOSE, b"\x03\xe8bye"),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((FIN | TEXT, 3)) + b"abc", 1002),
        (frame(3), 1002),
        (frame(11), 1002),
        (frame(TEXT, b"x", first=FIN | RSV1), 1002),
        (frame(TEXT, b"x", first=FIN | 0x20), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", first=0), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(TEXT, b"x", first=0) + frame(TEXT, b"y"), 1002),
        (frame(TEXT, b"x" * 1001), 1009),
        (bytes((FIN | TEXT, 0xFF)) + b"\xff" * 8 + b"mask", 1009),
        (frame(TEXT, b"x" * 600, first=0) + frame(CONTINUATION, b"x" * 600), 1009),
        (frame(TEXT, b"x", first=0) + frame(CONTINUATION, first=0) * 1024, 1008),
    ],
)
def test_each_broken_rule_has_its_code(data: bytes, code: int) -> None:
    assert broken(data) == code


def test_a_message_at_the_limit_passes_and_a_control_frame_does_not_count_towards_it() -> None:
    data = frame(TEXT, b"x" * 600, first=0) + frame(PING, b"x" * 125) + frame(CONTINUATION, b"x" * 400)
    assert read(data, max_size=1000)[1] == Message(TEXT, b"x" * 1000)


def test_a_head_that_promises_too_much_is_refused_before_its_bytes_come() -> None:
    assert broken(bytes((FIN | TEXT, 0xFE)) + struct.pack("!H", 1001)) == 1009


def test_deflated_messages_are_inflated_also_in_fragments() -> None:
    payload = b"hello " * 100
    small = deflated(payload)
    data = frame(TEXT, small, first=FIN | RSV1) + frame(BINARY, small[:5], first=RSV1)
    data += frame(CONTINUATION, small[5:]) + frame(TEXT, b"as it is")
    assert read(data, inflates=True) == [
        Message(TEXT, payload),
        Message(BINARY, payload),
        Message(TEXT, b"as it is"),
    ]


def test_what_inflates_to_more_than_the_limit_is_refused() -> None:
    bomb = deflated(b"\0" * 10_000_000)
    assert broken(frame(BINARY, bomb, first=FIN | RSV1), max_size=20_000, inflates=True) == 1009
    assert read(frame(BINARY, deflated(b"\0" * 1000), first=FIN | RSV1), max_size=1000, inflates=True)


def test_noise_that_claims_to_be_deflated_is_refused() -> None:
    assert broken(frame(BINARY, b"\xff" * 20, first=FIN | RSV1), inflates=True) == 1002


def test_continuations_and_control_frames_are_never_marked_as_deflated() -> None:
    assert broken(frame(PING, first=FIN | RSV1), inflates=True) == 1002
    data = frame(TEXT, b"x", first=0) + frame(CONTINUATION, b"x", first=FIN | RSV1)
    assert broken(data, inflates=True) == 1002


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"", NO_CODE), (b"\x03\xe8", 1000), (b"\x0f\xa0why", 4000), (b"\x03\xf0", 1008)],
)
def test_a_close_frame_says_its_code(payload: bytes, code: int) -> None:
    assert close_code(payload) == code


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", 1002), (b"\x03\xec", 1002), (b"\x03\xed", 1002), (b"\x00\x01", 1002), (b"\x03\xe8\xff", 1007)],
)
def test_a_close_frame_that_breaks_a_rule_is_refused(payload: bytes, code: int) -> None:
    with pytest.raises(BrokenFrame) as refused:
        close_code(payload)
    assert refused.value.code == code


def test_a_deflated_message_that_is_cut_off_or_goes_on_behind_its_end_is_refused() -> None:
    text = bytes(random.Random(3).choices(b"bongsu ", k=400))
    whole = deflated(text)
    for size in range(len(whole)):
        assert broken(frame(TEXT, whole[:size], first=FIN | RSV1), inflates=True) == 1002
    ended = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    final = ended.compress(text) + ended.flush()
    assert broken(frame(TEXT, final + b"junk", first=FIN | RSV1), inflates=True) == 1002
    assert broken(frame(TEXT, final[:-5], first=FIN | RSV1), inflates=True) == 1002
    [message] = read(frame(TEXT, final + b"\x00", first=FIN | RSV1), inflates=True)  # RFC 7692 §7.2.3.5
    assert message.payload == text
    [hello] = read(frame(TEXT, bytes.fromhex("f348cdc9c9070000"), first=FIN | RSV1), inflates=True)
    assert hello.payload == b"Hello"


@pytest.mark.parametrize("inflates", [False, True])
def test_noise_is_read_or_refused_and_nothing_else(inflates: bool) -> None:
    seeded = random.Random(7)
    good = frame(TEXT, b"x" * 10) + frame(PING, b"y") + frame(BINARY, deflated(b"z" * 50), first=FIN | RSV1)
    codes = set()
    for _ in range(3000):
        data = bytearray(good * 2)
        for _ in range(seeded.randint(1, 6)):
            data[seeded.randrange(len(data))] = seeded.randrange(256)
        try:
            messages = read(bytes(data), max_size=200, inflates=inflates, step=seeded.randint(1, 40))
        except BrokenFrame as refused:
            codes.add(refused.code)
        else:
            assert all(len(message.payload) <= 200 for message in messages)
    assert 1002 in codes
    assert codes <= {1002, 1008, 1009}
