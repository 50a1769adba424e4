"""Channel names, and the options that hold for them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bongsu.node.channels import (
    BadChannelName,
    ChannelError,
    ChannelOptions,
    Channels,
    NameOptions,
    UnknownNamespace,
    uploads_options,
)
from bongsu.protocol.errors import ERROR_BAD_REQUEST, ERROR_UNKNOWN_CHANNEL

WITHOUT = ChannelOptions(presence=True)
NEWS = ChannelOptions(join_leave=True)
CHANNELS = Channels(
    WITHOUT,
    {
        "news": NEWS,
        "dialog": ChannelOptions(allow_user_limited_channels=True),
        "korean": ChannelOptions(channel_regex="^[가-힣]+[0-9]*$"),
        "part": ChannelOptions(channel_regex="[0-9]{3}"),
        "pic": ChannelOptions(publication_data_format="binary"),
    },
)


# Names


@pytest.mark.parametrize(
    "name", ["a", "news", "news:a:b", "news:", "dialog#42,43", "$private", "$news:x", "a b", "x" * 255]
)
def test_printable_ascii_is_a_name(name: str) -> None:
    assert CHANNELS.rules(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 256, "채널", "a\nb", "\x00control", "a\x7f", "news:é"])
def test_anything_else_is_not(name: str) -> None:
    with pytest.raises(BadChannelName):
        CHANNELS.rules(name)


def test_the_length_of_a_name_is_that_of_its_utf8() -> None:
    channels = Channels(ChannelOptions(channel_regex="."), {}, NameOptions(max_length=9))
    assert channels.rules("가나다").name == "가나다"
    with pytest.raises(BadChannelName, match="longer than 9 bytes"):
        channels.rules("가나다a")


@pytest.mark.parametrize("name", ["other:x", "$other:x", ":x", "News:x", "other:채널", "news#1:x"])
def test_a_namespace_that_is_not_configured_is_unknown(name: str) -> None:
    with pytest.raises(UnknownNamespace):
        CHANNELS.rules(name)


def test_a_name_that_is_too_long_is_bad_before_its_namespace_is_unknown() -> None:
    with pytest.raises(BadChannelName):
        CHANNELS.rules("other:" + "x" * 255)


def test_the_errors_know_what_to_reply() -> None:
    for name, error in (("other:x", ERROR_UNKNOWN_CHANNEL), ("", ERROR_BAD_REQUEST)):
        with pytest.raises(ChannelError) as caught:
            CHANNELS.rules(name)
        assert caught.value.error is error


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("korean:채널7", True),
        ("korean:channel", False),
        ("korean:", False),
        ("korean:채널:7", False),
        ("$korean:채널", True),
        ("part:x123y", True),  # it is looked for, not matched as a whole
        ("part:12", False),
        ("part:채널123", True),
        ("part:123\n", False),
        ("part:123\x85", False),
    ],
)
def test_a_regular_expression_takes_the_place_of_ascii_in_the_part_after_the_namespace(
    name: str, good: bool
) -> None:
    if good:
        assert CHANNELS.rules(name).name == name
    else:
        with pytest.raises(BadChannelName):
            CHANNELS.rules(name)


def test_a_name_without_a_namespace_is_matched_behind_the_private_prefix() -> None:
    channels = Channels(ChannelOptions(channel_regex="^[a-z]+$"), {})
    assert channels.rules("$secret").private
    with pytest.raises(BadChannelName):
        channels.rules("Secret")


# What a name says


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x", WITHOUT),
        ("$x", WITHOUT),
        ("news:x", NEWS),
        ("news:a:b", NEWS),
        ("$news:x", NEWS),
        ("news", WITHOUT),
    ],
)
def test_options_are_those_of_the_part_before_the_first_boundary(name: str, options: ChannelOptions) -> None:
    assert CHANNELS.options(name) is options


@pytest.mark.parametrize(
    ("name", "private"), [("x", False), ("$x", True), ("$news:x", True), ("news:$x", False), ("x$", False)]
)
def test_a_channel_is_private_by_its_prefix(name: str, private: bool) -> None:
    assert CHANNELS.rules(name).private is private


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("dialog:x", None),
        ("dialog:#42", {"42"}),
        ("dialog:x#42,43", {"42", "43"}),
        ("dialog:x#1#42", {"42"}),  # what counts is behind the last one
        ("dialog:x#42, 43", {"42", " 43"}),
        ("dialog:x#42,", {"42"}),
        ("dialog:x#", set()),
        ("dialog:x#,", set()),
        ("$dialog:x#42", {"42"}),
        ("news:x#42", None),  # only where the namespace limits its channels
        ("#42", None),
    ],
)
def test_a_user_limited_channel_lists_its_users_behind_the_last_boundary(
    name: str, users: set[str] | None
) -> None:
    assert CHANNELS.rules(name).users == users


def test_every_boundary_may_be_another_one() -> None:
    names = NameOptions(private_prefix="priv-", namespace_boundary="/", user_boundary="@", user_separator="|")
    channels = Channels(ChannelOptions(), {"news": ChannelOptions(allow_user_limited_channels=True)}, names)
    rules = channels.rules("priv-news/x@42|43")
    assert rules.private
    assert rules.users == frozenset({"42", "43"})
    assert channels.rules("news:x").options == ChannelOptions()
    assert not channels.rules("$x").private
    assert channels.personal("42", "news") == "news/@42"


@pytest.mark.parametrize("name", ["uploads:feed", "uploads:1", "$uploads:1"])
def test_the_channels_of_uploads_are_read_only_whatever_the_boundaries_are(name: str) -> None:
    assert CHANNELS.rules(name).read_only
    other = Channels(ChannelOptions(), {}, NameOptions(namespace_boundary="/"))
    assert other.rules("uploads:feed").read_only
    with pytest.raises(UnknownNamespace):
        other.rules("uploads/feed")


@pytest.mark.parametrize(
    ("name", "upload"),
    [("uploads:1", "1"), ("uploads:feed", None), ("$uploads:1", None), ("lobby", None), ("news:1", None)],
)
def test_a_channel_says_which_upload_it_is_about(name: str, upload: str | None) -> None:
    """Not a private one: that takes a token, whoever owns what."""
    channels = Channels(ChannelOptions(), {"news": ChannelOptions()})
    assert channels.rules(name).upload == upload


@pytest.mark.parametrize("recoverable", [False, True])
def test_the_channels_of_uploads_can_be_recovered_where_the_broker_can(recoverable: bool) -> None:
    options = uploads_options(open_to_all=False, recoverable=recoverable)
    assert (options.has_history, options.force_recovery) == (recoverable, recoverable)
    assert Channels(ChannelOptions(), {}, uploads=options).rules("uploads:feed").options is options


def test_the_broadcast_channel_stays_open_and_keeps_the_other_options() -> None:
    options = ChannelOptions(
        presence=True,
        channel_regex="^never$",
        publication_data_format="json_object",
        history_size=1,
        history_ttl=1,
    )
    broadcast = Channels(options, {}).options("broadcast")
    assert broadcast.allow_subscribe_for_anonymous
    assert broadcast.allow_publish_for_anonymous
    assert broadcast.publication_data_format == ""
    assert (broadcast.presence, broadcast.history_size) == (True, 1)


# Personal channels


def test_a_personal_channel_is_named_after_its_user() -> None:
    assert CHANNELS.personal("42") == "#42"
    assert CHANNELS.personal("42", "dialog") == "dialog:#42"
    assert CHANNELS.rules(CHANNELS.personal("42", "dialog")).users == frozenset({"42"})


@pytest.mark.parametrize("user", ["a,b", "x#a", "#", ","])
def test_a_user_id_that_would_let_others_in_has_no_personal_channel(user: str) -> None:
    """`#a,b` as the personal channel of the user `a,b` would be open to the user `a`."""
    with pytest.raises(BadChannelName, match="no personal channel"):
        CHANNELS.personal(user)


# Options that contradict each other

HISTORY: dict[str, Any] = {"history_size": 10, "history_ttl": 60}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"history_size": 10}, "needs both history_size and history_ttl"),
        ({"history_ttl": 60}, "needs both history_size and history_ttl"),
        ({"force_recovery": True}, "force_recovery needs history; set history_size and history_ttl"),
        ({"allow_recovery": True}, "allow_recovery needs history"),
        ({"force_positioning": True}, "force_positioning needs history"),
        ({"allow_positioning": True}, "allow_positioning needs history"),
        ({"allowed_delta_types": ["fossil"]}, "allowed_delta_types needs history"),
        ({**HISTORY, "delta_publish": True}, "delta_publish needs allowed_delta_types"),
        ({**HISTORY, "auto_cache_recover": True}, "needs force_recovery_mode = cache"),
        ({**HISTORY, "history_meta_ttl": 59}, "history_meta_ttl must not be less than history_ttl"),
        ({"history_size": -1}, "greater than or equal to 0"),
        ({"history_meta_ttl": 0}, "greater than 0"),
        ({"channel_regex": "("}, "is not a regular expression"),
        ({"allowed_delta_types": ["vcdiff"]}, "'fossil'"),
        ({"force_recovery_mode": "tape"}, "'stream' or 'cache'"),
        ({"publication_data_format": "xml"}, "'json_object' or 'binary'"),
        ({"proxy": True}, "Extra inputs"),
    ],
)
def test_options_that_can_have_no_effect_are_refused_with_what_to_set(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        ChannelOptions.model_validate(options)


@pytest.mark.parametrize(
    "options",
    [
        {**HISTORY, "force_recovery": True, "allowed_delta_types": ["fossil"], "delta_publish": True},
        {**HISTORY, "force_recovery_mode": "cache", "auto_cache_recover": True},
        {**HISTORY, "allow_positioning": True, "allow_recovery": True, "force_positioning": True},
        {**HISTORY, "history_meta_ttl": 60},
        {"force_push_join_leave": True},  # a token may switch join_leave on
        {"allow_history_for_client": True, "allow_presence_for_client": True},  # answered 108
        {"allow_publish_for_anonymous": True},
    ],
)
def test_everything_else_may_be_combined(options: dict[str, Any]) -> None:
    assert ChannelOptions.model_validate(options).has_history is ("history_size" in options)


@pytest.mark.parametrize(
    "names",
    [
        {"private_prefix": "#"},
        {"namespace_boundary": ","},
        {"namespace_boundary": "::#"},
        {"user_separator": ":"},
        {"user_boundary": ""},
        {"private_prefix": " "},
        {"private_prefix": "§"},
        {"max_length": 0},
    ],
)
def test_marks_of_names_must_differ_and_be_printable_ascii(names: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NameOptions.model_validate(names)
