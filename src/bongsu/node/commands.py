"""The commands of a connection that change nothing about it: publish, history, presence, rpc, send.

Source: the Centrifuge client protocol, §4.5, §6.3, §8.1, §12.3.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from bongsu.brokers.base import Appended, BrokerError, OutcomeUnknown, TooManyMembers
from bongsu.node.channels import ChannelError, ChannelRules
from bongsu.node.handlers import Caller, RpcError
from bongsu.node.permissions import check_history, check_presence, check_publish
from bongsu.protocol import errors
from bongsu.protocol.codec.documents import DocumentError, canonical
from bongsu.protocol.errors import Error
from bongsu.protocol.messages import (
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    Reply,
    RPCRequest,
    RPCResult,
    SendRequest,
)

if TYPE_CHECKING:
    from bongsu.node.connection import Connection

log = structlog.get_logger("bongsu.node.commands")

Request = PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest | SendRequest
Result = PresenceResult | PresenceStatsResult | HistoryResult | RPCResult

MAX_PUBLISHING = 32
"""Publications of one connection on their way to the broker."""


class Publishing:
    """The publications of one connection that are on their way to the broker.

    Each is begun without waiting for the one before it, so that many travel together. Answers leave in the
    order of the commands, also those that were known at once.
    """

    __slots__ = ("_connection", "_unanswered")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unanswered: deque[tuple[int, asyncio.Future[Appended] | Error]] = deque()

    def __len__(self) -> int:
        return len(self._unanswered)

    async def begin(self, id: int, request: PublishRequest) -> None:
        """Judge `request` now, and send it on its way. Never waits."""
        outcome = _publish(self._connection, request)
        self._unanswered.append((id, outcome))
        if isinstance(outcome, Error) or outcome.done():
            self._answer()
        else:
            outcome.add_done_callback(self._answer)

    def _answer(self, _: object = None) -> None:
        """Answer all that is known, up to the first that is not."""
        unanswered, connection = self._unanswered, self._connection
        answered = False
        while unanswered:
            id, outcome = unanswered[0]
            if not (isinstance(outcome, Error) or outcome.done()):
                break
            unanswered.popleft()
            answered = True
            if not connection.is_over():
                _tell(connection, id, outcome)
        if answered:  # and not with one that came before
            connection.published()


def _tell(connection: Connection, id: int, outcome: asyncio.Future[Appended] | Error) -> None:
    answer: PublishResult | Error
    if isinstance(outcome, Error):
        answer = outcome
    else:
        match outcome.exception():
            case None:
                answer = PublishResult()
            case BrokerError() as error:
                answer = _failed(connection, error, repeatable=False)
            case error:  # a bug, which must not leave the client waiting for ever
                log.error("a publication failed", client=connection.id, exc_info=error)
                connection.close(errors.INTERNAL_SERVER_ERROR)
                return
    connection.reply(Reply(id, answer))


def perform(connection: Connection, id: int, request: Request) -> Coroutine[Any, Any, None]:
    """Answer `request`; a send command has no answer."""
    if isinstance(request, SendRequest):
        return _message(connection, request)
    return _answered(connection, id, request)


async def _answered(
    connection: Connection,
    id: int,
    request: PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest,
) -> None:
    try:
        if isinstance(request, RPCRequest):
            answer: Result | Error = await _rpc(connection, request)
        else:
            rules = connection.services.channels.rules(request.channel)
            match request:
                case HistoryRequest():
                    answer = await _history(connection, rules, request)
                case PresenceRequest():
                    answer = await _presence(connection, rules)
                case PresenceStatsRequest():
                    answer = await _presence_stats(connection, rules)
    except ChannelError as error:
        answer = error.error
    except TooManyMembers:
        answer = errors.ERROR_LIMIT_EXCEEDED
    except BrokerError as error:
        answer = _failed(connection, error, repeatable=True)
    if not connection.is_over():
        connection.reply(Reply(id, answer))


def _failed(connection: Connection, error: BrokerError, *, repeatable: bool) -> Error:
    if isinstance(error, OutcomeUnknown):
        # A publication may have happened: "temporary" would invite to do it again.
        log.warning("the outcome of a command is unknown", client=connection.id, error=str(error))
        return errors.ERROR_INTERNAL._replace(temporary=repeatable)
    log.info("a command was refused", client=connection.id, error=str(error))
    return errors.ERROR_INTERNAL


def _publish(connection: Connection, request: PublishRequest) -> asyncio.Future[Appended] | Error:
    try:
        rules = connection.services.channels.rules(request.channel)
    except ChannelError as error:
        return error.error
    refusal = check_publish(
        rules,
        user=connection.user,
        subscribed=connection.session.is_subscribed(rules.name),
        data=request.data,
        insecure=connection.services.options.insecure,
    )
    if refusal is not None:
        return refusal
    data, binary = request.data, False
    if connection.codec.name != "json":
        try:
            data = canonical(data)
        except DocumentError:
            binary = True
    publication = Publication(
        data,
        info=connection.subscriptions.info(rules.name),
        binary=binary,
        patchable=rules.options.delta_publish,
    )
    return connection.services.node.publish(rules, publication)


async def _history(
    connection: Connection, rules: ChannelRules, request: HistoryRequest
) -> HistoryResult | Error:
    refusal = check_history(
        rules,
        user=connection.user,
        subscribed=connection.session.is_subscribed(rules.name),
        insecure=connection.services.options.insecure,
    )
    if refusal is not None:
        return refusal
    most = connection.services.options.history_max_publication_limit
    limit = most if request.limit < 0 else min(request.limit, most)
    return await connection.services.node.history(
        rules, since=request.since, limit=limit, reverse=request.reverse
    )


async def _presence(connection: Connection, rules: ChannelRules) -> PresenceResult | Error:
    refusal = _presence_refusal(connection, rules)
    presence = connection.services.node.roster.presence
    if refusal is not None or presence is None:
        return refusal or errors.ERROR_NOT_AVAILABLE
    return PresenceResult(await presence.presence(rules.name))


async def _presence_stats(connection: Connection, rules: ChannelRules) -> PresenceStatsResult | Error:
    refusal = _presence_refusal(connection, rules)
    presence = connection.services.node.roster.presence
    if refusal is not None or presence is None:
        return refusal or errors.ERROR_NOT_AVAILABLE
    return await presence.presence_stats(rules.name)


def _presence_refusal(connection: Connection, rules: ChannelRules) -> Error | None:
    return check_presence(
        rules,
        user=connection.user,
        subscribed=connection.session.is_subscribed(rules.name),
        insecure=connection.services.options.insecure,
    )


async def _rpc(connection: Connection, request: RPCRequest) -> RPCResult | Error:
    handlers = connection.services.handlers.rpc
    if not handlers:
        return errors.ERROR_NOT_AVAILABLE
    handler = handlers.get(request.method)
    if handler is None:
        return errors.ERROR_METHOD_NOT_FOUND
    await asyncio.sleep(0)  # whatever the handler does, it may count on a task of its own
    try:
        return RPCResult(await handler(Caller(connection.user, connection.id), request.data))
    except RpcError as error:
        return error.error
    except Exception:  # the application's own; its client is told, and the log says what
        log.exception("an rpc handler failed", method=request.method)
        return errors.ERROR_INTERNAL._replace(temporary=False)


async def _message(connection: Connection, request: SendRequest) -> None:
    handler = connection.services.handlers.message
    if handler is None:
        connection.close(errors.NOT_AVAILABLE)
        return
    await asyncio.sleep(0)  # as above
    try:
        await handler(Caller(connection.user, connection.id), request.data)
    except Exception:  # as above; there is nobody to answer
        log.exception("the message handler failed")
