"""Who may do what: the protocol's tables, written out, against the rules."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from bongsu.auth import ChannelOverride, InvalidToken, KeysUnavailable, SubscriptionToken, TokenExpired
from bongsu.node.channels import ChannelOptions, Channels, UnknownNamespace, uploads_options
from bongsu.node.permissions import (
    NO_OVERRIDE,
    PlainPermissions,
    SubscriptionOptions,
    check_data,
    check_history,
    check_presence,
    check_publish,
    check_subscribe,
    check_subscription_refresh,
    subscription_options,
)
from bongsu.protocol.errors import ERROR_PERMISSION_DENIED, Disconnect, Error
from bongsu.protocol.messages import FilterNode, Principal, SubscribeRequest

USER, ANONYMOUS = "42", ""
HISTORY: dict[str, Any] = {"history_size": 10, "history_ttl": 60}


def channels(**options: Any) -> Channels:
    """One namespace, `ns`, with `options`, and none."""
    return Channels(ChannelOptions(**options), {"ns": ChannelOptions(**options)})


def code(answer: Error | Disconnect | None) -> int:
    """0: go on."""
    return 0 if answer is None else answer.code


# Publish, history, presence: every combination of the three options of each, in the four situations of a
# client. "Y" may, "." may not (103).
#
#  allow_…_for_ client subscriber anonymous │ user: not subscribed, subscribed; anonymous: not, subscribed
ACCESS = [
    ("", "", "", ". . . ."),
    ("client", "", "", "Y Y . ."),
    ("", "subscriber", "", ". Y . ."),
    ("", "", "anonymous", ". . . ."),
    ("client", "subscriber", "", "Y Y . ."),
    ("client", "", "anonymous", "Y Y Y Y"),
    ("", "subscriber", "anonymous", ". Y . Y"),
    ("client", "subscriber", "anonymous", "Y Y Y Y"),
]
SITUATIONS = [(USER, False), (USER, True), (ANONYMOUS, False), (ANONYMOUS, True)]

Check = Callable[..., Error | None]


def publish(*args: Any, **kwargs: Any) -> Error | None:
    return check_publish(*args, data=b"1", **kwargs)


@pytest.mark.parametrize("name", ["x", "ns:x", "$ns:x"])
@pytest.mark.parametrize(
    ("feature", "check", "switched_on"),
    [
        ("publish", publish, {}),
        ("history", check_history, HISTORY),
        ("presence", check_presence, {"presence": True}),
    ],
)
@pytest.mark.parametrize(("client", "subscriber", "anonymous", "expected"), ACCESS)
def test_access_to_publish_history_and_presence(
    name: str,
    feature: str,
    check: Check,
    switched_on: dict[str, Any],
    client: str,
    subscriber: str,
    anonymous: str,
    expected: str,
) -> None:
    given = {f"allow_{feature}_for_{who}": True for who in (client, subscriber, anonymous) if who}
    rules = channels(**switched_on, **given).rules(name)
    for (user, subscribed), cell in zip(SITUATIONS, expected.split(), strict=True):
        found = check(rules, user=user, subscribed=subscribed, insecure=False)
        assert code(found) == (0 if cell == "Y" else 103), (user, subscribed)
        assert check(rules, user=user, subscribed=subscribed, insecure=True) is None


@pytest.mark.parametrize(("feature", "check"), [("history", check_history), ("presence", check_presence)])
@pytest.mark.parametrize("insecure", [False, True])
def test_what_is_switched_off_is_not_available_before_anybody_is_refused(
    feature: str, check: Check, insecure: bool
) -> None:
    for allowed in (False, True):
        rules = channels(**{f"allow_{feature}_for_client": allowed}).rules("x")
        for user, subscribed in SITUATIONS:
            assert code(check(rules, user=user, subscribed=subscribed, insecure=insecure)) == 108


def test_an_option_of_one_feature_grants_nothing_of_another() -> None:
    features = {"publish": publish, "history": check_history, "presence": check_presence}
    for granted in features:
        options = {f"allow_{granted}_for_{who}": True for who in ("client", "subscriber", "anonymous")}
        rules = channels(**HISTORY, presence=True, **options).rules("x")
        for feature, check in features.items():
            found = check(rules, user=USER, subscribed=True, insecure=False)
            assert code(found) == (0 if feature == granted else 103), (granted, feature)
        subscribe = check_subscribe(rules, user=USER, client="c", token=None, insecure=False)
        assert code(subscribe) == 103


# Subscribe without a token: every combination of its options, for each kind of channel.
#
#  channel │ allow_subscribe_for_ client anonymous │ user 42, anonymous; in development mode both
SUBSCRIBE = [
    ("x", "", "", ". . Y Y"),
    ("x", "client", "", "Y . Y Y"),
    ("x", "", "anonymous", ". . Y Y"),
    ("x", "client", "anonymous", "Y Y Y Y"),
    ("ns:x", "client", "", "Y . Y Y"),
    ("$x", "", "", ". . . ."),
    ("$x", "client", "", ". . . ."),
    ("$x", "client", "anonymous", ". . . ."),
    ("$ns:x", "client", "anonymous", ". . . ."),
    ("x#42", "", "", "Y . Y Y"),
    ("x#42", "client", "", "Y . Y Y"),
    ("x#42", "client", "anonymous", "Y . Y Y"),
    ("x#7,42", "", "", "Y . Y Y"),
    ("x#7", "", "", ". . Y Y"),
    ("x#7", "client", "", ". . Y Y"),
    ("x#7", "client", "anonymous", ". . Y Y"),
    ("x#42#7", "client", "anonymous", ". . Y Y"),
    ("x#", "client", "anonymous", ". . Y Y"),
    ("ns:x#42", "", "", "Y . Y Y"),
    ("$x#42", "client", "anonymous", ". . . ."),
]


@pytest.mark.parametrize(("name", "client", "anonymous", "expected"), SUBSCRIBE)
def test_subscribing_without_a_token(name: str, client: str, anonymous: str, expected: str) -> None:
    given = {f"allow_subscribe_for_{who}": True for who in (client, anonymous) if who}
    rules = channels(**given, allow_user_limited_channels=True).rules(name)
    situations = product([False, True], [USER, ANONYMOUS])
    for (insecure, user), cell in zip(situations, expected.split(), strict=True):
        found = check_subscribe(rules, user=user, client="c", token=None, insecure=insecure)
        assert code(found) == (0 if cell == "Y" else 103), (user, insecure)


def test_a_user_boundary_means_nothing_where_channels_are_not_limited() -> None:
    rules = channels(allow_subscribe_for_client=True).rules("x#7")
    assert check_subscribe(rules, user=USER, client="c", token=None, insecure=False) is None


# Subscribe with a token: it alone decides, whatever the options, the channel and the mode are.

TOKENS = [
    (SubscriptionToken(user=USER, channel="NAME"), 0, 0),
    (SubscriptionToken(user=USER, channel="NAME", client="c"), 0, 0),
    (SubscriptionToken(user="7", channel="NAME"), 3500, 3500),
    (SubscriptionToken(user=ANONYMOUS, channel="NAME"), 3500, 3500),
    (SubscriptionToken(user=USER, channel="other"), 3500, 3500),
    (SubscriptionToken(user=USER, channel="NAME", client="other"), 3500, 3500),
    (TokenExpired("exp has passed"), 109, 109),
    (InvalidToken("not of the form"), 103, 3500),
    (KeysUnavailable("not again so soon"), 100, 100),
]


@pytest.mark.parametrize("name", ["x", "$x", "$ns:x", "x#42", "x#7"])
@pytest.mark.parametrize(("token", "subscribe", "refresh"), TOKENS)
def test_a_subscription_token_decides_alone(name: str, token: Any, subscribe: int, refresh: int) -> None:
    if isinstance(token, SubscriptionToken) and token.channel == "NAME":
        token = SubscriptionToken(user=token.user, channel=name, client=token.client)
    for allowed, insecure in product([False, True], repeat=2):
        rules = channels(allow_subscribe_for_client=allowed, allow_user_limited_channels=True).rules(name)
        found = check_subscribe(rules, user=USER, client="c", token=token, insecure=insecure)
        assert code(found) == subscribe
    assert code(check_subscription_refresh(name, user=USER, client="c", token=token)) == refresh


def test_an_anonymous_client_may_have_a_token_of_its_own() -> None:
    token = SubscriptionToken(user=ANONYMOUS, channel="$x")
    rules = channels().rules("$x")
    assert check_subscribe(rules, user=ANONYMOUS, client="c", token=token, insecure=False) is None


# Data

#  publication_data_format │ refused with 107, otherwise accepted
DATA = {
    b"": {"", "json", "json_object"},
    b"null": {"json_object"},
    b'"text"': {"json_object"},
    b"[1]": {"json_object"},
    b'{"a":1}': set(),
    b' {"a":1} ': set(),
    b"{": {"json", "json_object"},
    b'{"a":1}x': {"json", "json_object"},
    b"\xff\x00": {"json", "json_object"},
    b'"\xff"': {"json", "json_object"},
    b"[" * 100_000: {"json", "json_object"},
}


@pytest.mark.parametrize("data", DATA, ids=lambda data: repr(data[:10]))
@pytest.mark.parametrize("wanted", ["", "json", "json_object", "binary"])
def test_data_must_have_the_format_of_the_namespace(data: bytes, wanted: str) -> None:
    options = ChannelOptions.model_validate({"publication_data_format": wanted})
    expected = 107 if wanted in DATA[data] else 0
    assert code(check_data(options, data)) == expected
    rules = Channels(options, {}).rules("x")
    for insecure in (False, True):  # judged before access
        found = check_publish(rules, user=USER, subscribed=True, data=data, insecure=insecure)
        assert code(found) == (expected or (0 if insecure else 103))


# The channels that are built in


@pytest.mark.parametrize(("user", "insecure"), list(product([USER, ANONYMOUS], [False, True])))
def test_whoever_is_connected_may_use_the_broadcast_channel_and_nobody_may_write_to_uploads(
    user: str, insecure: bool
) -> None:
    everything = channels()
    for name, is_open in (("broadcast", True), ("uploads:feed", False), ("uploads:1", False)):
        rules = everything.rules(name)
        found: object = check_subscribe(rules, user=user, client="c", token=None, insecure=insecure)
        assert found == (None if is_open or insecure else ERROR_PERMISSION_DENIED)
        refusal = check_publish(rules, user=user, subscribed=True, data=b"1", insecure=insecure)
        assert code(refusal) == (0 if is_open else 103)


@pytest.mark.parametrize("user", [USER, ANONYMOUS])
def test_development_opens_the_channels_of_uploads_to_readers(user: str) -> None:
    options = uploads_options(open_to_all=True, recoverable=True)
    rules = Channels(ChannelOptions(), {}, uploads=options).rules("uploads:feed")
    assert check_subscribe(rules, user=user, client="c", token=None, insecure=False) is None
    assert check_publish(rules, user=user, subscribed=True, data=b"1", insecure=True) is not None


# What a subscription is


def effective(
    options: dict[str, Any],
    request: SubscribeRequest | None = None,
    *,
    user: str = USER,
    insecure: bool = False,
    override: ChannelOverride = NO_OVERRIDE,
) -> SubscriptionOptions:
    found = subscription_options(
        channels(**options).rules("x"),
        request or SubscribeRequest(channel="x"),
        user=user,
        insecure=insecure,
        override=override,
    )
    assert isinstance(found, SubscriptionOptions)
    return found


READS = {"allow_history_for_subscriber": True}

#  namespace │ token's override │ request │ positioned, recoverable
POSITION: list[tuple[dict[str, Any], dict[str, bool], str, str]] = [
    ({}, {}, "", ". ."),
    ({}, {}, "positioned recoverable", ". ."),
    ({"force_positioning": True}, {}, "", "Y ."),
    ({"force_recovery": True}, {}, "", "Y Y"),
    ({"allow_positioning": True}, {}, "", ". ."),
    ({"allow_positioning": True}, {}, "positioned", "Y ."),
    ({"allow_positioning": True}, {}, "recoverable", ". ."),
    ({"allow_recovery": True}, {}, "", ". ."),
    ({"allow_recovery": True}, {}, "recoverable", "Y Y"),
    ({"allow_recovery": True}, {}, "positioned", ". ."),
    (READS, {}, "", ". ."),
    (READS, {}, "positioned", "Y ."),
    (READS, {}, "recoverable", "Y Y"),
    ({"allow_history_for_client": True}, {}, "recoverable", "Y Y"),
    ({"force_recovery": True}, {"force_recovery": False}, "", ". ."),
    ({"force_positioning": True}, {"force_positioning": False}, "", ". ."),
    ({"force_positioning": True}, {"force_recovery": False}, "", "Y ."),
    ({}, {"force_recovery": True}, "", "Y Y"),
    ({}, {"force_positioning": True}, "", "Y ."),
    ({"force_recovery": True}, {"force_recovery": False}, "recoverable", ". ."),
    (READS, {"force_recovery": False}, "recoverable", "Y Y"),
]


@pytest.mark.parametrize(("options", "override", "asked", "expected"), POSITION)
def test_positioning_and_recovery_are_forced_or_asked_for_and_allowed(
    options: dict[str, Any], override: dict[str, bool], asked: str, expected: str
) -> None:
    request = SubscribeRequest(
        channel="x", positioned="positioned" in asked, recoverable="recoverable" in asked
    )
    found = effective({**HISTORY, **options}, request, override=ChannelOverride(**override))
    assert (found.positioned, found.recoverable) == tuple(cell == "Y" for cell in expected.split())


def test_an_anonymous_client_has_access_to_history_only_where_its_kind_has() -> None:
    request = SubscribeRequest(channel="x", recoverable=True)
    assert not effective({**HISTORY, **READS}, request, user=ANONYMOUS).recoverable
    extended = {**HISTORY, **READS, "allow_history_for_anonymous": True}
    assert effective(extended, request, user=ANONYMOUS).recoverable
    assert effective(HISTORY, request, user=ANONYMOUS, insecure=True).recoverable


def test_without_history_there_is_no_position_whoever_asks() -> None:
    request = SubscribeRequest(channel="x", recoverable=True, positioned=True, recover=True)
    override = ChannelOverride(force_recovery=True, force_positioning=True)
    found = effective({}, request, insecure=True, override=override)
    assert (found.positioned, found.recoverable, found.recover) == (False, False, False)


SEES = {"allow_presence_for_subscriber": True}

#  namespace │ token's override │ request │ sent joins and leaves
JOIN_LEAVE: list[tuple[dict[str, bool], dict[str, bool], bool, bool]] = [
    ({}, {}, True, False),
    ({"join_leave": True}, {}, True, False),
    ({"join_leave": True, **SEES}, {}, True, True),
    ({"join_leave": True, **SEES}, {}, False, False),
    (SEES, {}, True, False),
    (SEES, {"join_leave": True}, True, True),
    ({"join_leave": True, **SEES}, {"join_leave": False}, True, False),
    ({"force_push_join_leave": True}, {}, False, True),
    ({"force_push_join_leave": True}, {"force_push_join_leave": False}, False, False),
    ({}, {"force_push_join_leave": True}, False, True),
]


@pytest.mark.parametrize(("options", "override", "asked", "expected"), JOIN_LEAVE)
def test_joins_and_leaves_are_sent_to_those_that_must_or_may_see_them(
    options: dict[str, bool], override: dict[str, bool], asked: bool, expected: bool
) -> None:
    request = SubscribeRequest(channel="x", join_leave=asked)
    found = effective(options, request, override=ChannelOverride(**override))
    assert found.push_join_leave is expected


def test_a_token_replaces_whether_a_subscription_is_listed_and_announced() -> None:
    on = {"presence": True, "join_leave": True}
    for options, override, expected in (
        (on, {}, True),
        (on, dict.fromkeys(on, False), False),
        ({}, on, True),
    ):
        found = effective(options, override=ChannelOverride(**override))
        assert (found.presence, found.join_leave) == (expected, expected)


#  namespace │ request asks to recover │ recover, cache
RECOVER: list[tuple[dict[str, Any], bool, tuple[bool, bool]]] = [
    ({}, True, (False, False)),
    ({"force_recovery": True}, False, (False, False)),
    ({"force_recovery": True}, True, (True, False)),
    ({"force_recovery": True, "force_recovery_mode": "cache"}, False, (False, True)),
    ({"force_recovery": True, "force_recovery_mode": "cache"}, True, (True, True)),
    (
        {"force_recovery": True, "force_recovery_mode": "cache", "auto_cache_recover": True},
        False,
        (True, True),
    ),
    ({"force_recovery_mode": "cache", "auto_cache_recover": True}, False, (False, True)),
]


@pytest.mark.parametrize(("options", "asked", "expected"), RECOVER)
def test_a_recoverable_subscription_recovers_when_asked_or_always_with_a_cache(
    options: dict[str, Any], asked: bool, expected: tuple[bool, bool]
) -> None:
    found = effective({**HISTORY, **options}, SubscribeRequest(channel="x", recover=asked))
    assert (found.recover, found.cache) == expected


def test_deltas_are_those_that_are_asked_for_and_allowed() -> None:
    fossil = SubscribeRequest(channel="x", delta="fossil")
    allowed = {**HISTORY, "allowed_delta_types": ("fossil",)}
    assert effective(allowed, fossil).delta == "fossil"
    assert effective(allowed).delta == ""
    assert effective(HISTORY, fossil).delta == ""


KOREAN = FilterNode(key="lang", cmp="eq", val="ko")


@pytest.mark.parametrize(
    ("options", "delta", "tf", "expected"),
    [
        ({}, "", KOREAN, 107),
        ({"allow_tags_filter": True}, "", FilterNode(key="lang", cmp="like", val="k"), 107),
        ({"allow_tags_filter": True, "allowed_delta_types": ("fossil",)}, "fossil", KOREAN, 107),
        ({"allow_tags_filter": True, "allowed_delta_types": ("fossil",)}, "", KOREAN, 0),
        ({"allow_tags_filter": True}, "fossil", KOREAN, 0),  # no deltas are allowed: there are none to break
    ],
)
def test_a_tags_filter_must_be_allowed_well_formed_and_without_deltas(
    options: dict[str, Any], delta: str, tf: FilterNode, expected: int
) -> None:
    rules = channels(**HISTORY, **options).rules("x")
    request = SubscribeRequest(channel="x", delta=delta, tf=tf)
    found = subscription_options(rules, request, user=USER, insecure=True)
    if expected:
        assert isinstance(found, Error)
        assert found.code == expected
    else:
        assert isinstance(found, SubscriptionOptions)
        assert found.filter is not None
        assert found.filter({"lang": "ko"})
        assert not found.filter({"lang": "en"})


def test_a_subscription_of_the_servers_own_has_the_options_of_its_namespace() -> None:
    found = effective({**HISTORY, "presence": True, "join_leave": True, "force_recovery": True})
    assert found == SubscriptionOptions(
        presence=True,
        join_leave=True,
        push_join_leave=False,
        positioned=True,
        recoverable=True,
        recover=False,
        cache=False,
        delta="",
        filter=None,
    )


# Plain sockets

NOBODY, SOMEBODY, TRUSTED = Principal(), Principal(user="42"), Principal(trusted=True)
PLAIN = Channels(
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
        "dialog": ChannelOptions(allow_user_limited_channels=True, allow_publish_for_subscriber=True),
        "objects": ChannelOptions(
            allow_subscribe_for_client=True,
            allow_publish_for_client=True,
            publication_data_format="json_object",
        ),
    },
)

#  channel │ who │ may subscribe, may publish │ with --dev
PLAIN_TABLE = [
    ("broadcast", NOBODY, "Y Y", "Y Y"),
    ("broadcast", SOMEBODY, "Y Y", "Y Y"),
    ("news", NOBODY, ". .", "Y Y"),
    ("news", SOMEBODY, ". .", "Y Y"),
    ("news", TRUSTED, "Y Y", "Y Y"),
    ("open:x", NOBODY, ". .", "Y Y"),
    ("open:x", SOMEBODY, "Y Y", "Y Y"),
    ("$open:x", SOMEBODY, ". Y", "Y Y"),
    ("$open:x", TRUSTED, "Y Y", "Y Y"),
    ("wide:x", NOBODY, "Y Y", "Y Y"),
    ("wide:x", SOMEBODY, "Y Y", "Y Y"),
    ("odd:x", NOBODY, ". .", "Y Y"),
    ("odd:x", SOMEBODY, ". .", "Y Y"),
    ("dialog:x#42", SOMEBODY, "Y Y", "Y Y"),
    ("dialog:x#7", SOMEBODY, ". Y", "Y Y"),
    ("dialog:x#42", NOBODY, ". .", "Y Y"),
    ("objects:x", SOMEBODY, "Y .", "Y ."),  # a plain client's text is a JSON string, never an object
    ("objects:x", TRUSTED, "Y .", "Y ."),
    ("uploads:feed", NOBODY, ". .", "Y ."),
    ("uploads:feed", SOMEBODY, ". .", "Y ."),
    ("uploads:1", SOMEBODY, ". .", "Y ."),
    ("uploads:feed", TRUSTED, "Y .", "Y ."),
]


@pytest.mark.parametrize(("name", "who", "closed", "dev"), PLAIN_TABLE)
def test_plain_clients_are_judged_by_the_same_rules(name: str, who: Principal, closed: str, dev: str) -> None:
    for open_to_all, expected in ((False, closed), (True, dev)):
        plain = PlainPermissions(PLAIN, open_to_all=open_to_all)
        found = (plain.may_subscribe(name, who), plain.may_publish(name, who))
        assert found == tuple(cell == "Y" for cell in expected.split())


def test_insecure_opens_plain_sockets_as_it_does_others() -> None:
    plain = PlainPermissions(PLAIN, insecure=True)
    assert plain.may_subscribe("news", NOBODY)
    assert plain.may_publish("news", NOBODY)
    assert not plain.may_subscribe("$open:x", NOBODY)  # a plain client has no way to show a token for it
    assert not plain.may_publish("uploads:feed", NOBODY)


def test_no_mode_opens_a_namespace_that_there_is_not() -> None:
    with pytest.raises(UnknownNamespace):
        PlainPermissions(PLAIN, open_to_all=True, insecure=True).may_subscribe("other:x", TRUSTED)
