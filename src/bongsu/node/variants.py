"""The ways a publication is put on the wire. Subscribers with equal variants share its bytes.

A variant is made of an encoding, the form of the transport, what the subscriber asked for (filter, join and
leave) and where its delta chain stands. All are small values, so that variants with equal parts are one key
in the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol

from bongsu.protocol.codec import Codec
from bongsu.protocol.filters import compile_filter
from bongsu.protocol.messages import FilterNode, Join, Leave, Publication, Push


class Form(NamedTuple):
    """How a transport carries one message: `wrap` makes it ready to be written.

    `joinable`: wrapped messages may be written as one chunk. Else each is a message of its own.
    """

    name: str
    wrap: Callable[[bytes], bytes]
    joinable: bool = True


class Variant(Protocol):
    """One way to put what happens in a channel on the wire. Hashable; equal ones make equal bytes."""

    @property
    def positioned(self) -> bool:
        """Subscribers must see every publication of the stream, or be told that they did not."""
        ...

    @property
    def joins(self) -> bool:
        """Subscribers are told who joins and leaves."""
        ...

    def render(
        self, channel: str, publications: list[Publication], previous: Publication | None
    ) -> list[bytes]:
        """Chunks in order, perhaps none. `previous` is the publication before the first, where known.

        Raises `ProtocolError` when these subscribers cannot be sent them.
        """
        ...

    def presence(self, channel: str, message: Join | Leave) -> bytes:
        """The chunk for a join or leave; asked only where `joins`. Raises `ProtocolError`."""
        ...

    def after(self, publications: list[Publication]) -> Variant:
        """The variant of these subscribers once they have got `publications`: mostly this one."""
        ...


class ClientVariant(NamedTuple):
    """The client protocol. Its push prefix depends on the channel, so bytes are made per channel anyway."""

    codec: Codec
    form: Form
    positioned: bool = False
    joins: bool = False
    delta: bool = False
    chained: bool = False
    """With delta: the last thing the subscriber got is the stream's last publication, so the next may be a
    patch.
    """
    filter: FilterNode | None = None

    def render(
        self, channel: str, publications: list[Publication], previous: Publication | None
    ) -> list[bytes]:
        codec, wrap = self.codec, self.form.wrap
        prefix = codec.push_prefix(channel)
        if self.delta:
            publications = self._patched(publications, previous)
        elif self.filter is not None:
            wanted = _compiled(self.filter)
            publications = [one for one in publications if wanted(one.tags or _NO_TAGS)]
        chunks = [wrap(codec.publication(prefix, publication)) for publication in publications]
        return [b"".join(chunks)] if len(chunks) > 1 and self.form.joinable else chunks

    def presence(self, channel: str, message: Join | Leave) -> bytes:
        return self.form.wrap(self.codec.push(Push(channel, message)))

    def after(self, publications: list[Publication]) -> ClientVariant:
        # A client patches what it got last (§9), be it of the stream or not (`skip_history`).
        if self.delta and self.chained is not (of_stream := bool(publications[-1].offset)):
            return self._replace(chained=of_stream)
        return self

    def _patched(self, publications: list[Publication], previous: Publication | None) -> list[Publication]:
        base = previous if self.chained else None
        patched = []
        for publication in publications:
            # Only the direct predecessor may be the base: it is what every subscriber got last.
            follows = base is not None and base.offset + 1 == publication.offset and publication.patchable
            patched.append(self.codec.delta_form(publication, base.data if base and follows else None))
            base = publication if publication.offset else None
        return patched


_compiled = lru_cache(maxsize=1024)(compile_filter)

_NO_TAGS: Mapping[str, str] = {}
