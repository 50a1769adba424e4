"""The subscriptions of one connection: how one begins, what it catches up with, how it ends.

A subscription begins in the order that closes every gap: reserved, heard by the broker, joined in the hub
(from here on nothing is missed, but kept aside), listed, its stream read, answered, live.

Source: the Centrifuge client protocol, §5 "Subscriptions", §6 "History and recovery".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from bongsu.auth import ChannelOverride, KeysUnavailable, ServerSubscription, TokenError, TokenExpired
from bongsu.brokers.base import BrokerError
from bongsu.node.channel import Channel
from bongsu.node.channels import ChannelError, ChannelOptions, ChannelRules
from bongsu.node.permissions import (
    NO_OVERRIDE,
    SubscriptionOptions,
    Verified,
    check_subscribe,
    check_subscription_refresh,
    subscription_options,
)
from bongsu.node.recovery import NOT_RECOVERED, Recovery, recover_cache, recover_stream
from bongsu.node.tasks import within
from bongsu.node.variants import ClientVariant
from bongsu.protocol import errors
from bongsu.protocol.codec.documents import DocumentError, canonical
from bongsu.protocol.errors import Disconnect, Error
from bongsu.protocol.messages import (
    ClientInfo,
    ConnectRequest,
    Publication,
    Reply,
    StreamPosition,
    SubRefreshResult,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
)
from bongsu.protocol.problems import Problem

if TYPE_CHECKING:
    from bongsu.node.connection import Connection

READY_TIMEOUT = 2.0
"""Seconds for the broker to hear a channel, to list a member, and for a look into a stream.

SDKs wait 5 for an answer. After ours, a temporary error, they try again by themselves.
"""

log = structlog.get_logger("bongsu.node.subscriptions")


class Ended(Exception):
    """The connection cannot go on: close it with `disconnect`."""

    def __init__(self, disconnect: Disconnect) -> None:
        super().__init__(disconnect.reason)
        self.disconnect = disconnect


class ConnectRefused(Exception):
    """The connect command is answered with `error`."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class Wish:
    """A subscription that is allowed, before it begins."""

    rules: ChannelRules
    request: SubscribeRequest
    options: SubscriptionOptions
    server_side: bool
    chan_info: bytes = b""
    data: bytes = b""
    expire_at: float | None = None
    refreshable: bool = False


@dataclass(slots=True)
class Subscription:
    """One that has begun. `position` is what its answer says; None: it follows no stream."""

    wish: Wish
    channel: Channel
    variant: ClientVariant
    result: SubscribeResult
    position: StreamPosition | None = None

    @property
    def name(self) -> str:
        return self.channel.name


