"""Which channels there are, what each can do, and what its name says. Pure rules; nothing here awaits.

Who may do what on them is in `permissions`. Source: the Centrifuge client protocol, §12 "Channels,
namespaces, permissions".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bongsu.node.backlog import Policy
from bongsu.protocol.errors import ERROR_BAD_REQUEST, ERROR_UNKNOWN_CHANNEL, Error

BROADCAST: Final = "broadcast"
"""The channel of the plain `/ws`. Built in: whoever may connect may hear it and speak on it."""

UPLOADS_NAMESPACE: Final = "uploads"
"""Built in: what the upload side tells. Read-only for clients."""

UPLOADS_FEED: Final = "uploads:feed"

_NEED_HISTORY: Final = (
    "force_positioning",
    "allow_positioning",
    "force_recovery",
    "allow_recovery",
    "auto_cache_recover",
    "allowed_delta_types",
    "delta_publish",
)


class ChannelOptions(BaseModel):
    """Options of one namespace. Everything is off unless set. Durations in seconds.

    Raises `pydantic.ValidationError`, in words, for combinations that could never have an effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    presence: bool = Field(False, description="Keep who is subscribed, for presence and presence_stats")
    join_leave: bool = Field(
        False, description="Publish a join when a client subscribes, a leave when it goes"
    )
    force_push_join_leave: bool = Field(
        False, description="Send joins and leaves to every subscriber, also to those that do not ask for them"
    )
    history_size: int = Field(
        0, ge=0, description="Publications kept of each channel, a number; history is on with history_ttl too"
    )
    history_ttl: float = Field(
        0.0, ge=0, description="Time after its last publication at which a channel's history goes"
    )
    history_meta_ttl: float = Field(
        2_592_000.0,
        gt=0,
        description="Time after its last use at which a channel's epoch and offset go; not below history_ttl",
    )
    force_positioning: bool = Field(
        False, description="Every subscription is told when it has missed a publication"
    )
    allow_positioning: bool = Field(
        False, description="Clients may ask for positioning; those with access to history always may"
    )
    force_recovery: bool = Field(
        False, description="Every subscription gets what it missed when it comes back"
    )
    allow_recovery: bool = Field(
        False, description="Clients may ask for recovery; those with access to history always may"
    )
    force_recovery_mode: Literal["stream", "cache"] = Field(
        "stream", description="What recovery gives: stream, all that was missed; cache, the latest only"
    )
    auto_cache_recover: bool = Field(
        False, description="With mode cache: new subscribers get the latest publication too, without asking"
    )
    allowed_delta_types: tuple[Literal["fossil"], ...] = Field(
        default=(), description="Delta compressions that clients may ask for; fossil is the one there is"
    )
    delta_publish: bool = Field(
        False, description="Publications are sent as deltas to the clients that asked for them"
    )
    allow_tags_filter: bool = Field(
        False, description="Subscribers may ask for those publications only whose tags they name"
    )
    allow_subscribe_for_client: bool = Field(False, description="Clients with a user id may subscribe")
    allow_subscribe_for_anonymous: bool = Field(
        False, description="Extends allow_subscribe_for_client to anonymous clients"
    )
    allow_publish_for_client: bool = Field(False, description="Clients with a user id may publish")
    allow_publish_for_subscriber: bool = Field(False, description="Subscribers with a user id may publish")
    allow_publish_for_anonymous: bool = Field(
        False, description="Extends the two options above to anonymous clients"
    )
    allow_history_for_client: bool = Field(False, description="Clients with a user id may read the history")
    allow_history_for_subscriber: bool = Field(
        False, description="Subscribers with a user id may read the history"
    )
    allow_history_for_anonymous: bool = Field(
        False, description="Extends both options of history above to anonymous clients"
    )
    allow_presence_for_client: bool = Field(
        False, description="Clients with a user id may ask who is subscribed"
    )
    allow_presence_for_subscriber: bool = Field(
        False, description="Subscribers with a user id may ask who is subscribed"
    )
    allow_presence_for_anonymous: bool = Field(
        False, description="Extends both options of presence above to anonymous clients"
    )
    allow_user_limited_channels: bool = Field(
        False, description="Users 42 and 43 may subscribe to dialog#42,43; others need a token"
    )
    channel_regex: str | None = Field(
        None,
        min_length=1,
        description="Regular expression found in every name, after the namespace; may allow other than ASCII",
    )
    publication_data_format: Literal["", "json", "json_object", "binary"] = Field(
        "",
        description="What may be published: json, json_object, binary (anything, also nothing); unset = "
        "anything but nothing",
    )

    local_when_broker_is_away: bool = Field(
        True,
        description="While the broker is away, publications reach the subscribers of the replica that got "
        "them, and their publisher is told error 100; off: they reach nobody. Without history only",
    )
    slow_consumer: Literal["disconnect", "drop_oldest", "conflate"] = Field(
        "disconnect",
        description="What becomes of a subscriber that reads too slowly: disconnect (3008); drop_oldest, it "
        "misses what waited longest; conflate, only the latest waits for it. Not with history",
    )
    conflate_key: str = Field(
        "",
        description="With conflate: the tag whose every value has a latest publication of its own; unset = "
        "there is one of the channel",
    )

    @property
    def has_history(self) -> bool:
        """Whether publications are kept."""
        return self.history_size > 0 and self.history_ttl > 0

    @property
    def policy(self) -> Policy | None:
        """What slow subscribers may miss; None: nothing."""
        if self.slow_consumer == "disconnect":
            return None
        return Policy(self.slow_consumer == "conflate", self.conflate_key)

    @field_validator("channel_regex")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _combinations(self) -> ChannelOptions:
        if (self.history_size > 0) != (self.history_ttl > 0):
            raise ValueError("history needs both history_size and history_ttl; set the other one too")
        if not self.has_history:
            for name in _NEED_HISTORY:
                if getattr(self, name):
                    raise ValueError(f"{name} needs history; set history_size and history_ttl")
        if self.has_history and self.slow_consumer != "disconnect":
            raise ValueError(
                f"slow_consumer = {self.slow_consumer} would break the promise of history, that nothing is "
                "missed unsaid; leave history out, or slow_consumer at disconnect"
            )
        if self.conflate_key and self.slow_consumer != "conflate":
            raise ValueError("conflate_key needs slow_consumer = conflate")
        if self.history_meta_ttl < self.history_ttl:
            # The stream would begin again, in a new epoch, while its publications are still there.
            raise ValueError("history_meta_ttl must not be less than history_ttl")
        if self.auto_cache_recover and self.force_recovery_mode != "cache":
            raise ValueError("auto_cache_recover needs force_recovery_mode = cache")
        if self.delta_publish and not self.allowed_delta_types:
            raise ValueError('delta_publish needs allowed_delta_types = ["fossil"]')
        return self


