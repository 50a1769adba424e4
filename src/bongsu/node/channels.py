"""Which channels there are and who may do what on them. Pure rules; nothing here awaits.

Source: the Centrifuge client protocol, "Channels, namespaces, permissions".
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from bongsu.protocol.messages import Principal


class ChannelOptions(BaseModel):
    """Options of one namespace. Everything is off unless set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_subscribe_for_client: bool = Field(False, description="Clients with a user id may subscribe")
    allow_subscribe_for_anonymous: bool = Field(
        False, description="Extends allow_subscribe_for_client to anonymous clients"
    )
    allow_publish_for_client: bool = Field(False, description="Clients with a user id may publish")
    allow_publish_for_subscriber: bool = Field(False, description="Subscribers with a user id may publish")
    allow_publish_for_anonymous: bool = Field(
        False, description="Extends the two options above to anonymous clients"
    )


BROADCAST = "broadcast"
"""The channel of the plain `/ws`. Built in: whoever may connect may hear it and speak on it."""

UPLOADS_NAMESPACE = "uploads"
"""Built in: what the upload side tells. Read-only for clients."""

UPLOADS_FEED = "uploads:feed"


class UnknownNamespace(LookupError):
    """The channel's namespace is not configured (102)."""


class BadChannelName(ValueError):
    """The channel name breaks a rule (107); the message says which."""


class Channels:
    """The namespaces of this deployment, and the permissions of plain clients."""

    def __init__(
        self,
        without_namespace: ChannelOptions,
        namespaces: dict[str, ChannelOptions],
        *,
        max_length: int = 255,
        open_to_all: bool = False,
    ) -> None:
        """`open_to_all` (development): plain clients may use every channel that isn't built in read-only."""
        self._without_namespace = without_namespace
        self._namespaces = namespaces
        self._max_length = max_length
        self._open_to_all = open_to_all

    def check_name(self, channel: str) -> None:
        """Raises `BadChannelName`."""
        if not channel:
            raise BadChannelName("the channel name is empty")
        if len(channel.encode()) > self._max_length:
            raise BadChannelName(f"the channel name is longer than {self._max_length} bytes")
        if not (channel.isascii() and channel.isprintable()):
            raise BadChannelName("the channel name has characters other than printable ASCII")

    def options(self, channel: str) -> ChannelOptions:
        """The options of `channel`'s namespace. Raises `UnknownNamespace`."""
        namespace, boundary, _ = channel.removeprefix("$").partition(":")
        if not boundary:
            return self._without_namespace
        if namespace == UPLOADS_NAMESPACE:
            return _UPLOADS_OPTIONS
        try:
            return self._namespaces[namespace]
        except KeyError:
            raise UnknownNamespace(f"namespace “{namespace}” is not configured") from None

    def may_subscribe(self, channel: str, principal: Principal) -> bool:
        """Whether a plain client may hear `channel`. Raises `UnknownNamespace`."""
        options = self.options(channel)
        if principal.trusted or channel == BROADCAST or self._is_open(options):
            return True
        if channel.startswith("$"):
            return False
        return options.allow_subscribe_for_client and (
            bool(principal.user) or options.allow_subscribe_for_anonymous
        )

    def may_publish(self, channel: str, principal: Principal) -> bool:
        """Whether a plain client, subscribed to `channel`, may speak on it. Raises `UnknownNamespace`."""
        options = self.options(channel)
        if options is _UPLOADS_OPTIONS:
            return False
        if principal.trusted or channel == BROADCAST or self._is_open(options):
            return True
        return (options.allow_publish_for_client or options.allow_publish_for_subscriber) and (
            bool(principal.user) or options.allow_publish_for_anonymous
        )

    def _is_open(self, options: ChannelOptions) -> bool:
        return self._open_to_all or options is _UPLOADS_OPTIONS


_UPLOADS_OPTIONS = ChannelOptions()
