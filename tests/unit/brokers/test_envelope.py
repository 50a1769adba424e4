"""Envelopes between replicas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bongsu.brokers import envelope
from bongsu.brokers.envelope import Control, UnknownEnvelope
from bongsu.protocol.messages import ClientInfo, Join, Leave, Publication

_INFOS = st.builds(ClientInfo, st.text(), st.text(), st.binary(), st.binary())
_POSITIONS = st.just((0, "")) | st.tuples(
    st.integers(1, 2**64 - 1), st.text("abcXYZ", min_size=8, max_size=8)
)
_PUBLICATIONS = st.builds(
    lambda data, plain, binary, patchable, info, tags, time, position: Publication(
        data,
        plain=plain,
        binary=binary,
        patchable=patchable,
        info=info,
        tags=tags,
        time=time,
        offset=position[0],
        epoch=position[1],
    ),
    st.binary(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.none() | _INFOS,
    st.none() | st.dictionaries(st.text(), st.text()),
    st.integers(0, 2**63 - 1),
    _POSITIONS,
)
_POSITIONED_HEAD = b"\x01\x01\x04"
_EXTRAS_HEAD = b"\x01\x01\x08"


@given(_PUBLICATIONS)
def test_a_publication_comes_out_as_it_went_in(publication: Publication) -> None:
    assert envelope.decode(envelope.encode(publication)) == publication


@given(_PUBLICATIONS.filter(lambda publication: publication.offset > 0))
def test_a_position_put_between_the_halves_makes_the_positioned_envelope(publication: Publication) -> None:
    head, body = envelope.halves(publication)
    position = publication.offset.to_bytes(8, "big") + publication.epoch.encode()
    assert head + position + body == envelope.encode(publication)


@pytest.mark.parametrize("kind", [Join, Leave])
@given(info=_INFOS)
def test_a_join_or_leave_comes_out_as_it_went_in(kind: type[Join | Leave], info: ClientInfo) -> None:
    assert envelope.decode(envelope.encode(kind(info))) == kind(info)


@given(st.binary())
def test_a_control_message_comes_out_as_it_went_in(body: bytes) -> None:
    assert envelope.decode(envelope.encode(Control(body))) == Control(body)


@given(st.builds(lambda head, rest: bytes(head) + rest, st.tuples(*[st.integers(0, 40)] * 3), st.binary()))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    try:
        message = envelope.decode(payload)
    except UnknownEnvelope:
        return
    if not (isinstance(message, Publication) and message.offset and len(message.epoch) != 8):
        assert envelope.decode(envelope.encode(message)) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01",
        b"\x02\x01\x00data",
        b"\x01\x09\x00data",
        b"\x01\x01\x80data",
        b"\x01\x01\x20data",
        b"\x01\x02\x01data",
    ],
)
def test_another_version_kind_or_flag_is_refused(payload: bytes) -> None:
    with pytest.raises(UnknownEnvelope):
        envelope.decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        _POSITIONED_HEAD + bytes(15),
        _POSITIONED_HEAD + bytes(8) + b"abcdefgh",
        _POSITIONED_HEAD + b"\0\0\0\0\0\0\0\x01" + b"\xff" * 8,
        _EXTRAS_HEAD + b"\0\0",
        _EXTRAS_HEAD + b"\0\0\0\xff" + b"\x93\xc0\xc0\x00",
        _EXTRAS_HEAD + b"\0\0\0\x01" + b"\xc1" + b"data",
        _EXTRAS_HEAD + b"\0\0\0\x04" + b"\x93\x01\xc0\x00" + b"data",
        b"\x01\x03\x00",
        b"\x01\x04\x00\x93\xa0\xa0\xa0",
    ],
    ids=[
        "position cut short",
        "offset zero",
        "epoch not ASCII",
        "length cut short",
        "extras cut short",
        "extras not MessagePack",
        "extras of other types",
        "join without info",
        "leave with half an info",
    ],
)
def test_a_damaged_envelope_is_refused(payload: bytes) -> None:
    with pytest.raises(UnknownEnvelope):
        envelope.decode(payload)


@pytest.mark.parametrize("epoch", ["", "short", "much too long"])
def test_an_offset_without_a_whole_epoch_cannot_be_sent(epoch: str) -> None:
    """It would be padded or cut, and every subscriber would think that the stream began anew."""
    with pytest.raises(ValueError, match="epoch"):
        envelope.encode(Publication(b"1", offset=1, epoch=epoch))
