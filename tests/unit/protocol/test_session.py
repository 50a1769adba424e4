"""What a connection may do next. Conversations as a whole are in tests/transcripts."""

from __future__ import annotations

import pytest

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
from bongsu.protocol.errors import Error
from bongsu.protocol.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    RefreshResult,
    Reply,
    Request,
    RPCRequest,
    SendRequest,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    UnsubscribeRequest,
    UnsubscribeResult,
)
from bongsu.protocol.session import Session, SessionOptions

CONNECT = Command(1, ConnectRequest())
PONG = Command()


def bad_request() -> list[Action]:
    return [Close(errors.BAD_REQUEST)]


def error(id: int, error: Error) -> list[Action]:
    return [Send(Reply(id, error))]


def connected(
    options: SessionOptions | None = None, *, refreshable: bool = False, expires_at: float | None = None
) -> Session:
    """A session that was accepted and connected at 0; its first ping is due at 20."""
    session = Session(options or SessionOptions(), now=0)
    assert session.receive(CONNECT, now=0) == [Authenticate(1, ConnectRequest())]
    result = ConnectResult(client="c", version="v", expires=refreshable)
    assert session.connected(1, result, now=0, jitter=0.6, expires_at=expires_at) == [Send(Reply(1, result))]
    return session


def subscribed(session: Session, channel: str, *, server_side: bool = False, **kwargs: float | bool) -> None:
    assert session.reserve(channel, server_side=server_side) is None
    assert session.subscribed(channel, **kwargs)  # type: ignore[arg-type]  # refreshable, expires_at


# ---- connecting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        PONG,
        Command(1),
        Command(0, ConnectRequest()),
        Command(1, SubscribeRequest("c")),
        Command(0, SendRequest()),
    ],
)
def test_anything_but_connect_first_closes(command: Command) -> None:
    assert Session(SessionOptions(), now=0).receive(command, now=0) == bad_request()


def test_a_second_connect_closes_before_and_after_the_first_succeeded() -> None:
    session = Session(SessionOptions(), now=0)
    session.receive(CONNECT, now=0)
    assert session.receive(CONNECT, now=0) == bad_request()
    assert connected().receive(CONNECT, now=1) == bad_request()


def test_after_a_refused_connect_the_next_command_closes() -> None:
    session = Session(SessionOptions(), now=0)
    session.receive(CONNECT, now=0)
    assert session.refused(1, errors.ERROR_TOKEN_EXPIRED) == error(1, errors.ERROR_TOKEN_EXPIRED)
    assert session.receive(CONNECT, now=1) == bad_request()


@pytest.mark.parametrize("refused", [False, True])
def test_a_connection_that_does_not_get_connected_is_stale(refused: bool) -> None:
    session = Session(SessionOptions(stale_close_delay=10), now=5)
    session.receive(CONNECT, now=5)
    if refused:
        session.refused(1, errors.ERROR_TOKEN_EXPIRED)
    assert session.deadline == 15
    assert session.tick(now=14.9) == []
    assert session.tick(now=15) == [Close(errors.STALE)]


def test_a_command_that_comes_after_the_deadline_is_not_obeyed_though_the_timer_is_late() -> None:
    assert Session(SessionOptions(), now=0).receive(CONNECT, now=10) == [Close(errors.STALE)]


def test_the_result_tells_of_pings_as_they_will_be_sent() -> None:
    for options, ping, pong in [
        (SessionOptions(ping_interval=0.5, pong_timeout=0.1), 1, True),
        (SessionOptions(ping_interval=25, pong_timeout=0), 25, False),
        (SessionOptions(ping_interval=0), 0, False),
    ]:
        session = Session(options, now=0)
        session.receive(CONNECT, now=0)
        result = ConnectResult(client="c", version="v")
        session.connected(1, result, now=0, jitter=0)
        assert (result.ping, result.pong) == (ping, pong)


def test_a_pong_timeout_that_reaches_the_next_ping_is_refused() -> None:
    with pytest.raises(ValueError, match="less than ping_interval"):
        SessionOptions(ping_interval=8, pong_timeout=8)


