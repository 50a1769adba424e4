"""The tables of codes against the protocol's, word for word."""

from __future__ import annotations

import json

import pytest

from bongsu.protocol import errors
from bongsu.protocol.errors import ApiError, Disconnect, ProtocolError, application_disconnect

DISCONNECTS = {
    3000: "connection closed",
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3006: "subscription expired",
    3008: "slow",
    3009: "write error",
    3010: "insufficient state",
    3011: "force reconnect",
    3012: "no pong",
    3013: "too many requests",
    3014: "state invalidated",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3503: "force disconnect",
    3504: "connection limit",
    3505: "channel limit",
    3506: "inappropriate protocol",
    3507: "permission denied",
    3508: "not available",
    3509: "too many errors",
}
ERRORS = {
    100: "internal server error",
    101: "unauthorized",
    102: "unknown channel",
    103: "permission denied",
    104: "method not found",
    105: "already subscribed",
    106: "limit exceeded",
    107: "bad request",
    108: "not available",
    109: "token expired",
    110: "expired",
    111: "too many requests",
    112: "unrecoverable position",
    113: "concurrent pagination",
}


def test_disconnect_codes_and_reasons_are_the_protocols() -> None:
    ours = {code: row.reason for code, row in errors.DISCONNECTS.items() if code >= 3000}
    assert ours == DISCONNECTS


def test_error_codes_and_messages_are_the_protocols_and_three_are_temporary() -> None:
    assert {code: row.message for code, row in errors.ERRORS.items()} == ERRORS
    assert {code for code, row in errors.ERRORS.items() if row.temporary} == {100, 111, 113}


def test_unsubscribe_codes_are_the_protocols() -> None:
    assert {code: row.reason for code, row in errors.UNSUBSCRIBES.items()} == {
        2000: "server unsubscribe",
        2500: "insufficient state",
        2501: "subscription expired",
        2502: "state invalidated",
    }


def test_api_errors_have_the_http_statuses_of_transport_mode() -> None:
    statuses = {100: 500, 102: 404, 104: 404, 107: 400, 108: 400, 112: 416, 113: 409}
    assert {code: row.status for code, row in errors.API_ERRORS.items()} == statuses
    assert ApiError(1234, "an application's own").status == 500


@pytest.mark.parametrize("row", errors.DISCONNECTS.values(), ids=lambda row: str(row.code))
def test_no_reason_is_empty_long_or_json(row: Disconnect) -> None:
    assert 0 < len(row.reason.encode()) <= errors.MAX_REASON_BYTES
    with pytest.raises(json.JSONDecodeError):
        json.loads(row.reason)


@pytest.mark.parametrize(
    ("code", "reconnects"),
    [
        *[(1009, True), (3000, True), (3499, True), (3500, False), (3999, False)],
        *[(4000, True), (4499, True), (4500, False), (4999, False), (5000, True)],
    ],
)
def test_the_code_decides_whether_sdks_reconnect(code: int, reconnects: bool) -> None:
    assert Disconnect(code, "x").reconnect is reconnects


def test_an_application_may_disconnect_with_its_own_code_and_reason() -> None:
    assert application_disconnect(4500, "banned") == Disconnect(4500, "banned")


@pytest.mark.parametrize(
    ("code", "reason", "complaint"),
    [
        (2999, "banned", "3000-4999"),
        (5000, "banned", "3000-4999"),
        (4500, "", "1-123 bytes"),
        (4500, "밴" * 42, "1-123 bytes"),
        (4500, '{"code":1}', "must not be JSON"),
        (4500, "12", "must not be JSON"),
    ],
)
def test_a_disconnect_that_sdks_would_misread_is_refused(code: int, reason: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        application_disconnect(code, reason)


def test_a_protocol_error_carries_its_disconnect_and_says_why() -> None:
    error = ProtocolError(errors.BAD_REQUEST, "not a command")
    assert error.disconnect == (3501, "bad request")
    assert str(error) == "3501 bad request: not a command"
