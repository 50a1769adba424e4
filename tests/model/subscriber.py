"""A client of the channel as an SDK is one, which checks all it is told against the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.model.ledger import Ledger, Tops, Violation

from bongsu.node.connection import Connection
from bongsu.node.services import Services
from bongsu.protocol import delta
from bongsu.protocol.codec.json import JSON
from bongsu.protocol.delta import DeltaError
from bongsu.protocol.messages import StreamPosition
from bongsu.transports.forms import LINE

CHANNEL: Final = "x"

FLAG_STRICT: Final = 2
"""Answer error 112 rather than subscribe without what was missed."""

_RECONNECTS: Final = {3004, 3010}
_INSUFFICIENT: Final = 2500


class Socket:
    """The transport's end of one connection. `stalled`: it takes no more, since the peer stopped reading."""

    def __init__(self, on_message: Callable[[dict[str, Any]], None], on_close: Callable[[int], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._held: list[bytes] = []
        self.connection: Connection | None = None
        self.stalled = False

    def write(self, chunks: Sequence[bytes]) -> None:
        if self.stalled:
            self._held += chunks
            assert self.connection is not None
            self.connection.paused()
            return
        for line in b"".join(chunks).splitlines():
            self._on_message(json.loads(line))

    def flow(self) -> None:
        self.stalled = False
        held, self._held = self._held, []
        if held:
            self.write(held)
            assert self.connection is not None
            self.connection.resumed()

    def unacknowledged(self) -> int:
        return sum(map(len, self._held))

    def close(self, code: int, reason: str, *, within: float) -> None:
        self.stalled = False
        held, self._held = self._held, []
        self.write(held)
        self._on_close(code)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Subscriber:
    """Reconnects and subscribes when told to. What it finds wrong goes to `complain`."""

    def __init__(
        self, name: str, ledger: Ledger, complain: Callable[[str], None], *, delta: bool, joins: bool
    ) -> None:
        self.name = name
        self.position: StreamPosition | None = None
        """Up to where it has the stream; None: it has never followed it."""
        self.live = False
        self.told_of_loss = 0
        self._ledger = ledger
        self._complain = complain
        self._delta = delta
        self._joins = joins
        self._base = b""
        self._present: dict[str, bool] = {}
        self._socket: Socket | None = None
        self._waiting: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._subscribing = False
        self._id = 0

    # What it does

    def connect(self, services: Services) -> None:
        self.drop()
        self._socket = socket = Socket(self._heard, self._closed)
        socket.connection = Connection(services, socket, JSON, LINE, transport="test")
        self._say({"connect": {}}, lambda reply: None)

    def drop(self) -> None:
        """The connection is lost."""
        socket, self._socket = self._socket, None
        self._over()
        if socket is not None and socket.connection is not None:
            socket.connection.lost(None)

    def subscribe(self, *, strict: bool = False, afresh: bool = False) -> None:
        if self._socket is None or self.live or self._subscribing:
            return
        self._subscribing = True
        since = None if afresh else self.position
        request: dict[str, Any] = {"channel": CHANNEL}
        if self._delta:
            request["delta"] = "fossil"
        if since is not None:
            request |= {"recover": True, "offset": since.offset, "epoch": since.epoch}
            if strict:
                request["flag"] = FLAG_STRICT
        tops = self._ledger.tops
        self._say({"subscribe": request}, lambda reply: self._subscribed(since, tops, reply))

    def unsubscribe(self) -> None:
        if self.live:
            self._say({"unsubscribe": {"channel": CHANNEL}}, lambda reply: self._left())

    def history(self, *, limit: int, reverse: bool, since: bool) -> None:
        if not self.live:
            return
        asked: dict[str, Any] = {"channel": CHANNEL, "limit": limit, "reverse": reverse}
        if since and self.position is not None and not (reverse and not self.position.offset):
            asked["since"] = {"offset": self.position.offset, "epoch": self.position.epoch}
        self._say({"history": asked}, self._page)

    def stall(self) -> None:
        if self._socket is not None:
            self._socket.stalled = True

    def flow(self) -> None:
        if self._socket is not None:
            self._socket.flow()

    @property
    def offset(self) -> int:
        return self.position.offset if self.position is not None else 0

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def stalled(self) -> bool:
        return self._socket is not None and self._socket.stalled

    @property
    def waits(self) -> bool:
        """Whether answers are outstanding."""
        return bool(self._waiting) and not self.stalled

    # What it hears

    def _say(self, command: dict[str, Any], answered: Callable[[dict[str, Any]], None]) -> None:
        assert self._socket is not None
        assert self._socket.connection is not None
        self._id += 1
        self._waiting[self._id] = answered
        self._socket.connection.receive(json.dumps({"id": self._id, **command}))

    def _heard(self, message: dict[str, Any]) -> None:
        try:
            if "push" in message:
                self._pushed(message["push"])
            elif message:
                self._waiting.pop(message["id"])(message)
        except Violation as violation:
            self._complain(f"{self.name}: {violation}")

    def _pushed(self, push: dict[str, Any]) -> None:
        if not self.live:
            raise Violation(f"a push without a subscription: {push}")
        if "pub" in push:
            self._publication(push["pub"])
        elif "unsubscribe" in push:
            if push["unsubscribe"]["code"] != _INSUFFICIENT:
                raise Violation(f"unsubscribed: {push}")
            self.told_of_loss += 1
            self._left()
        else:
            self._joined_or_left(push)

    def _publication(self, publication: dict[str, Any]) -> None:
        at = self.position
        assert at is not None
        if publication["offset"] != at.offset + 1:
            raise Violation(f"offset {publication['offset']} after {at.offset} of {at.epoch}")
        if publication.get("epoch", at.epoch) != at.epoch:
            raise Violation(f"epoch {publication['epoch']} after {at.epoch}")
        self._take(at.epoch, publication)

    def _take(self, epoch: str, publication: dict[str, Any]) -> None:
        data = publication["data"]
        if self._delta:
            text = data.encode()
            try:
                self._base = delta.apply(self._base, text) if publication.get("delta") else text
            except DeltaError as error:
                raise Violation(f"a patch to something else: {error}") from error
            data = json.loads(self._base)
        self._ledger.heard(epoch, publication["offset"], data["n"])
        self.position = StreamPosition(publication["offset"], epoch)

    def _joined_or_left(self, push: dict[str, Any]) -> None:
        joined = "join" in push
        client = push["join" if joined else "leave"]["info"]["client"]
        if self._joins and self._present.get(client, not joined) is joined:
            raise Violation(f"{client} {'joined' if joined else 'left'} twice")
        self._present[client] = joined

    def _subscribed(self, since: StreamPosition | None, before: Tops, reply: dict[str, Any]) -> None:
        self._subscribing = False
        ledger = self._ledger
        tops = Tops(before.first, max(before.last, ledger.tops.last))
        if "error" in reply:
            if self._is_temporary(reply["error"]):
                return
            if reply["error"]["code"] != 112 or since is None:
                raise Violation(f"refused: {reply}")
            if False not in ledger.recoverable(since, tops):
                raise Violation(f"112 from {since}, and the history had all after it")
            self.position = None
            return
        result = reply["subscribe"]
        epoch, offset = result["epoch"], result.get("offset", 0)
        publications = result.get("publications", [])
        ledger.seen(epoch)
        self.live = True
        self._present = {}
        if bool(since) != result.get("was_recovering", False):
            raise Violation(f"was_recovering is not as asked: {result}")
        if result.get("recovered"):
            if since is None or since.epoch not in ("", epoch) or offset != since.offset:
                raise Violation(f"recovered to {epoch}, {offset} from {since}")
            self.position = since
            for publication in publications:
                self._publication(publication)
            return
        self._base = b""
        if publications:
            raise Violation(f"publications, and not recovered: {result}")
        if since is not None and False not in ledger.recoverable(since, tops):
            raise Violation(f"not recovered from {since}, and the history had all after it")
        if ledger.is_present(epoch) and not offset <= tops.last:
            raise Violation(f"subscribed at {offset}, beyond the top at {tops}")
        self.position = StreamPosition(offset, epoch)

    def _page(self, reply: dict[str, Any]) -> None:
        if "error" in reply:
            # 103: it was unsubscribed when the command came, which it was told before.
            code = reply["error"]["code"]
            if not (code == 112 or (code == 103 and not self.live) or self._is_temporary(reply["error"])):
                raise Violation(f"no history: {reply}")
            return
        page = reply["history"]
        self._ledger.check_page(page["publications"], page["epoch"], page["offset"])

    def _is_temporary(self, error: dict[str, Any]) -> bool:
        """Whether it was the broker that could not be asked."""
        return self._ledger.fallible and error["code"] == 100 and error.get("temporary") is True

    # The end

    def _closed(self, code: int) -> None:
        self._socket = None
        self._over()
        if code not in _RECONNECTS:
            self._complain(f"{self.name}: closed with {code}")

    def _over(self) -> None:
        self.live = self._subscribing = False
        self._waiting.clear()

    def _left(self) -> None:
        self.live = False