def test_nothing_follows_a_close() -> None:
    session = connected(refreshable=True, expires_at=100)
    subscribed(session, "a", expires_at=50)
    assert session.close(errors.SHUTDOWN) == [Close(errors.SHUTDOWN)]
    assert session.close(errors.SLOW) == []
    assert session.receive(Command(2, PublishRequest("c")), now=1) == []
    assert session.connected(1, ConnectResult(client="c", version="v"), now=1, jitter=0) == []
    assert session.refused(1, errors.ERROR_EXPIRED) == []
    assert session.refreshed(2, RefreshResult(), expires_at=None) == []
    assert session.subscription_refreshed(3, "a", SubRefreshResult(), expires_at=None) == []
    assert session.subscribed("a") is False
    session.expire_at(5)
    assert session.deadline is None
    assert session.tick(now=1000) == []
    assert session.channels == ["a"]  # for the node, to leave


# ---- pings ---------------------------------------------------------------------------------------------


def test_the_first_ping_falls_between_half_an_interval_and_a_whole_one() -> None:
    for jitter, at in [(0.0, 112.5), (0.5, 118.75)]:
        session = Session(SessionOptions(), now=100)
        session.receive(CONNECT, now=100)
        session.connected(1, ConnectResult(client="c", version="v"), now=100, jitter=jitter)
        assert session.deadline == at


def test_each_ping_wants_one_pong_in_time() -> None:
    session = connected()
    assert session.deadline == 20
    assert session.tick(now=20) == [Ping()]
    assert session.deadline == 28
    assert session.receive(PONG, now=27) == []
    assert session.deadline == 45
    assert session.tick(now=45) == [Ping()]
    assert session.tick(now=52.9) == []
    assert session.tick(now=53) == [Close(errors.NO_PONG)]


def test_a_pong_that_nobody_asked_for_closes() -> None:
    assert connected().receive(PONG, now=1) == bad_request()
    session = connected()
    session.tick(now=20)
    session.receive(PONG, now=21)
    assert session.receive(PONG, now=21) == bad_request()


def test_a_pong_read_late_counts_where_the_timer_was_late_too() -> None:
    session = connected()
    session.tick(now=20)
    assert session.receive(PONG, now=40) == []
    assert session.tick(now=40) == []


def test_a_pong_is_taken_when_it_is_read_and_only_where_it_answers_a_ping() -> None:
    session = connected()
    assert not session.take_pong(PONG)
    session.tick(now=20)
    assert not session.take_pong(Command(7, PresenceRequest("c")))
    assert session.take_pong(PONG)
    assert not session.take_pong(PONG)
    assert session.tick(now=28) == []


def test_no_pong_is_missed_while_nothing_is_read() -> None:
    session = connected()
    session.tick(now=20)
    session.heard(False, now=21)
    assert session.tick(now=30) == []
    assert session.tick(now=45) == [Ping()]
    assert session.tick(now=60) == []
    session.heard(True, now=61)
    # Both pongs lay there; from now on one that is missing counts again.
    assert [session.take_pong(PONG) for _ in range(3)] == [True, True, False]
    assert session.tick(now=70) == [Ping()]
    session.heard(False, now=71)
    session.heard(True, now=72)
    assert session.tick(now=79) == []
    assert session.tick(now=80) == [Close(errors.NO_PONG)]


def test_without_a_pong_timeout_pings_go_out_unanswered() -> None:
    session = connected(SessionOptions(pong_timeout=0))
    assert session.tick(now=20) == [Ping()]
    assert session.tick(now=45) == [Ping()]
    assert session.receive(PONG, now=46) == []


def test_any_request_with_id_0_but_send_is_read_as_a_pong() -> None:
    session = connected()
    assert session.receive(Command(0, SendRequest(b"1")), now=1) == [Perform(0, SendRequest(b"1"))]
    session.tick(now=20)
    assert session.receive(Command(0, PublishRequest("c")), now=21) == []
    assert session.receive(Command(0, PublishRequest("c")), now=21) == bad_request()


# ---- commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        PublishRequest("c", b"1"),
        PresenceRequest("c"),
        PresenceStatsRequest("c"),
        HistoryRequest("c"),
        RPCRequest(b"1", "m"),
        SendRequest(b"1"),
    ],
)
def test_what_changes_nothing_here_is_the_nodes_to_perform(request_: Request) -> None:
    (action,) = connected().receive(Command(2, request_), now=1)
    assert isinstance(action, Perform)
    assert (action.id, action.request) == (2, request_)


def test_a_command_without_a_request_that_we_know_closes() -> None:
    assert connected().receive(Command(2), now=1) == bad_request()


