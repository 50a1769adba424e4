"""Our Protobuf schema beside the one that an official SDK was generated with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import centrifuge.protocol.client_pb2 as sdk
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from bongsu.protocol.codec import protobuf

Field = tuple[int, int, int, str]

# Of the protocol, but not yet known to this SDK.
OURS_ALONE = {"Publication.epoch", "SubscribeRequest.type", "SubRefreshRequest.type", "PublishRequest.type"}


def fields(messages: Sequence[DescriptorProto], above: str = "") -> Iterator[tuple[str, Field]]:
    """Number, type, label and message type of each field, by `Message.field`."""
    for message in messages:
        for one in message.field:
            of = one.type_name.rpartition(".")[2]
            yield f"{above}{message.name}.{one.name}", (one.number, one.type, one.label, of)
        yield from fields(message.nested_type, f"{above}{message.name}.")


def test_each_field_has_the_number_and_the_type_that_it_has_in_the_sdk() -> None:
    compiled = Path(protobuf.__file__).with_name("client.binpb").read_bytes()
    [file] = FileDescriptorSet.FromString(compiled).file
    theirs = FileDescriptorProto()
    sdk.DESCRIPTOR.CopyToProto(theirs)
    known = dict(fields(theirs.message_type))
    # A push `connect` is a message of its own there; it has the fields of the result.
    assert {f"ConnectResult.{name.partition('.')[2]}" for name in known if name.startswith("Connect.")} <= {
        *known
    }
    known["Push.connect"] = (*known["Push.connect"][:3], "ConnectResult")
    ours = {name: field for name, field in fields(file.message_type) if name not in OURS_ALONE}
    assert len(ours) > 100
    assert ours == {name: known.get(name) for name in ours}
