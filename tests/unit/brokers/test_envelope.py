"""Envelopes between replicas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.brokers import envelope
from bongsu.brokers.envelope import Control, UnknownEnvelope
from bongsu.protocol.messages import Publication


@given(st.binary(), st.booleans())
def test_a_publication_comes_out_as_it_went_in(data: bytes, plain: bool) -> None:
    publication = Publication(data, plain=plain)
    assert envelope.decode(envelope.encode(publication)) == publication


@given(st.binary())
def test_a_control_message_comes_out_as_it_went_in(body: bytes) -> None:
    assert envelope.decode(envelope.encode(Control(body))) == Control(body)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    try:
        message = envelope.decode(payload)
    except UnknownEnvelope:
        return
    assert envelope.encode(message) == payload


@pytest.mark.parametrize(
    "payload", [b"", b"\x01", b"\x02\x01\x00data", b"\x01\x09\x00data", b"\x01\x01\x80data"]
)
def test_another_version_kind_or_flag_is_refused(payload: bytes) -> None:
    with pytest.raises(UnknownEnvelope):
        envelope.decode(payload)
