"""Who may do what on a channel. Pure rules: what the protocol answers, without asking anybody.

Each `check_` returns what to answer instead, or None: go on. What is wrong with a channel's name comes
first, from `Channels.rules`.

Source: the Centrifuge client protocol, §5.2 "Effective options", §12.3 "Publish, history, presence",
§12.4 "Subscribe".
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from bongsu.auth import ChannelOverride, KeysUnavailable, SubscriptionToken, TokenError, TokenExpired
from bongsu.node.channels import ChannelOptions, ChannelRules, Channels
from bongsu.protocol import errors
from bongsu.protocol.errors import Disconnect, Error
from bongsu.protocol.filters import Filter, FilterError, compile_filter
from bongsu.protocol.messages import Principal, SubscribeRequest

Verified: TypeAlias = SubscriptionToken | TokenError
"""What came of verifying a subscription token."""

NO_OVERRIDE: Final = ChannelOverride()


# ---- subscribe


def check_subscribe(
    channel: ChannelRules, *, user: str, client: str, token: Verified | None, insecure: bool
) -> Error | Disconnect | None:
    """Whether `user` may subscribe. `client` is the connection's id; `token` None: none was given.

    The first rule that matches decides. Development mode is the last one: a private channel takes a token,
    and a token that is not good is not, there too.
    """
    if channel.private and token is None:
        return errors.ERROR_PERMISSION_DENIED
    if token is not None:
        return _check_token(token, channel.name, user, client, invalid=errors.ERROR_PERMISSION_DENIED)
    options = channel.options
    if channel.users is not None:
        allowed = user in channel.users
    else:
        allowed = options.allow_subscribe_for_client and (bool(user) or options.allow_subscribe_for_anonymous)
    return None if allowed or insecure else errors.ERROR_PERMISSION_DENIED


def check_subscription_refresh(
    channel: str, *, user: str, client: str, token: Verified
) -> Error | Disconnect | None:
    """Whether the new token of a subscription is good. Here a bad one ends the connection."""
    return _check_token(token, channel, user, client, invalid=errors.INVALID_TOKEN)


def _check_token(
    token: Verified, channel: str, user: str, client: str, *, invalid: Error | Disconnect
) -> Error | Disconnect | None:
    match token:
        case SubscriptionToken():
            theirs = token.channel == channel and token.user == user and token.client in ("", client)
            return None if theirs else errors.INVALID_TOKEN
        case TokenExpired():
            return errors.ERROR_TOKEN_EXPIRED
        case KeysUnavailable():  # a temporary error: the client comes again by itself
            return errors.ERROR_INTERNAL
    return invalid


# ---- publish, history, presence


def check_publish(
    channel: ChannelRules, *, user: str, subscribed: bool, data: bytes, insecure: bool
) -> Error | None:
    """Whether `user` may publish `data`. `subscribed`: on this connection, now."""
    refusal = check_data(channel.options, data)
    if refusal is not None:
        return refusal
    options = channel.options
    allowed = insecure or _is_allowed(
        user,
        subscribed,
        options.allow_publish_for_client,
        options.allow_publish_for_subscriber,
        options.allow_publish_for_anonymous,
    )
    return None if allowed and not channel.read_only else errors.ERROR_PERMISSION_DENIED


def check_data(options: ChannelOptions, data: bytes) -> Error | None:
    """Whether `data` is in the format of the namespace. For the server API, too."""
    match options.publication_data_format:
        case "binary":
            return None
        case "":
            return None if data else errors.ERROR_BAD_REQUEST
        case wanted:
            try:
                document = msgspec.json.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return errors.ERROR_BAD_REQUEST
            fits = wanted == "json" or isinstance(document, dict)
            return None if fits else errors.ERROR_BAD_REQUEST


def check_history(channel: ChannelRules, *, user: str, subscribed: bool, insecure: bool) -> Error | None:
    """Whether `user` may read the history. `subscribed`: on this connection, now."""
    if not channel.options.has_history:
        return errors.ERROR_NOT_AVAILABLE
    allowed = insecure or _may_read_history(channel.options, user, subscribed)
    return None if allowed else errors.ERROR_PERMISSION_DENIED


def check_presence(channel: ChannelRules, *, user: str, subscribed: bool, insecure: bool) -> Error | None:
    """Whether `user` may ask who is subscribed. `subscribed`: on this connection, now."""
    if not channel.options.presence:
        return errors.ERROR_NOT_AVAILABLE
    allowed = insecure or _may_see_presence(channel.options, user, subscribed)
    return None if allowed else errors.ERROR_PERMISSION_DENIED


def _may_read_history(options: ChannelOptions, user: str, subscribed: bool) -> bool:
    return _is_allowed(
        user,
        subscribed,
        options.allow_history_for_client,
        options.allow_history_for_subscriber,
        options.allow_history_for_anonymous,
    )


def _may_see_presence(options: ChannelOptions, user: str, subscribed: bool) -> bool:
    return _is_allowed(
        user,
        subscribed,
        options.allow_presence_for_client,
        options.allow_presence_for_subscriber,
        options.allow_presence_for_anonymous,
    )


def _is_allowed(
    user: str, subscribed: bool, for_client: bool, for_subscriber: bool, for_anonymous: bool
) -> bool:
    return (for_client or (for_subscriber and subscribed)) and (bool(user) or for_anonymous)


# ---- what a subscription is


class SubscriptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one subscription does, decided once, when it begins.

    `presence`: it is listed. `join_leave`: its joins and leaves are published. `push_join_leave`: it is sent
    those of others, and its own. `recover`: look for what was missed since the request's position; with
    `cache` only for the latest publication. `delta` names the kind of deltas, "" = none. `filter` None: it
    wants every publication.
    """

    presence: bool
    join_leave: bool
    push_join_leave: bool
    positioned: bool
    recoverable: bool
    recover: bool
    cache: bool
    delta: str
    filter: Filter | None


