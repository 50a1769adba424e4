"""The streams of a replica that runs alone: what Redis keeps for a cluster, in this process. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from itertools import islice

import msgspec

from bongsu.brokers import envelope
from bongsu.brokers.base import (
    IDEMPOTENCY_TTL,
    RELAYED_TTL,
    Appended,
    Page,
    Relayed,
    StaleTerm,
    StreamOptions,
    new_epoch,
)
from bongsu.protocol.messages import Publication, StreamPosition

_NEVER = float("inf")


class _Stream:
    """One channel. `window` holds envelopes, the last one at offset `offset`, without holes."""

    __slots__ = (
        "epoch",
        "expires",
        "offset",
        "term",
        "version",
        "version_epoch",
        "wakes",
        "window",
        "window_expires",
    )

    def __init__(self) -> None:
        self.epoch = new_epoch().decode()
        self.offset = 0
        self.window: deque[bytes] = deque()
        self.term = 0
        self.version = 0
        self.version_epoch = ""
        self.expires = _NEVER
        self.window_expires = _NEVER
        self.wakes = _NEVER  # when it is looked at next, see `MemoryStreams._wake`


class MemoryStreams:
    """All methods take `now` in seconds, which never goes back."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        # In the order of their expiry, since all live equally long.
        self._results: dict[tuple[str, str], tuple[float, Appended]] = {}
        self._relayed: dict[tuple[str, str], tuple[float, Appended]] = {}
        self._wakes: list[tuple[float, str]] = []

    def append(
        self,
        channel: str,
        publication: Publication,
        options: StreamOptions,
        *,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
        relayed: Relayed | None = None,
        now: float,
    ) -> tuple[Appended, bytes | None]:
        """The position, and the envelope to deliver; None when nothing was published. Raises `StaleTerm`."""
        self.expire(now)
        if relayed is not None:
            self._enter_term(channel, relayed.term, options.meta_ttl, now)
        first = self._first(channel, idempotency_key, relayed)
        if first is not None:
            return first._replace(cached=True), None
        stream = self._open(channel, options.meta_ttl, now)
        if version:
            if version <= stream.version and version_epoch in ("", stream.version_epoch):
                return Appended(stream.offset, stream.epoch, suppressed=True), None
            stream.version, stream.version_epoch = version, version_epoch
        stream.offset += 1
        position = Appended(stream.offset, stream.epoch)
        payload = envelope.encode(
            msgspec.structs.replace(publication, offset=stream.offset, epoch=stream.epoch)
        )
        stream.window.append(payload)
        while len(stream.window) > options.size:
            stream.window.popleft()
        stream.window_expires = now + options.ttl
        self._wake(channel, stream)
        self._remember(channel, idempotency_key, relayed, position, now)
        return position, payload

    def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int,
        reverse: bool = False,
        meta_ttl: float,
        now: float,
    ) -> Page:
        self.expire(now)
        stream = self._open(channel, meta_ttl, now)
        size = len(stream.window)
        below = stream.offset - size  # the offset before the window's first
        if reverse:
            end = size if since is None else min(size, max(0, since.offset - 1 - below))
            payloads = islice(reversed(stream.window), size - end, None)
        else:
            start = 0 if since is None else min(size, max(0, since.offset - below))
            payloads = islice(stream.window, start, None)
        chosen = payloads if limit < 0 else islice(payloads, limit)
        return Page([_publication(payload) for payload in chosen], stream.offset, stream.epoch)

    def remove(self, channel: str) -> None:
        stream = self._streams.get(channel)
        if stream is not None:
            _empty(stream)

    def first_send(
        self, channel: str, idempotency_key: str = "", *, relayed: Relayed | None = None, now: float
    ) -> bool:
        """Whether this is the first call with that key; always, without one. Raises `StaleTerm`."""
        if not idempotency_key and relayed is None:
            return True
        self.expire(now)
        if relayed is not None:
            stream = self._streams.get(channel)
            left = stream.expires - now if stream is not None else 0.0
            self._enter_term(channel, relayed.term, max(left, RELAYED_TTL), now)
        if self._first(channel, idempotency_key, relayed) is not None:
            return False
        self._remember(channel, idempotency_key, relayed, Appended(0, ""), now)
        return True

    def settle(self, channel: str, keys: Sequence[str]) -> None:
        for key in keys:
            self._relayed.pop((channel, key), None)

    def expire(self, now: float) -> None:
        """Let go of what has expired. Every other method does so first."""
        for results in (self._results, self._relayed):
            while results:
                key, (expires, _) = next(iter(results.items()))
                if expires > now:
                    break
                del results[key]
        while self._wakes and self._wakes[0][0] <= now:
            wakes, channel = heapq.heappop(self._wakes)
            stream = self._streams.get(channel)
            if stream is None or stream.wakes != wakes:
                continue
            if stream.expires <= now:
                del self._streams[channel]
                continue
            if stream.window_expires <= now:
                _empty(stream)
            stream.wakes = _NEVER
            self._wake(channel, stream)

    def _open(self, channel: str, meta_ttl: float, now: float) -> _Stream:
        stream = self._streams.get(channel)
        if stream is None:
            stream = self._streams[channel] = _Stream()
        stream.expires = now + meta_ttl
        self._wake(channel, stream)
        return stream

    def _wake(self, channel: str, stream: _Stream) -> None:
        """Have `expire` look at `stream` when it may expire first.

        A deadline that moves later, as with each append, leaves the old entry in the heap, which is looked
        at in vain once and put off: so there is about one entry a stream, not one an append.
        """
        due = min(stream.expires, stream.window_expires)
        if due < stream.wakes:
            stream.wakes = due
            heapq.heappush(self._wakes, (due, channel))

    def _enter_term(self, channel: str, term: int, meta_ttl: float, now: float) -> None:
        stream = self._streams.get(channel)
        if stream is not None and stream.term > term:
            raise StaleTerm(f"a relay of term {stream.term} has published on this channel")
        self._open(channel, meta_ttl, now).term = term

    def _first(self, channel: str, idempotency_key: str, relayed: Relayed | None) -> Appended | None:
        """What the first call with that key got."""
        if relayed is not None:
            first = self._relayed.get((channel, relayed.key))
        else:
            first = self._results.get((channel, idempotency_key))
        return None if first is None else first[1]

    def _remember(
        self, channel: str, idempotency_key: str, relayed: Relayed | None, position: Appended, now: float
    ) -> None:
        if relayed is not None:
            self._relayed[channel, relayed.key] = (now + RELAYED_TTL, position)
        elif idempotency_key:
            self._results[channel, idempotency_key] = (now + IDEMPOTENCY_TTL, position)


def _empty(stream: _Stream) -> None:
    stream.window.clear()
    stream.window_expires = _NEVER


def _publication(payload: bytes) -> Publication:
    message = envelope.decode(payload)
    assert isinstance(message, Publication)
    return message
