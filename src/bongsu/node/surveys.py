"""Questions to the other replicas: who must answer, who did, and what it comes to.

An answer is expected from every replica that has a lease. One whose lease ends meanwhile is not waited for;
it is named as missing, as is one that is too slow.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from secrets import token_hex
from typing import Final, NamedTuple

import structlog

from bongsu.brokers.base import BrokerBusy
from bongsu.node.control import Answer, AskChannels, ChannelList, Channels, Question
from bongsu.protocol.api import NodeInfo

PATIENCE: Final = 10.0
"""Seconds an answer is waited for."""

LOOK: Final = 0.5
"""Seconds between two looks at who of the awaited is still alive."""

MAX_QUESTIONS: Final = 10_000
"""Questions that may wait for their answers."""

MAX_NAMES: Final = 5_000
"""Channels looked at in one turn of the event loop, and channels in one answer."""

log = structlog.get_logger("bongsu.node.control")


class ChannelsPage(NamedTuple):
    """Channels by name with their numbers of subscribers; `cursor` is "" after the last page.

    `missing`: replicas that did not answer; what only they have is not here.
    """

    channels: dict[str, int]
    cursor: str
    missing: list[str]


class InfoPage(NamedTuple):
    """`missing`: replicas that did not answer."""

    nodes: list[NodeInfo]
    missing: list[str]


def new_id() -> str:
    """For a question."""
    return token_hex(8)


class _Open:
    """A question that waits for answers."""

    __slots__ = ("answers", "awaited", "changed")

    def __init__(self, awaited: set[str]) -> None:
        self.awaited = awaited
        self.answers: dict[str, Answer] = {}
        self.changed = asyncio.Event()


class Questions:
    """Those that this replica has asked."""

    def __init__(
        self,
        replica: str,
        living: Callable[[], Collection[str]],
        send: Callable[[Question, list[str]], Awaitable[None]],
        *,
        patience: float,
    ) -> None:
        """`send` gives a question to the named replicas, or with no names to all."""
        self._replica = replica
        self._living = living
        self._send = send
        self._patience = patience
        self._open: dict[str, _Open] = {}

    async def ask(self, question: Question, *targets: str) -> tuple[dict[str, Answer], list[str]]:
        """The answers by replica, and the replicas that should have answered and did not.

        Raises `BrokerError`, among them `BrokerBusy` for more than `MAX_QUESTIONS` at once.
        """
        if len(self._open) >= MAX_QUESTIONS:
            raise BrokerBusy(f"{len(self._open)} questions wait for other replicas")
        asked = set(targets or self._living()) - {self._replica}
        if not asked:
            return {}, []
        waiting = self._open[question.id] = _Open(set(asked))
        try:
            await self._send(question, list(targets))
            await self._wait(waiting)
        finally:
            del self._open[question.id]
        return waiting.answers, sorted(asked - waiting.answers.keys())

    async def _wait(self, waiting: _Open) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while waiting.awaited and (left := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(LOOK, left)):
                    await waiting.changed.wait()
            except TimeoutError:
                waiting.awaited &= set(self._living())
            waiting.changed.clear()

    def answered(self, replica: str, answer: Answer) -> None:
        """An answer came in. Also from one that was not expected: it has just started."""
        waiting = self._open.get(answer.id)
        if waiting is None:
            log.info("an answer came too late", replica=replica)
            return
        waiting.answers[replica] = answer
        waiting.awaited.discard(replica)
        waiting.changed.set()


async def list_channels(held: ChannelList, question: AskChannels) -> Channels:
    """This replica's answer, `MAX_NAMES` names a loop turn."""
    matches = re.compile(fnmatch.translate(question.pattern or "*")).match
    names = held.channel_names()
    limit = min(question.limit, MAX_NAMES)
    first: list[str] = []
    for start in range(0, len(names), MAX_NAMES):
        some = names[start : start + MAX_NAMES]
        first += [name for name in some if name > question.cursor and matches(name)]
        first.sort()
        del first[limit + 1 :]
        await asyncio.sleep(0)
    more = len(first) > limit
    return Channels(
        id=question.id, channels={name: held.num_clients(name) for name in first[:limit]}, more=more
    )


def merge(answers: Sequence[Channels], *, limit: int, missing: list[str]) -> ChannelsPage:
    """One page out of all replicas' answers to a question with `limit`."""
    counts: dict[str, int] = {}
    for answer in answers:
        for name, count in answer.channels.items():
            counts[name] = counts.get(name, 0) + count
    # A replica that has more has given `limit` names, so nothing of its rest belongs among the first `limit`.
    names = sorted(counts)[:limit]
    more = len(counts) > limit or any(answer.more for answer in answers)
    return ChannelsPage(
        {name: counts[name] for name in names if counts[name]}, names[-1] if more else "", missing
    )