def subscription_options(
    channel: ChannelRules,
    request: SubscribeRequest,
    *,
    user: str,
    insecure: bool,
    override: ChannelOverride = NO_OVERRIDE,
) -> SubscriptionOptions | Error:
    """What `request` gets on `channel`: the namespace's options, replaced by `override`, then its own wishes.

    `override` is the token's or the server API's. A subscription of the server's own is an empty request.
    Error 107 when the tags filter is not allowed, malformed, or asked for together with deltas.
    """
    options = channel.options
    presence = _replaced(options.presence, override.presence)
    join_leave = _replaced(options.join_leave, override.join_leave)
    reads_history = insecure or _may_read_history(options, user, subscribed=True)
    sees_presence = insecure or _may_see_presence(options, user, subscribed=True)
    recoverable = _replaced(options.force_recovery, override.force_recovery) or (
        request.recoverable and (options.allow_recovery or reads_history)
    )
    positioned = _replaced(options.force_positioning, override.force_positioning) or (
        request.positioned and (options.allow_positioning or reads_history)
    )
    # Without a stream there is no position; a token may ask for one all the same.
    recoverable = recoverable and options.has_history
    positioned = (positioned and options.has_history) or recoverable
    cache = options.force_recovery_mode == "cache"
    delta = request.delta if request.delta in options.allowed_delta_types else ""
    wanted: Filter | None = None
    if request.tf is not None:
        # A publication that is filtered out would be missing as the base of the next delta.
        if not options.allow_tags_filter or delta:
            return errors.ERROR_BAD_REQUEST
        try:
            wanted = compile_filter(request.tf)
        except FilterError:
            return errors.ERROR_BAD_REQUEST
    return SubscriptionOptions(
        presence=presence,
        join_leave=join_leave,
        push_join_leave=_replaced(options.force_push_join_leave, override.force_push_join_leave)
        or (request.join_leave and join_leave and sees_presence),
        positioned=positioned,
        recoverable=recoverable,
        recover=recoverable and (request.recover or options.auto_cache_recover),
        cache=cache,
        delta=delta,
        filter=wanted,
    )


def _replaced(option: bool, override: bool | None) -> bool:
    return option if override is None else override


# ---- plain sockets


class PlainPermissions:
    """What plain clients may do: the rules above for one that has no subscription token and no request."""

    def __init__(self, channels: Channels, *, open_to_all: bool = False, insecure: bool = False) -> None:
        """`open_to_all` (`--dev`): plain clients may use every channel that isn't read-only."""
        self._channels = channels
        self._open_to_all = open_to_all
        self._insecure = insecure

    def may_subscribe(self, channel: str, principal: Principal) -> bool:
        """Whether a plain client may hear `channel`. Raises `BadChannelName`, `UnknownNamespace`."""
        rules = self._channels.rules(channel)
        if principal.trusted or self._open_to_all:
            return True
        refusal = check_subscribe(rules, user=principal.user, client="", token=None, insecure=self._insecure)
        return refusal is None

    def may_publish(self, channel: str, principal: Principal) -> bool:
        """Whether a plain client, subscribed to `channel`, may speak on it. Raises as `may_subscribe`."""
        refusal = check_publish(
            self._channels.rules(channel),
            user=principal.user,
            subscribed=True,
            data=_PLAIN_TEXT,
            insecure=principal.trusted or self._open_to_all or self._insecure,
        )
        return refusal is None


_PLAIN_TEXT: Final = b'""'  # as good as any: a plain client's text is published as a JSON string
