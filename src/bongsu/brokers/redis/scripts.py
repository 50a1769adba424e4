"""The Lua scripts of streams, and how their answers are read.

Each `.lua` file begins with a legend of its keys and arguments.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from bongsu.brokers import envelope
from bongsu.brokers.base import Appended, BrokerError, Page, StaleTerm
from bongsu.brokers.envelope import UnknownEnvelope
from bongsu.protocol.messages import Publication


class Script(NamedTuple):
    """A Lua script; Redis knows it by the SHA-1 of its text, in hex."""

    text: bytes
    sha: bytes


def load(*parts: str) -> Script:
    text = b"\n".join((files("bongsu.brokers") / "lua" / f"{part}.lua").read_bytes() for part in parts)
    return Script(text, sha1(text, usedforsecurity=False).hexdigest().encode())


APPEND = load("stream", "append")
READ = load("stream", "read")
SEND_ONCE = load("send_once")

STREAMS = (APPEND, READ, SEND_ONCE)

_CACHED = 1
_SUPPRESSED = 2
_STALE = 3


def sent(answer: Any) -> None:
    """The answer of send_once.lua. Raises `StaleTerm`."""
    if answer == _STALE:
        raise StaleTerm("a relay of a later term has published on this channel")


def appended(answer: Any) -> Appended:
    """The answer of append.lua. Raises `StaleTerm`, `BrokerError`."""
    try:
        offset, epoch, outcome = answer[:3]
        if outcome == _STALE:
            sent(outcome)
        # A cached offset comes as text, from a hash.
        return Appended(int(offset), epoch.decode("ascii"), outcome == _CACHED, outcome == _SUPPRESSED)
    except (AttributeError, TypeError, ValueError) as error:
        raise BrokerError(f"redis answered an append with {answer!r:.100}") from error


def page(answer: Any) -> Page:
    """The answer of read.lua. Raises `BrokerError`.

    Also for one publication that cannot be read: left out, it would be a loss that looks like none.
    """
    try:
        epoch, top, payloads = answer[:3]
        publications = [_publication(payload) for payload in payloads]
        return Page(publications, int(top), epoch.decode("ascii"))
    except (AttributeError, TypeError, ValueError) as error:
        raise BrokerError(f"redis answered a read with {answer!r:.100}: {error}") from error


def _publication(payload: bytes) -> Publication:
    message = envelope.decode(payload)
    if not isinstance(message, Publication):
        raise UnknownEnvelope(f"a {type(message).__name__} in a stream")
    return message
