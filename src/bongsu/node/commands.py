"""The commands of a connection that change nothing about it: publish, history, presence, rpc, send.

Source: the Centrifuge client protocol, §4.5, §6.3, §8.1, §12.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from bongsu.brokers.base import BrokerError, OutcomeUnknown, TooManyMembers
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

Request = PublishRequest | PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest | SendRequest
Result = PublishResult | PresenceResult | PresenceStatsResult | HistoryResult | RPCResult


def perform(connection: Connection, id: int, request: Request) -> Coroutine[Any, Any, None]:
    """Answer `request`; a send command has no answer."""
    if isinstance(request, SendRequest):
        return _message(connection, request)
    return _answered(connection, id, request)


async def _answered(
    connection: Connection,
    id: int,
    request: PublishRequest | PresenceRequest | PresenceStatsRequest | HistoryRequest | RPCRequest,
) -> None:
    try:
        if isinstance(request, RPCRequest):
            answer: Result | Error = await _rpc(connection, request)
        else:
            rules = connection.services.channels.rules(request.channel)
            match request:
                case PublishRequest():
                    answer = await _publish(connection, rules, request)
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
    except OutcomeUnknown as error:
        # A publication may have happened: "temporary" would invite to do it again.
        log.warning("the outcome of a command is unknown", client=connection.id, error=str(error))
        answer = errors.ERROR_INTERNAL._replace(temporary=not isinstance(request, PublishRequest))
    except BrokerError as error:
        log.info("a command was refused", client=connection.id, error=str(error))
        answer = errors.ERROR_INTERNAL
    if not connection.is_over():
        connection.reply(Reply(id, answer))


async def _publish(
    connection: Connection, rules: ChannelRules, request: PublishRequest
) -> PublishResult | Error:
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
    await connection.services.node.publish(rules, publication)
    return PublishResult()


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
