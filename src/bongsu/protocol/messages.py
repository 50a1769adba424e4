"""The values that travel: a publication and who made it."""

from __future__ import annotations

import msgspec


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is on the other end. `user` is "" for an anonymous one; `trusted` marks the holder of the API key."""

    user: str = ""
    trusted: bool = False


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One message in a channel.

    `data` is one JSON document without raw newlines, kept byte-exact from publisher to subscriber.
    `plain` marks a text that a plain client (`/ws`) sent: `data` is then a JSON string, and other plain
    clients are shown it through the template.
    """

    data: bytes
    plain: bool = False
