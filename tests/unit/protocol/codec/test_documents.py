"""What JSON is let in."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.protocol.codec import documents
from bongsu.protocol.codec.documents import MAX_DEPTH, DocumentError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=20,
)


@given(values, st.sampled_from([None, 0, 3]))
def test_a_document_means_the_same_afterwards_and_is_one_line(value: object, indent: int | None) -> None:
    document = json.dumps(value, indent=indent).encode()
    inside = documents.canonical(b"\r\n" + document + b" \n")
    assert json.loads(inside) == value
    assert not {b"\n"[0], b"\r"[0]} & set(inside)


@pytest.mark.parametrize(
    "document",
    [b'{"a" : [1,  2]}', b'"\\n\\u00e9"', b"1.50e+3", b"null", '"봉수"'.encode(), b'"\\ud83d\\ude00"'],
)
def test_a_document_on_one_line_stays_byte_exact(document: bytes) -> None:
    assert documents.canonical(document) == document


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"01",
        b"nul",
        b"NaN",
        b"'a'",
        b"1 2",
        b'"\x01"',
        b'"\\x"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
    ],
)
def test_what_is_not_json_is_refused(document: bytes) -> None:
    with pytest.raises(DocumentError):
        documents.canonical(document)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded_long_before_the_stack_is(opening: bytes, closing: bytes) -> None:
    documents.canonical(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    with pytest.raises(DocumentError, match="too deep"):
        documents.canonical(opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", ["[" * 999, "\\[" * 999, '"' + "[" * 999, '\\"[' * 300, '\\\\"['])
def test_brackets_in_strings_and_beside_each_other_are_not_depth(text: str) -> None:
    documents.canonical(json.dumps([text, text]).encode())
    documents.canonical(json.dumps([[]] * 999).encode())


def test_a_bracket_after_a_string_that_ends_in_a_backslash_is_depth() -> None:
    document = b'["\\\\",' * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1)
    with pytest.raises(DocumentError, match="too deep"):
        documents.canonical(document)


def test_a_deep_document_that_is_malformed_exhausts_nothing() -> None:
    # expect: the quote hides the brackets from the count of depths, so the parser's own bound must hold
    with pytest.raises(DocumentError):
        documents.canonical(b'"' + b"[" * 60_000)
    with pytest.raises(DocumentError):
        documents.canonical(b"[" * 60_000 + b'"')


@pytest.mark.parametrize(
    ("cut", "mended"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\uDE00 x"', rb'"\ufffd x"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83d\n\\ud83d"', rb'"\ufffd\n\\ud83d"'),
        (rb'{"\ud83d":["\udead"]}', rb'{"\ufffd":["\ufffd"]}'),
    ],
)
def test_half_a_surrogate_pair_becomes_the_replacement_character(cut: bytes, mended: bytes) -> None:
    """`"😀".slice(0, 1)` in a browser: a chat that shortens its messages must not lose its connection."""
    assert documents.canonical(cut) == mended
    payload = documents.decode(msgspec.json.Decoder(_Outer), b'{"inner":null,"data":%b}' % cut).data
    assert bytes(payload) == mended
    assert bytes(documents.decode(msgspec.json.Decoder(_Outer), b'{"data":%b}' % cut).data) == mended


def test_other_broken_escapes_stay_broken() -> None:
    for document in (rb'"\ud83"', rb'"\ud83d\u"', rb'"\ud83d\x"'):
        with pytest.raises(DocumentError):
            documents.canonical(document)


class _Inner(msgspec.Struct, frozen=True):
    n: int = 0
    names: tuple[str, ...] = ()


class _Outer(msgspec.Struct):
    inner: _Inner = _Inner()
    many: list[_Inner] = []
    data: msgspec.Raw = msgspec.Raw()


def test_null_stands_for_the_zero_value_at_any_depth_but_stays_in_payloads() -> None:
    decoder = msgspec.json.Decoder(_Outer)
    wire = b'{"inner":{"n":null,"names":["a"]},"many":[{"n":null},{"n":2}],"data":{"x":null}}'
    outer = documents.decode(decoder, wire)
    assert outer.inner == _Inner(0, ("a",))
    assert outer.many == [_Inner(), _Inner(2)]
    assert bytes(outer.data) == b'{"x":null}'
    assert bytes(documents.decode(decoder, b'{"inner":null,"data":null}').data) == b"null"


@pytest.mark.parametrize("wire", [b"[]", b'{"inner":{"n":"x"}}', b'{"inner":{"names":[null]}}', b"{"])
def test_other_forms_are_refused(wire: bytes) -> None:
    with pytest.raises(DocumentError, match="not of the expected form"):
        documents.decode(msgspec.json.Decoder(_Outer), wire)
