"""Plays a transcript: one line an event, wire literals first.

    @ 20                        the clock stands at 20 seconds (it starts at 0), and the timer is asked
    → {"id":1,...}              a frame of the client; `\\n` inside it stands for a newline between documents
    · subscribe 2 chat          the node is asked to do this
    + connected 1 {...}         what the node then says (below)
    ← {"id":1,...}              a message that leaves
    × 3501 bad request          the connection is closed
    # ...                       for readers

After each line of the first, second or fourth kind, exactly the lines of the others that follow it come out.
The node's part: `connected ID RESULT [EXPIRES_AT]`, `refused ID CODE`, `subscribed CHANNEL ID RESULT`,
`unsubscribed CHANNEL ID` (0: no reply), `refreshed ID RESULT EXPIRES_AT`, `sub_refreshed CHANNEL ID RESULT
EXPIRES_AT`, `reply ID NAME RESULT` (for `error` its code), `push CHANNEL NAME BODY` (`-`: no channel; for
`unsubscribe` its code) and `close CODE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from bongsu.protocol import errors
from bongsu.protocol.actions import (
    Action,
    Authenticate,
    Close,
    ExpireSubscription,
    Perform,
    Ping,
    RefreshConnection,
    RefreshSubscription,
    Send,
    Subscribe,
    Unsubscribe,
)
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.errors import ProtocolError
from bongsu.protocol.messages import (
    REQUESTS,
    RESULT_NAMES,
    ConnectResult,
    HistoryResult,
    Join,
    Message,
    Publication,
    Push,
    RefreshResult,
    Reply,
    RPCResult,
    SubRefreshResult,
    SubscribeResult,
    UnsubscribeResult,
)
from bongsu.protocol.session import Session, SessionOptions

HERE: Final = Path(__file__).parent
_IN: Final = ("@", "→", "+")
_NAMES: Final = {kind: name for name, kind in REQUESTS.items()}
_RESULTS: Final = {name: kind for kind, name in RESULT_NAMES.items()}


def steps(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """The transcript as (line number, what happens, what is to come of it)."""
    number, happens, expected = 0, "", list[str]()
    for at, line in enumerate(path.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith(_IN):
            if happens:
                yield number, happens, expected
            number, happens, expected = at, line, []
        else:
            expected.append(line)
    yield number, happens, expected


class Player:
    """A connection whose node is the transcript."""

    def __init__(self) -> None:
        self._now = 0.0
        self._session = Session(SessionOptions(), now=0)
        self._out: list[str] = []

    def play(self, line: str) -> list[str]:
        """What comes of one line."""
        self._out = []
        kind, _, rest = line.partition(" ")
        if kind == "@":
            self._now = float(rest)
            self._act(self._session.tick(now=self._now))
        elif kind == "→":
            self._receive(rest.replace("\\n", "\n"))
        else:
            name, _, arguments = rest.partition(" ")
            _EVENTS[name](self, *arguments.split(" "))
        return self._out

    def _receive(self, frame: str) -> None:
        try:
            commands = JSON.decode(frame)
        except ProtocolError as error:
            self._act(self._session.close(error.disconnect))
            return
        for command in commands:
            self._act(self._session.receive(command, now=self._now))

    def _send(self, message: bytes) -> None:
        self._out.append(f"← {message.decode()}")

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(reply):
                    self._send(JSON.reply(reply))
                case Ping():
                    self._send(JSON.ping)
                case Close((code, reason)):
                    self._out.append(f"× {code} {reason}")
                case Authenticate(id):
                    self._out.append(f"· authenticate {id}")
                case Subscribe(id, request):
                    self._out.append(f"· subscribe {id} {request.channel}")
                case Unsubscribe(id, channel):
                    self._out.append(f"· unsubscribe {id} {channel}")
                case RefreshConnection(id):
                    self._out.append(f"· refresh {id}")
                case RefreshSubscription(id, channel):
                    self._out.append(f"· sub_refresh {id} {channel}")
                case ExpireSubscription(channel):
                    self._out.append(f"· expire {channel}")
                case Perform(id, request):
                    self._out.append(f"· {_NAMES[type(request)]} {id}")

    # ---- the node's part

    def connected(self, id: str, result: str, expires_at: str = "") -> None:
        expiry = float(expires_at) if expires_at else None
        made = msgspec.json.decode(result, type=ConnectResult)
        self._act(self._session.connected(int(id), made, now=self._now, jitter=0.6, expires_at=expiry))

    def refused(self, id: str, code: str) -> None:
        self._act(self._session.refused(int(id), errors.ERRORS[int(code)]))

    def subscribed(self, channel: str, id: str, result: str) -> None:
        made = msgspec.json.decode(result, type=_SubscribeAnswer)
        expiry = self._now + made.ttl if made.expires else None
        assert self._session.subscribed(channel, refreshable=made.expires, expires_at=expiry)
        self._send(JSON.reply(Reply(int(id), made.result())))

    def unsubscribed(self, channel: str, id: str) -> None:
        self._session.unsubscribed(channel)
        if int(id):
            self._send(JSON.reply(Reply(int(id), UnsubscribeResult())))

    def refreshed(self, id: str, result: str, expires_at: str) -> None:
        made = msgspec.json.decode(result, type=RefreshResult)
        self._act(self._session.refreshed(int(id), made, expires_at=float(expires_at)))

    def sub_refreshed(self, channel: str, id: str, result: str, expires_at: str) -> None:
        made = msgspec.json.decode(result, type=SubRefreshResult)
        actions = self._session.subscription_refreshed(int(id), channel, made, expires_at=float(expires_at))
        self._act(actions)

    def reply(self, id: str, name: str, result: str) -> None:
        if name == "error":
            self._send(JSON.reply(Reply(int(id), errors.ERRORS[int(result)])))
        elif name == "rpc":
            self._send(JSON.reply(Reply(int(id), RPCResult(result.encode()))))
        elif name == "history":
            history = msgspec.json.decode(result, type=_HistoryAnswer)
            self._send(JSON.reply(Reply(int(id), history.result())))
        else:
            self._send(JSON.reply(Reply(int(id), msgspec.json.decode(result, type=_RESULTS[name]))))

    def push(self, channel: str, name: str, body: str) -> None:
        self._send(JSON.push(Push("" if channel == "-" else channel, _PUSHES[name](body))))

    def close(self, code: str) -> None:
        self._act(self._session.close(errors.DISCONNECTS[int(code)]))


class _Pub(msgspec.Struct):
    """A publication as a transcript writes it; payloads are JSON, as on the wire."""

    data: msgspec.Raw = msgspec.Raw()
    offset: int = 0
    tags: dict[str, str] | None = None

    def made(self) -> Publication:
        return Publication(bytes(self.data), offset=self.offset, tags=self.tags)


class _HistoryAnswer(msgspec.Struct):
    publications: list[_Pub] = []
    epoch: str = ""
    offset: int = 0

    def result(self) -> HistoryResult:
        return HistoryResult([pub.made() for pub in self.publications], self.epoch, self.offset)


class _SubscribeAnswer(msgspec.Struct):
    publications: list[_Pub] = []
    epoch: str = ""
    offset: int = 0
    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    positioned: bool = False
    recovered: bool = False
    was_recovering: bool = False

    def result(self) -> SubscribeResult:
        members = msgspec.structs.asdict(self)
        members["publications"] = [pub.made() for pub in self.publications]
        return SubscribeResult(**members)


_PUSHES: Final[dict[str, Callable[[str], Any]]] = {
    "pub": lambda body: msgspec.json.decode(body, type=_Pub).made(),
    "join": lambda body: msgspec.json.decode(body, type=Join),
    "message": lambda body: Message(body.encode()),
    "unsubscribe": lambda body: errors.UNSUBSCRIBES[int(body)],
}

_EVENTS: Final[dict[str, Callable[..., None]]] = {
    name: getattr(Player, name)
    for name in (
        *["connected", "refused", "subscribed", "unsubscribed", "refreshed", "sub_refreshed"],
        *["reply", "push", "close"],
    )
}