class Subscriptions:
    """By channel name. The session knows which are reserved; these have a place in the hub."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._services = connection.services
        self._by_name: dict[str, Subscription] = {}
        self.of_token: set[str] = set()
        """Channels that the connection token subscribed."""

    def info(self, name: str) -> ClientInfo:
        """Who this is in channel `name`, as others see it."""
        subscription = self._by_name.get(name)
        connection = self._connection
        chan_info = subscription.wish.chan_info if subscription is not None else b""
        return ClientInfo(connection.user, connection.id, connection.conn_info, chan_info)

    # Begin: a command of the client

    async def subscribe(self, id: int, request: SubscribeRequest) -> None:
        """Answer a subscribe command; its place is reserved. Raises `Ended`."""
        connection = self._connection
        wish = await self._wish(request)
        begun = await self._begin(wish) if isinstance(wish, Wish) else wish
        if isinstance(begun, Error):
            connection.session.unsubscribed(request.channel)
            connection.reply(Reply(id, begun))
            return
        if not connection.is_over():
            connection.reply(Reply(id, begun.result))
        self.go_live(begun)

    async def _wish(self, request: SubscribeRequest) -> Wish | Error:
        """What the client may have of what it asks for. Raises `Ended`."""
        connection, services = self._connection, self._services
        try:
            rules = services.channels.rules(request.channel)
        except ChannelError as error:
            return error.error
        verified = await self._verified(request.token) if request.token else None
        insecure = services.options.insecure
        refusal = check_subscribe(
            rules, user=connection.user, client=connection.id, token=verified, insecure=insecure
        )
        if isinstance(refusal, Disconnect):
            raise Ended(refusal)
        if refusal is errors.ERROR_PERMISSION_DENIED and not request.token:
            refusal = await self._check_owner(rules)
        if refusal is not None:
            return refusal
        token = None if isinstance(verified, TokenError) else verified
        options = subscription_options(
            rules,
            request,
            user=connection.user,
            insecure=insecure,
            override=token.override if token is not None else NO_OVERRIDE,
        )
        if isinstance(options, Error):
            return options
        wish = Wish(rules, request, options, server_side=False)
        if token is not None:
            wish.chan_info, wish.data, wish.expire_at = token.info, token.data, token.expire_at
            wish.refreshable = token.expire_at is not None
            if token.expire_at is not None and token.expire_at <= time.time():
                return errors.ERROR_EXPIRED
        return wish

    async def _check_owner(self, rules: ChannelRules) -> Error | None:
        """What nobody may hear by its options, the owner of an upload may."""
        try:
            owns = await self._services.may_hear_upload(rules, self._connection.user)
        except Problem as problem:
            log.warning("it is not known whose an upload is", error=problem.detail)
            return errors.ERROR_INTERNAL  # temporary: the client asks again by itself
        return None if owns else errors.ERROR_PERMISSION_DENIED

    async def _verified(self, token: str) -> Verified:
        try:
            return await self._services.subscription_tokens.verify_subscription(token, now=time.time())
        except TokenError as error:
            log.info("a subscription token was refused", client=self._connection.id, reason=error.reason)
            return error

    # Begin: the server's own

    async def connect(
        self, request: ConnectRequest, of_token: dict[str, ServerSubscription]
    ) -> dict[str, Subscription]:
        """Begin all server-side subscriptions of a new connection, together. Raises `Ended`,
        `ConnectRefused`.
        """
        connection, options = self._connection, self._services.options
        self.of_token = set(of_token)
        wishes: dict[str, Wish] = {}
        for name, given in of_token.items():
            asked = request.subs.get(name, SubscribeRequest(channel=name))
            wishes[name] = self._server_wish(
                name, asked, given.override, info=given.info, data=given.data, expire_at=None
            )
        personal = options.subscribe_to_user_personal_channel
        if personal.enabled and connection.user:
            try:
                name = self._services.channels.personal(connection.user, personal.personal_channel_namespace)
            except ChannelError:
                log.warning("a user without a personal channel", client=connection.id)
            else:
                asked = request.subs.get(name, SubscribeRequest(channel=name))
                wishes.setdefault(name, self._server_wish(name, asked, NO_OVERRIDE))
        for name, asked in request.subs.items():
            if name not in wishes:
                asked.channel = name
                wish = await self._wish(asked)
                if wish is errors.ERROR_UNKNOWN_CHANNEL:
                    raise Ended(errors.BAD_REQUEST)
                if isinstance(wish, Wish):
                    wish.server_side = True
                    wishes[name] = wish
        if not wishes:  # as most
            return {}
        for name in wishes:
            if (refusal := connection.session.reserve(name, server_side=True)) is not None:
                limit = refusal is errors.ERROR_LIMIT_EXCEEDED
                raise Ended(errors.CHANNEL_LIMIT if limit else errors.BAD_REQUEST)
        begun = await asyncio.gather(*[self._begin(wish) for wish in wishes.values()], return_exceptions=True)
        entered: dict[str, Subscription] = {}
        for name, one in zip(wishes, begun, strict=True):
            if isinstance(one, BaseException):
                raise one
            if isinstance(one, Error):
                raise ConnectRefused(one)
            entered[name] = one
        return entered

    async def subscribe_by_server(
        self,
        name: str,
        *,
        info: bytes,
        data: bytes,
        expire_at: float | None,
        override: ChannelOverride | None,
        since: StreamPosition | None,
    ) -> Error | None:
        """A server-side subscription in the middle of a connection's life. Raises `Ended`."""
        connection = self._connection
        asked = SubscribeRequest(channel=name)
        if since is not None:
            asked.recover, asked.offset, asked.epoch = True, since.offset, since.epoch
        try:
            wish = self._server_wish(
                name, asked, override or NO_OVERRIDE, info=info, data=data, expire_at=expire_at
            )
        except ConnectRefused as refused:
            return refused.error
        if (refusal := connection.session.reserve(name, server_side=True)) is not None:
            return refusal
        begun = await self._begin(wish)
        if isinstance(begun, Error):
            connection.session.unsubscribed(name)
            return begun
        if not connection.is_over():
            result = begun.result
            # The push has no room for publications: what was missed comes behind it, one by one.
            top = begun.position or StreamPosition()
            push = Subscribe(
                recoverable=result.recoverable,
                epoch=result.epoch,
                offset=top.offset - len(result.publications),
                positioned=result.positioned,
                data=result.data,
            )
            connection.push(name, push)
            for publication in result.publications:
                connection.push(name, publication)
        self.go_live(begun)
        return None

    def _server_wish(
        self,
        name: str,
        asked: SubscribeRequest,
        override: ChannelOverride,
        *,
        info: bytes = b"",
        data: bytes = b"",
        expire_at: float | None = None,
    ) -> Wish:
        """No permission is asked for: the server wants it. Raises `ConnectRefused`."""
        try:
            rules = self._services.channels.rules(name)
        except ChannelError as error:
            raise ConnectRefused(error.error) from None
        options = subscription_options(
            rules,
            asked,
            user=self._connection.user,
            insecure=self._services.options.insecure,
            override=override,
        )
        if isinstance(options, Error):
            raise ConnectRefused(options)
        return Wish(rules, asked, options, True, _payload(info), _payload(data), expire_at)

    # Begin: what both have in common

    async def _begin(self, wish: Wish) -> Subscription | Error:
        """Everything up to the answer. Undone when it fails. Raises `Ended`."""
        connection, node = self._connection, self._services.node
        options, name = wish.options, wish.rules.name
        variant = ClientVariant(
            connection.codec,
            connection.form,
            positioned=options.positioned,
            joins=options.push_join_leave,
            delta=bool(options.delta),
            filter=wish.request.tf,
        )
        channel = node.hub.reserve(name)
        channel.meta_ttl = wish.rules.options.history_meta_ttl
        channel.policy = wish.rules.options.policy
        subscription = Subscription(wish, channel, variant, _result(wish))
        self._by_name[name] = subscription
        try:
            await within(READY_TIMEOUT, node.hub.ready(channel))
            if connection.is_over():  # it has left everything already: what it joined now would stay for ever
                raise Ended(errors.CONNECTION_CLOSED)
            node.hub.join(channel, connection.client, variant)
            self._show(subscription)
            if options.presence:
                # Who subscribes and asks who is here must find himself.
                await within(READY_TIMEOUT, asyncio.ensure_future(node.roster.settle()))
            if options.positioned:
                refusal = await self._catch_up(subscription)
                if refusal is not None:
                    self.leave(name)
                    return refusal
        except (BrokerError, TimeoutError) as error:
            log.warning("a subscription failed", client=connection.id, channel=name, error=str(error))
            self.leave(name)
            return errors.ERROR_INTERNAL  # temporary: the client tries again by itself, and keeps the rest
        except BaseException:
            self.leave(name)
            raise
        finally:
            node.hub.release(channel)
        if connection.is_over():
            raise Ended(errors.CONNECTION_CLOSED)
        position = subscription.position
        if position is not None and not node.hub.follows(channel, connection.client, position):
            self.leave(name)
            raise Ended(errors.INSUFFICIENT_STATE)
        return subscription

    def _show(self, subscription: Subscription) -> None:
        """Who this is in the channel: others find it in its presence, and in its leave."""
        options, name = subscription.wish.options, subscription.name
        if options.presence or options.join_leave:
            self._services.node.roster.want(
                name,
                self._connection.id,
                self.info(name),
                stored=options.presence,
                announced=options.join_leave,
            )

    def go_live(self, subscription: Subscription) -> None:
        """The answer is emitted: what came meanwhile follows it, then what comes, then the own join."""
        connection, wish, name = self._connection, subscription.wish, subscription.name
        expire_at = wish.expire_at
        ends_at = None
        if expire_at is not None:
            ends_at = asyncio.get_running_loop().time() + expire_at - time.time()
        alive = connection.session.subscribed(name, refreshable=wish.refreshable, expires_at=ends_at)
        if not alive or connection.is_over():
            self.leave(name)
            return
        hub = self._services.node.hub
        hub.admit(subscription.channel, connection.client, subscription.position, subscription.variant)

    # The stream

    async def _catch_up(self, subscription: Subscription) -> Error | None:
        """Fill in the position, and what was missed. Raises `BrokerError`, TimeoutError."""
        wish, channel, result = subscription.wish, subscription.channel, subscription.result
        request, options = wish.request, wish.options
        since = StreamPosition(request.offset, request.epoch)
        top, recovery = self._from_ring(channel, since, options, wish.rules.options)
        if top is None:
            top, recovery = await self._from_history(channel, since, options)
        subscription.position = top
        result.positioned, result.recoverable = True, options.recoverable
        result.epoch, result.offset = top.epoch, top.offset
        if not options.recover:
            return None
        self._services.count_recovery(recovered=recovery.recovered)
        if not recovery.recovered:
            # A cache that has nothing is no loss for somebody who only asks what there is.
            return errors.ERROR_UNRECOVERABLE_POSITION if request.reject_unrecovered else None
        result.recovered, result.offset = True, request.offset
        result.publications = self._wire(subscription, recovery.publications)
        if recovery.publications:
            # The client has the last publication of the stream now: the next one may be a patch to it. With
            # none, its position may be one that it was only told when it subscribed.
            subscription.variant = subscription.variant._replace(chained=subscription.variant.delta)
        return None

    def _from_ring(
        self, channel: Channel, since: StreamPosition, options: SubscriptionOptions, rules: ChannelOptions
    ) -> tuple[StreamPosition | None, Recovery]:
        """From what the hub saw, without asking the broker; None where it cannot tell."""
        if not channel.followed or channel.held is not None:
            return None, NOT_RECOVERED
        top = StreamPosition(channel.offset, channel.epoch)
        if not options.recover:
            return top, NOT_RECOVERED
        if since.epoch not in ("", channel.epoch):
            return None, NOT_RECOVERED
        # The ring may reach further back than the history: what is promised is the history.
        expired = time.monotonic() - channel.remembered_at >= rules.history_ttl
        if options.cache:
            newest = channel.ring[-1] if channel.ring else None
            if expired or newest is None or newest.offset != top.offset:
                return None, NOT_RECOVERED
            return top, recover_cache(since, newest, top)
        missed = channel.since(since.offset)
        limit = min(rules.history_size, self._services.options.recovery_max_publication_limit)
        if missed is None or len(missed) > limit or (missed and expired):
            return None, NOT_RECOVERED
        return top, Recovery(True, missed)

    async def _from_history(
        self, channel: Channel, since: StreamPosition, options: SubscriptionOptions
    ) -> tuple[StreamPosition, Recovery]:
        """From the broker. Raises `BrokerError`, TimeoutError."""
        limit = self._services.options.recovery_max_publication_limit
        if not options.recover:
            reading = self._services.node.read(channel, since=None, limit=0)
        elif options.cache:
            reading = self._services.node.read(channel, since=None, limit=1, reverse=True)
        else:
            reading = self._services.node.read(channel, since=since, limit=limit)
        page = await within(READY_TIMEOUT, reading)
        top = StreamPosition(page.offset, page.epoch)
        if not options.recover:
            return top, NOT_RECOVERED
        if options.cache:
            return top, recover_cache(since, page.publications[0] if page.publications else None, top)
        return top, recover_stream(since, page.publications, top)

    def _wire(self, subscription: Subscription, missed: Sequence[Publication]) -> list[Publication]:
        """`missed` as this client asked for them: filtered, or as a chain of deltas."""
        codec, wanted = self._connection.codec, subscription.wish.options.filter
        if wanted is not None:
            return [one for one in missed if wanted(one.tags or {})]
        if not subscription.variant.delta:
            return list(missed)
        chain: list[Publication] = []
        base: bytes | None = None
        for one in missed:
            chain.append(codec.delta_form(one, base if one.patchable else None))
            base = one.data
        return chain

    # Refresh

    def show_all(self) -> None:
        """The connection's own info has changed."""
        for subscription in self._by_name.values():
            self._show(subscription)

    async def refresh(self, id: int, channel: str, text: str) -> None:
        """Answer a sub_refresh command. Raises `Ended`."""
        connection = self._connection
        verified = await self._verified(text)
        refusal = check_subscription_refresh(
            channel, user=connection.user, client=connection.id, token=verified
        )
        if isinstance(refusal, Disconnect):
            raise Ended(refusal)
        if refusal is not None or isinstance(verified, TokenError):
            expired = isinstance(verified, TokenExpired)
            unavailable = isinstance(verified, KeysUnavailable)
            error = errors.ERROR_TOKEN_EXPIRED if expired else errors.ERROR_INTERNAL
            connection.reply(
                Reply(id, refusal or (error if expired or unavailable else errors.ERROR_INTERNAL))
            )
            return
        expire_at = verified.expire_at
        if expire_at is not None and expire_at <= time.time():
            connection.reply(Reply(id, errors.ERROR_EXPIRED))
            return
        if (subscription := self._by_name.get(channel)) is not None:
            subscription.wish.chan_info = verified.info
            self._show(subscription)
        left = None if expire_at is None else expire_at - time.time()
        result = SubRefreshResult(expires=left is not None, ttl=0 if left is None else max(1, round(left)))
        ends_at = None if left is None else asyncio.get_running_loop().time() + left
        for action in connection.session.subscription_refreshed(id, channel, result, expires_at=ends_at):
            connection.perform_at_once(action)

    # End

    def leave(self, name: str) -> None:
        """Out of the channel, at once; the others are told in order."""
        connection, node = self._connection, self._services.node
        connection.session.unsubscribed(name)
        subscription = self._by_name.pop(name, None)
        if subscription is None:
            return
        node.hub.leave(subscription.channel, connection.client)
        node.roster.drop(name, connection.id)

    def leave_all(self) -> None:
        """The connection is over."""
        for name in list(self._by_name):
            self.leave(name)

    def names(self) -> list[str]:
        return list(self._by_name)

    def let_go(self) -> None:
        """The connection has ended, and asks nothing more."""
        del self._connection


def _result(wish: Wish) -> SubscribeResult:
    expires = wish.refreshable and wish.expire_at is not None
    left = (wish.expire_at or 0) - time.time()
    return SubscribeResult(
        expires=expires,
        ttl=max(1, round(left)) if expires else 0,
        data=wish.data,
        # Also where nothing is kept: the client is to know that what it asked for was not recovered.
        was_recovering=wish.request.recover or wish.options.recover,
        delta=bool(wish.options.delta),
    )


def _payload(document: bytes) -> bytes:
    """JSON for the wire, or what it is: then only clients of binary protocols can be sent it."""
    try:
        return canonical(document) if document else b""
    except DocumentError:
        return document
