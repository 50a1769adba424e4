"""What plain clients are shown."""

from __future__ import annotations

from bongsu.protocol.messages import Publication
from bongsu.transports.frames import text_frame
from bongsu.transports.plain import PlainVariant

TEMPLATE = "📢 새로운 알림: {text}"


def test_a_plain_text_goes_through_the_template() -> None:
    variant = PlainVariant(TEMPLATE, framed=False)
    assert variant.render([Publication('"안녕 \\"x\\""'.encode(), plain=True)]) == [
        '📢 새로운 알림: 안녕 "x"'.encode()
    ]


def test_other_publications_are_json_even_when_they_are_strings() -> None:
    variant = PlainVariant(TEMPLATE, framed=False)
    assert variant.render([Publication(b'{"a":1}'), Publication(b'"text"')]) == [b'{"a":1}', b'"text"']


def test_braces_in_a_text_are_not_filled_in_again() -> None:
    variant = PlainVariant(TEMPLATE, framed=False)
    assert variant.render([Publication(b'"{text}{0}"', plain=True)]) == ["📢 새로운 알림: {text}{0}".encode()]


def test_a_framed_batch_is_one_chunk_of_whole_frames() -> None:
    variant = PlainVariant("{text}", framed=True)
    batch = [Publication(b'"one"', plain=True), Publication(b"2")]
    assert variant.render(batch) == [text_frame(b"one") + text_frame(b"2")]