class NameOptions(BaseModel):
    """How channel names are read. The marks are printable ASCII."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_length: int = Field(255, gt=0, description="Longest channel name, in bytes of UTF-8")
    private_prefix: str = Field(
        "$",
        pattern=r"^[!-~]+$",
        description="A channel that begins with it can only be subscribed to with a token",
    )
    namespace_boundary: str = Field(
        ":", pattern=r"^[!-~]+$", description="What stands between a namespace and the rest of a name"
    )
    user_boundary: str = Field(
        "#",
        pattern=r"^[!-~]+$",
        description="What stands before the users of a user-limited channel; its last place counts",
    )
    user_separator: str = Field(
        ",", pattern=r"^[!-~]+$", description="What stands between the users of a user-limited channel"
    )

    @model_validator(mode="after")
    def _marks_differ(self) -> NameOptions:
        marks = (self.private_prefix, self.namespace_boundary, self.user_boundary, self.user_separator)
        if any(a in b for i, a in enumerate(marks) for j, b in enumerate(marks) if i != j):
            raise ValueError(
                "private_prefix, namespace_boundary, user_boundary and user_separator must differ, "
                "and none may be a part of another"
            )
        return self


class ChannelError(Exception):
    """There is no such channel. `error` is the reply; the message says what is wrong with the name."""

    error: ClassVar[Error]


class UnknownNamespace(ChannelError, LookupError):
    """The channel's namespace is not configured (102)."""

    error = ERROR_UNKNOWN_CHANNEL


class BadChannelName(ChannelError, ValueError):
    """The channel name breaks a rule (107); the message says which."""

    error = ERROR_BAD_REQUEST


@dataclass(frozen=True, slots=True)
class ChannelRules:
    """What holds for one channel: the options of its namespace, and what its name says.

    `private`: one comes in only by a token. `users`: the channel is limited to these; None = it is not.
    `read_only`: clients never publish here. `upload`: the id of the upload that the channel is about; its
    owner may subscribe, which is for `Services.owns_upload` to say.
    """

    name: str
    options: ChannelOptions
    private: bool = False
    users: frozenset[str] | None = None
    read_only: bool = False
    upload: str | None = None


