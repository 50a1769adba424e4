"""Messages of every kind, for the tests of both codecs."""

from __future__ import annotations

from typing import Final

from bongsu.protocol import errors
from bongsu.protocol.messages import (
    ClientInfo,
    ConnectResult,
    HistoryResult,
    Join,
    Leave,
    Message,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    PublishResult,
    Push,
    Refresh,
    RefreshResult,
    Reply,
    RPCResult,
    SubRefreshResult,
    Subscribe,
    SubscribeResult,
    UnsubscribeResult,
)

INFO: Final = ClientInfo("42", "9f0c", b'{"n":1}', b"[]")
FULL: Final = Publication(
    b'{"text":"hi"}',
    offset=1,
    info=INFO,
    tags={"lang": "en"},
    delta=True,
    epoch="xQmZ",
    channel="chat:1",
    time=1_700_000_000_000,
)
PUBLICATIONS: Final = [
    Publication(b'{"text":"hi"}'),
    Publication(b"null", offset=1, epoch="xQmZ"),
    Publication(b'"\xeb\xb4\x89"', tags={"k\n": '"'}),
    Publication(b"", offset=2),
    Publication(b'"%b"' % (b"x" * 200)),
    Publication(b"", info=ClientInfo()),
    Publication(b'"%b"' % (b"x" * 20_000), offset=2**64 - 1, plain=True),
    FULL,
]
REPLIES: Final = [
    Reply(1, ConnectResult(client="c", version="0.1.0")),
    Reply(
        2**32 - 1,
        ConnectResult(
            client="c",
            version="0.1.0",
            expires=True,
            ttl=600,
            data=b"[1]",
            subs={"#42": SubscribeResult(recoverable=True, epoch="e", offset=3), "b": SubscribeResult()},
            ping=25,
            pong=True,
            session="s",
            node="n",
            time=5,
        ),
    ),
    Reply(2, SubscribeResult()),
    Reply(
        3,
        SubscribeResult(
            expires=True,
            ttl=1,
            recoverable=True,
            epoch="e",
            publications=[FULL, Publication(b"1", offset=8)],
            recovered=True,
            offset=6,
            positioned=True,
            data=b"{}",
            was_recovering=True,
            delta=True,
        ),
    ),
    Reply(4, UnsubscribeResult()),
    Reply(5, PublishResult()),
    Reply(6, PresenceResult()),
    Reply(7, PresenceResult({"9f0c": INFO, "": ClientInfo()})),
    Reply(8, PresenceStatsResult()),
    Reply(9, PresenceStatsResult(2, 1)),
    Reply(10, HistoryResult()),
    Reply(11, HistoryResult([FULL], "e", 7)),
    Reply(12, RPCResult()),
    Reply(13, RPCResult(b"false")),
    Reply(14, RefreshResult(client="c", version="v", expires=True, ttl=9)),
    Reply(15, SubRefreshResult(expires=True, ttl=9)),
    Reply(16, errors.ERROR_INTERNAL),
    Reply(17, errors.ERROR_PERMISSION_DENIED),
]
PUSHES: Final = [
    *[Push("chat:1", publication) for publication in PUBLICATIONS],
    Push("a", Join(INFO)),
    Push("a", Leave(ClientInfo())),
    Push("a", errors.UNSUBSCRIBE_INSUFFICIENT_STATE),
    Push("", Message(b'"hello"')),
    Push("a", Subscribe(recoverable=True, epoch="e", offset=3, positioned=True, data=b"{}")),
    Push("a", Subscribe()),
    Push("", ConnectResult(client="c", version="v")),
    Push("", errors.SHUTDOWN),
    Push("", Refresh(expires=True, ttl=7)),
]