@pytest.mark.parametrize(
    "request_",
    [
        SubscribeRequest(),
        UnsubscribeRequest(),
        PublishRequest(),
        PresenceRequest(),
        PresenceStatsRequest(),
        HistoryRequest(),
        SubRefreshRequest(),
    ],
)
def test_an_empty_channel_closes(request_: Request) -> None:
    assert connected().receive(Command(2, request_), now=1) == bad_request()


def test_publishing_into_a_map_is_not_available() -> None:
    actions = connected().receive(Command(2, PublishRequest("c", b"1", 1)), now=1)
    assert actions == error(2, errors.ERROR_NOT_AVAILABLE)


@pytest.mark.parametrize(
    ("command", "publishes"),
    [
        (Command(2, PublishRequest("news", b"1")), True),
        (Command(0, PublishRequest("news", b"1")), False),  # a pong, or no command
        (Command(2, PublishRequest("", b"1")), False),
        (Command(2, PublishRequest("news", b"1", type=1)), False),
        (Command(2, SubscribeRequest("news")), False),
        (PONG, False),
    ],
)
def test_what_will_be_performed_as_a_publication_is_known_before(command: Command, publishes: bool) -> None:
    session = connected()
    assert session.publishes(command) is publishes
    actions = session.receive(command, now=1)
    assert any(isinstance(one, Perform) and one.request is command.request for one in actions) is publishes
    session.close(errors.BAD_REQUEST)
    assert not session.publishes(command)


# ---- subscriptions -------------------------------------------------------------------------------------


def test_a_channel_is_reserved_from_subscribe_to_unsubscribe() -> None:
    session = connected()
    request = SubscribeRequest("c")
    assert session.receive(Command(2, request), now=1) == [Subscribe(2, request)]
    assert session.channels == ["c"]
    assert not session.is_subscribed("c")
    assert session.receive(Command(3, request), now=1) == error(3, errors.ERROR_ALREADY_SUBSCRIBED)
    assert session.subscribed("c")
    assert session.is_subscribed("c")
    assert not session.is_server_side("c")
    assert session.receive(Command(4, request), now=1) == error(4, errors.ERROR_ALREADY_SUBSCRIBED)
    assert session.receive(Command(5, UnsubscribeRequest("c")), now=1) == [Unsubscribe(5, "c")]
    session.unsubscribed("c")
    assert session.channels == []
    assert session.receive(Command(6, request), now=1) == [Subscribe(6, request)]


def test_unsubscribing_from_a_channel_that_is_not_subscribed_is_fine() -> None:
    actions = connected().receive(Command(2, UnsubscribeRequest("c")), now=1)
    assert actions == [Send(Reply(2, UnsubscribeResult()))]


def test_a_server_side_subscription_takes_the_same_places() -> None:
    session = connected(SessionOptions(channel_limit=2))
    subscribed(session, "a", server_side=True)
    assert session.is_server_side("a")
    assert session.reserve("a", server_side=True) == errors.ERROR_ALREADY_SUBSCRIBED
    actions = session.receive(Command(2, SubscribeRequest("a")), now=1)
    assert actions == error(2, errors.ERROR_ALREADY_SUBSCRIBED)
    subscribed(session, "b")
    assert session.reserve("c", server_side=True) == errors.ERROR_LIMIT_EXCEEDED
    session.unsubscribed("a")
    assert session.reserve("c", server_side=True) is None


def test_subscribe_is_checked_in_the_protocols_order() -> None:
    session = connected(SessionOptions(channel_limit=1, channel_max_length=6))
    subscribed(session, "taken")

    def answer(request: SubscribeRequest) -> list[Action]:
        return session.receive(Command(2, request), now=1)

    # expect: each request breaks every rule from one on, and is told of the first
    assert answer(SubscribeRequest("봉수대", delta="x", type=1)) == error(2, errors.ERROR_BAD_REQUEST)
    assert answer(SubscribeRequest("taken", type=1)) == error(2, errors.ERROR_ALREADY_SUBSCRIBED)
    assert answer(SubscribeRequest("other", type=1)) == error(2, errors.ERROR_LIMIT_EXCEEDED)
    session.unsubscribed("taken")
    assert answer(SubscribeRequest("other", type=1)) == error(2, errors.ERROR_PERMISSION_DENIED)
    assert answer(SubscribeRequest("봉수", delta="fossil")) == [
        Subscribe(2, SubscribeRequest("봉수", delta="fossil"))
    ]
    assert answer(SubscribeRequest("taken", delta="x")) == bad_request()


