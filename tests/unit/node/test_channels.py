"""Channel names and what plain clients may do on them."""

from __future__ import annotations

import pytest

from bongsu.node.channels import BadChannelName, ChannelOptions, Channels, UnknownNamespace
from bongsu.protocol.messages import Principal

ANONYMOUS, USER, TRUSTED = Principal(), Principal(user="42"), Principal(trusted=True)

CHANNELS = Channels(
    ChannelOptions(),
    {
        "open": ChannelOptions(allow_subscribe_for_client=True, allow_publish_for_client=True),
        "wide": ChannelOptions(
            allow_subscribe_for_client=True,
            allow_subscribe_for_anonymous=True,
            allow_publish_for_subscriber=True,
            allow_publish_for_anonymous=True,
        ),
        "odd": ChannelOptions(allow_subscribe_for_anonymous=True, allow_publish_for_anonymous=True),
    },
)


@pytest.mark.parametrize("name", ["a", "news", "ns:a:b", "dialog#42,43", "$private", "a b", "x" * 255])
def test_printable_ascii_is_a_name(name: str) -> None:
    CHANNELS.check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 256, "채널", "a\nb", "\x00control", "a\x7f"])
def test_anything_else_is_not(name: str) -> None:
    with pytest.raises(BadChannelName):
        CHANNELS.check_name(name)


@pytest.mark.parametrize("name", ["other:x", "$other:x", ":x"])
def test_a_namespace_that_is_not_configured_is_unknown(name: str) -> None:
    with pytest.raises(UnknownNamespace):
        CHANNELS.options(name)


# channel, who: may subscribe, may publish
TABLE = [
    ("broadcast", ANONYMOUS, True, True),
    ("broadcast", USER, True, True),
    ("news", ANONYMOUS, False, False),
    ("news", USER, False, False),
    ("news", TRUSTED, True, True),
    ("open:x", ANONYMOUS, False, False),
    ("open:x", USER, True, True),
    ("$open:x", USER, False, True),
    ("wide:x", ANONYMOUS, True, True),
    ("wide:x", USER, True, True),
    ("odd:x", ANONYMOUS, False, False),
    ("odd:x", USER, False, False),
    ("uploads:feed", ANONYMOUS, True, False),
    ("uploads:feed", USER, True, False),
    ("uploads:feed", TRUSTED, True, False),
]


@pytest.mark.parametrize(("channel", "who", "subscribe", "publish"), TABLE)
def test_permissions(channel: str, who: Principal, subscribe: bool, publish: bool) -> None:
    assert CHANNELS.may_subscribe(channel, who) is subscribe
    assert CHANNELS.may_publish(channel, who) is publish


def test_development_opens_every_channel_but_the_built_in_read_only_ones() -> None:
    channels = Channels(ChannelOptions(), {}, open_to_all=True)
    assert channels.may_subscribe("news", ANONYMOUS)
    assert channels.may_publish("news", ANONYMOUS)
    assert not channels.may_publish("uploads:feed", ANONYMOUS)
    with pytest.raises(UnknownNamespace):
        channels.may_subscribe("unknown:x", ANONYMOUS)
