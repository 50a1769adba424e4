"""What plain clients are shown."""

from __future__ import annotations

from bongsu.protocol.messages import Publication
from bongsu.transports.forms import TEXT_FRAME, TEXT_MESSAGE
from bongsu.transports.frames import text_frame
from bongsu.transports.plain import PlainVariant


def render(variant: PlainVariant, publications: list[Publication]) -> list[bytes]:
    return variant.render("news", publications, None)


TEMPLATE = "📢 새로운 알림: {text}"


def test_a_plain_text_goes_through_the_template() -> None:
    variant = PlainVariant.of(TEMPLATE, TEXT_MESSAGE)
    assert render(variant, [Publication('"안녕 \\"x\\""'.encode(), plain=True)]) == [
        '📢 새로운 알림: 안녕 "x"'.encode()
    ]


def test_other_publications_are_json_even_when_they_are_strings() -> None:
    variant = PlainVariant.of(TEMPLATE, TEXT_MESSAGE)
    assert render(variant, [Publication(b'{"a":1}'), Publication(b'"text"')]) == [b'{"a":1}', b'"text"']


def test_braces_in_a_text_are_not_filled_in_again() -> None:
    variant = PlainVariant.of(TEMPLATE, TEXT_MESSAGE)
    assert render(variant, [Publication(b'"{text}{0}"', plain=True)]) == [
        "📢 새로운 알림: {text}{0}".encode()
    ]


def test_a_framed_batch_is_one_chunk_of_whole_frames() -> None:
    variant = PlainVariant.of("{text}", TEXT_FRAME)
    batch = [Publication(b'"one"', plain=True), Publication(b"2")]
    assert render(variant, batch) == [text_frame(b"one") + text_frame(b"2")]