# ---- expiry --------------------------------------------------------------------------------------------


def test_a_connection_that_is_not_refreshed_in_time_is_closed_a_while_after_its_expiry() -> None:
    session = connected(SessionOptions(ping_interval=0), refreshable=True, expires_at=100)
    assert session.deadline == 125
    assert session.tick(now=124) == []
    assert session.tick(now=125) == [Close(errors.CONNECTION_EXPIRED)]


def test_a_refresh_moves_the_expiry() -> None:
    session = connected(SessionOptions(ping_interval=0), refreshable=True, expires_at=100)
    assert session.receive(Command(2, RefreshRequest("t")), now=99) == [RefreshConnection(2, "t")]
    result = RefreshResult(expires=True, ttl=60)
    assert session.refreshed(2, result, expires_at=160) == [Send(Reply(2, result))]
    assert session.deadline == 185
    # setup: the next token never expires
    session.refreshed(3, RefreshResult(), expires_at=None)
    assert session.deadline is None
    assert session.receive(Command(4, RefreshRequest("t")), now=99) == bad_request()


def test_the_server_may_move_the_expiry_itself() -> None:
    session = connected(SessionOptions(ping_interval=0))
    session.expire_at(10)
    assert session.deadline == 35
    session.expire_at(None)
    assert session.deadline is None


@pytest.mark.parametrize(("refreshable", "token"), [(True, ""), (False, "t")])
def test_a_refresh_without_a_token_or_a_need_closes(refreshable: bool, token: str) -> None:
    session = connected(refreshable=refreshable)
    assert session.receive(Command(2, RefreshRequest(token)), now=1) == bad_request()


def test_a_client_side_subscription_that_runs_out_is_ended_alone() -> None:
    session = connected(SessionOptions(ping_interval=0))
    subscribed(session, "a", refreshable=True, expires_at=10)
    subscribed(session, "b", refreshable=True, expires_at=20)
    assert session.deadline == 35
    assert session.tick(now=34) == []
    assert session.tick(now=35) == [ExpireSubscription("a")]
    session.unsubscribed("a")
    assert session.channels == ["b"]
    assert session.deadline == 45


def test_a_server_side_subscription_that_runs_out_ends_the_connection() -> None:
    session = connected()
    subscribed(session, "a", server_side=True, expires_at=-10)
    assert session.tick(now=15) == [Close(errors.SUBSCRIPTION_EXPIRED)]


def test_a_subscription_refresh_is_checked_in_the_protocols_order() -> None:
    session = connected()

    def answer(request: SubRefreshRequest) -> list[Action]:
        return session.receive(Command(2, request), now=1)

    assert answer(SubRefreshRequest("a", "t")) == error(2, errors.ERROR_PERMISSION_DENIED)
    session.reserve("a", server_side=False)
    assert answer(SubRefreshRequest("a", "t")) == error(2, errors.ERROR_PERMISSION_DENIED)
    session.subscribed("a", refreshable=True)
    assert answer(SubRefreshRequest("a", "t", 1)) == error(2, errors.ERROR_NOT_AVAILABLE)
    assert answer(SubRefreshRequest("a")) == error(2, errors.ERROR_BAD_REQUEST)
    assert answer(SubRefreshRequest("a", "t")) == [RefreshSubscription(2, "a", "t")]
    subscribed(session, "b")
    assert answer(SubRefreshRequest("b")) == bad_request()


def test_a_subscription_refresh_moves_its_expiry() -> None:
    session = connected(SessionOptions(ping_interval=0))
    subscribed(session, "a", refreshable=True, expires_at=10)
    result = SubRefreshResult(expires=True, ttl=60)
    assert session.subscription_refreshed(2, "a", result, expires_at=70) == [Send(Reply(2, result))]
    assert session.deadline == 95
    session.subscription_refreshed(3, "a", SubRefreshResult(), expires_at=None)
    assert session.deadline is None
    # setup: the channel is left while a third token is being verified
    session.unsubscribed("a")
    actions = session.subscription_refreshed(4, "a", result, expires_at=70)
    assert actions == error(4, errors.ERROR_PERMISSION_DENIED)
