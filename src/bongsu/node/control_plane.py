"""One replica's end of the control channels: does what others ask, and asks them.

What is asked is done here first, and then sent; the own echo is ignored. So the caller's replica has done it
when the call returns, and the others do it when they hear of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import msgspec
import structlog

from bongsu.brokers import envelope
from bongsu.brokers.base import Broker
from bongsu.metrics import Metrics
from bongsu.node.beacon import Beat
from bongsu.node.control import (
    CONTROL,
    Answer,
    AskChannels,
    AskInfo,
    Channels,
    ControlTarget,
    Disconnect,
    Emulate,
    Emulated,
    Forget,
    Info,
    LetGo,
    LetGone,
    Message,
    Refresh,
    Subscribe,
    Unsubscribe,
    control_channel,
    decode_frame,
    decode_message,
    encode,
)
from bongsu.node.surveys import (
    MAX_NAMES,
    PATIENCE,
    ChannelsPage,
    InfoPage,
    Questions,
    list_channels,
    merge,
    new_id,
)
from bongsu.node.tasks import Tasks
from bongsu.protocol.errors import Error

MAX_LISTINGS: Final = 16
"""Surveys of channels that are answered at once; whoever asks beyond names this replica as missing."""

MAX_UPLOADS: Final = 64
"""Uploads that others may ask for at once; whoever asks beyond takes them without our help."""

log = structlog.get_logger("bongsu.node.control")

ReleaseUpload = Callable[[str, int | None], Awaitable[None]]
"""`(upload id, offset)`: what `LetGo` asks for. Never raises."""


class UnknownReplica(LookupError):
    """There is no replica of that name with a lease."""


class ControlPlane:
    """One replica's end of the control channels. Belongs to one event loop."""

    def __init__(
        self,
        *,
        replica: str,
        broker: Broker,
        target: ControlTarget,
        living: Callable[[], Collection[str]],
        on_beat: Callable[[Beat], None],
        metrics: Metrics,
        patience: float = PATIENCE,
    ) -> None:
        """`living`: names of the replicas with a lease. `patience`: seconds an answer is waited for."""
        self.replica = replica
        self.channels_to_hear = (CONTROL, control_channel(replica))
        """Somebody gives their payloads to `receive`."""
        self._broker = broker
        self._target = target
        self._on_beat = on_beat
        self._metrics = metrics
        self._living = living
        self._questions = Questions(replica, living, self._send, patience=patience)
        self._listings = Tasks()
        self._releases = Tasks()
        self._release_upload: ReleaseUpload | None = None

    def serve_uploads(self, release: ReleaseUpload) -> None:
        """`release` does what others ask about uploads held here. Without it none are."""
        self._release_upload = release

    async def stop(self) -> None:
        await self._listings.stop()
        await self._releases.stop()

    # Calls: here at once, and everywhere else. `BrokerError`: the others may not have heard of it.

    async def subscribe(self, call: Subscribe) -> Error | None:
        """The error is of this replica; the others tell none. Raises `BrokerError`."""
        here = self._target.subscribe(call)
        await self._send(call, [])
        return await here

    async def unsubscribe(self, call: Unsubscribe) -> None:
        """Raises `BrokerError`."""
        self._target.unsubscribe(call)
        await self._send(call, [])

    async def disconnect(self, call: Disconnect) -> None:
        """Raises `BrokerError`."""
        self._target.disconnect(call)
        await self._send(call, [])

    async def refresh(self, call: Refresh) -> None:
        """Raises `BrokerError`."""
        self._target.refresh(call)
        await self._send(call, [])

    async def forget(self, channel: str) -> None:
        """Raises `BrokerError`."""
        self._target.forget(channel)
        await self._send(Forget(channel=channel), [])

    # Questions

    async def channels(self, pattern: str = "", *, cursor: str = "", limit: int = MAX_NAMES) -> ChannelsPage:
        """One page of the channels that have subscribers anywhere and match the glob `pattern` ("" = all).

        `limit` is 1 to `MAX_NAMES`; go on with the returned page's cursor. Raises `BrokerError`.
        """
        if not 1 <= limit <= MAX_NAMES:
            raise ValueError(f"a limit of {limit}, not 1 to {MAX_NAMES}")
        question = AskChannels(id=new_id(), pattern=pattern, cursor=cursor, limit=limit)
        here = await list_channels(self._target, question)
        answers, missing = await self._questions.ask(question)
        pages = [here, *(answer for answer in answers.values() if isinstance(answer, Channels))]
        return merge(pages, limit=limit, missing=missing)

    async def info(self) -> InfoPage:
        """Every replica's numbers, this one's first. Raises `BrokerError`."""
        answers, missing = await self._questions.ask(AskInfo(id=new_id()))
        others = [answer.info for answer in answers.values() if isinstance(answer, Info)]
        return InfoPage([self._target.info(), *sorted(others, key=lambda info: info.name)], missing)

    async def emulate(self, replica: str, session: str, data: bytes) -> bool:
        """Hand a frame to the connection that `replica` holds; False: it knows no such session.

        Frames given here one after another arrive in that order. Raises `UnknownReplica`, TimeoutError, and
        `BrokerError`.
        """
        if replica == self.replica:
            return self._target.emulate(session, data)
        if replica not in self._living():
            raise UnknownReplica(replica)
        question = Emulate(id=new_id(), session=session, data=data)
        answers, _ = await self._questions.ask(question, replica)
        answer = answers.get(replica)
        if not isinstance(answer, Emulated):
            raise TimeoutError(f"{replica} did not take a frame")
        return answer.known

    async def let_go(self, replica: str, upload: str, offset: int | None) -> None:
        """Ask `replica` to make safe what it has of an upload, and to let go of it at `offset`.

        Returns when it has answered, or will not. Raises `BrokerError`.
        """
        if replica in self._living():
            await self._questions.ask(LetGo(id=new_id(), upload=upload, offset=offset), replica)

    # The channels

    async def _send(self, message: Message, targets: list[str]) -> None:
        channel = control_channel(targets[0]) if len(targets) == 1 else CONTROL
        body = encode(message, sender=self.replica, targets=targets)
        await self._broker.send(channel, envelope.encode(envelope.Control(body)))

    def receive(self, payload: bytes) -> None:
        """One payload of `channels_to_hear`. Never raises; what this version does not know is counted."""
        try:
            control = envelope.decode(payload)
            if not isinstance(control, envelope.Control):
                raise envelope.UnknownEnvelope("not a control message")
            frame = decode_frame(control.body)
            if not frame.v:
                self._on_beat(msgspec.json.decode(control.body, type=Beat))
            # The own echo: it was done before it was sent.
            elif frame.sender != self.replica and (not frame.targets or self.replica in frame.targets):
                self._do(frame.sender, decode_message(frame))
        except (envelope.UnknownEnvelope, msgspec.DecodeError) as error:
            self._metrics.unknown_envelopes.inc()
            log.warning("skipped a control message that this version does not know", error=str(error))

    def _do(self, sender: str, message: Message) -> None:
        match message:
            case Subscribe():
                self._target.subscribe(message).add_done_callback(_subscribed)
            case Unsubscribe():
                self._target.unsubscribe(message)
            case Disconnect():
                self._target.disconnect(message)
            case Refresh():
                self._target.refresh(message)
            case Forget():
                self._target.forget(message.channel)
            case AskChannels():
                if len(self._listings) < MAX_LISTINGS:
                    self._listings.run(self._list_for(sender, message), "list of channels")
                else:
                    log.warning("too many surveys of channels; one is not answered", sender=sender)
            case AskInfo():
                self._answer(sender, Info(id=message.id, info=self._target.info()))
            case Emulate():
                known = self._target.emulate(message.session, message.data)
                self._answer(sender, Emulated(id=message.id, known=known))
            case LetGo():
                if len(self._releases) < MAX_UPLOADS:
                    self._releases.run(self._let_go_for(sender, message), "release of an upload")
                else:
                    log.warning("too many uploads are asked for; one is not answered", sender=sender)
            case Channels() | Info() | Emulated() | LetGone():
                self._questions.answered(sender, message)

    def _answer(self, asker: str, answer: Answer) -> None:
        channel = control_channel(asker)
        body = encode(answer, sender=self.replica, targets=[asker])
        self._broker.send(channel, envelope.encode(envelope.Control(body))).add_done_callback(_answered)

    async def _let_go_for(self, asker: str, question: LetGo) -> None:
        if self._release_upload is not None:
            await self._release_upload(question.upload, question.offset)
        self._answer(asker, LetGone(id=question.id))

    async def _list_for(self, asker: str, question: AskChannels) -> None:
        self._answer(asker, await list_channels(self._target, question))


def _answered(sent: asyncio.Future[None]) -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        # Whoever asked waits in vain, and names this replica as missing.
        log.warning("an answer to another replica was not sent", error=str(error))


def _subscribed(done: asyncio.Future[Error | None]) -> None:
    if not done.cancelled() and (error := done.exception() or done.result()) is not None:
        log.info("not subscribed on behalf of another replica", error=str(error))