class Channels:
    """The channels of this deployment."""

    def __init__(
        self,
        without_namespace: ChannelOptions,
        namespaces: Mapping[str, ChannelOptions],
        names: NameOptions | None = None,
        *,
        uploads: ChannelOptions | None = None,
    ) -> None:
        """`namespaces` by their names. `uploads`: options of the built-in namespace; None: all are off."""
        self._uploads = uploads or ChannelOptions()
        self._names = names or NameOptions()
        self._without_namespace = without_namespace
        self._namespaces = namespaces
        # What channels without a namespace forbid must not close the one that the plain `/ws` is.
        self._broadcast = ChannelRules(
            BROADCAST, without_namespace.model_copy(update=_OPEN_TO_WHOEVER_CONNECTS)
        )

        # Read out of a name once, and one object for all who use the channel.
        self.rules = lru_cache(maxsize=65536)(self._rules)

    def _rules(self, channel: str) -> ChannelRules:
        """What holds for `channel`. Raises `BadChannelName`, `UnknownNamespace`, in the protocol's order."""
        if channel == BROADCAST:
            return self._broadcast
        if not channel:
            raise BadChannelName("the channel name is empty")
        names = self._names
        if len(channel) > names.max_length or len(channel.encode()) > names.max_length:
            raise BadChannelName(f"the channel name is longer than {names.max_length} bytes")
        private = channel.startswith(names.private_prefix)
        bare = channel.removeprefix(names.private_prefix)
        read_only = bare.startswith(_UPLOADS_PREFIX)  # whatever the boundary is: its publisher does not know
        options, rest = (self._uploads, bare) if read_only else self._find(bare)
        _check_characters(channel, rest, options.channel_regex)
        users: frozenset[str] | None = None
        if options.allow_user_limited_channels and names.user_boundary in channel:
            listed = channel.rpartition(names.user_boundary)[2].split(names.user_separator)
            users = frozenset(listed) - {""}  # the anonymous user is nobody to be listed
        upload: str | None = None
        if channel.startswith(_UPLOADS_PREFIX) and channel != UPLOADS_FEED:
            upload = channel.removeprefix(_UPLOADS_PREFIX)
        return ChannelRules(channel, options, private, users, read_only, upload)

    def options(self, channel: str) -> ChannelOptions:
        """The options of `channel`. Raises `BadChannelName` or `UnknownNamespace`."""
        return self.rules(channel).options

    def personal(self, user: str, namespace: str = "") -> str:
        """The personal channel of `user`, who is not anonymous. Raises `BadChannelName`.

        A user id that holds a mark of user-limited channels has none: others could be read out of its name.
        """
        names = self._names
        if names.user_separator in user or names.user_boundary in user:
            raise BadChannelName(
                f"a user id with “{names.user_separator}” or “{names.user_boundary}” in it has no personal "
                "channel"
            )
        channel = f"{namespace}{names.namespace_boundary}" if namespace else ""
        return f"{channel}{names.user_boundary}{user}"

    def _find(self, bare: str) -> tuple[ChannelOptions, str]:
        """The options of the namespace, and the part of the name behind it."""
        namespace, boundary, rest = bare.partition(self._names.namespace_boundary)
        if not boundary:
            return self._without_namespace, bare
        try:
            return self._namespaces[namespace], rest
        except KeyError:
            raise UnknownNamespace(f"namespace “{namespace}” is not configured") from None


def _check_characters(channel: str, rest: str, regex: str | None) -> None:
    if regex is None:
        if not (channel.isascii() and channel.isprintable()):
            raise BadChannelName("the channel name has characters other than printable ASCII")
    elif not channel.isprintable():
        raise BadChannelName("the channel name has characters that cannot be printed")
    elif re.search(regex, rest) is None:
        raise BadChannelName("the channel name does not match the channel_regex of its namespace")


def uploads_options(*, open_to_all: bool, recoverable: bool) -> ChannelOptions:
    """Of the built-in namespace. Without `open_to_all` (`--dev`) only a token, or an upload's owner, gets in.

    `recoverable`: who comes back within a while sees what was told meanwhile, above all an upload's end.
    """
    return ChannelOptions(
        allow_subscribe_for_client=open_to_all,
        allow_subscribe_for_anonymous=open_to_all,
        history_size=_UPLOADS_KEPT if recoverable else 0,
        history_ttl=_UPLOADS_KEPT_FOR if recoverable else 0.0,
        # There is a channel for each upload: their positions are not kept as long as others.
        history_meta_ttl=86_400.0,
        force_recovery=recoverable,
    )


_UPLOADS_KEPT: Final = 256  # publications: of one upload its progress for a minute, and then its end
_UPLOADS_KEPT_FOR: Final = 600.0  # seconds
_UPLOADS_PREFIX: Final = f"{UPLOADS_NAMESPACE}:"
_OPEN_TO_WHOEVER_CONNECTS: Final[Mapping[str, object]] = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_client": True,
    "allow_publish_for_anonymous": True,
    "publication_data_format": "",
}
