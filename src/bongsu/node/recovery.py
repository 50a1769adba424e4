"""What a subscriber that comes back may be told it has missed. Pure.

Source: the Centrifuge client protocol, §6.4 "Recovery decision", §6.5 "Merging", §6.8 "Cache recovery mode".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bongsu.protocol.messages import Publication, StreamPosition


class Recovery(NamedTuple):
    """`recovered`: `publications` (ascending, perhaps none) are all that was missed. Else nothing is
    known.
    """

    recovered: bool
    publications: Sequence[Publication]


NOT_RECOVERED = Recovery(False, ())


class Hole(Exception):
    """Publications that should follow each other do not: something between them was lost."""


def recover_stream(
    since: StreamPosition, publications: Sequence[Publication], top: StreamPosition
) -> Recovery:
    """Whether `publications`, those kept after `since.offset` in ascending order, reach `top` without a gap.

    Never partial. An empty `since.epoch` matches any.
    """
    if since.epoch and since.epoch != top.epoch:
        return NOT_RECOVERED
    if not publications:
        return Recovery(top.offset == since.offset, ())
    if publications[0].offset == since.offset + 1 and publications[-1].offset == top.offset:
        return Recovery(True, publications)
    return NOT_RECOVERED


def recover_cache(since: StreamPosition, newest: Publication | None, top: StreamPosition) -> Recovery:
    """The same where only the latest publication counts: it is sent unless the client has it."""
    has_top = since.epoch == top.epoch and since.offset == top.offset
    if newest is None:
        return Recovery(since.offset > 0 and has_top, ())
    if newest.offset != top.offset:
        return NOT_RECOVERED
    return Recovery(True, () if has_top else (newest,))


def follow(position: StreamPosition, publications: Sequence[Publication]) -> list[Publication]:
    """Of what came in while a subscription was being answered, what follows `position`.

    Publications outside the stream (offset 0) stay where they are. Raises `Hole` when the rest does not
    follow `position` one by one, or belongs to another epoch.
    """
    offset = position.offset
    following = []
    for publication in publications:
        if publication.offset:
            if publication.epoch != position.epoch:
                raise Hole(f"epoch {publication.epoch} after {position.epoch}")
            if publication.offset <= offset:
                continue
            if publication.offset != offset + 1:
                raise Hole(f"offset {publication.offset} after {offset}")
            offset = publication.offset
        following.append(publication)
    return following


def is_run(after: int, publications: Sequence[Publication]) -> bool:
    """Whether the offsets of `publications` count up from `after` without a gap."""
    return all(publication.offset == after + place for place, publication in enumerate(publications, 1))
