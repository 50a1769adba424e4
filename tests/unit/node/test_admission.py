"""Who may come in."""

from __future__ import annotations

import asyncio
import time

import pytest
from pydantic import SecretStr

from bongsu.auth import TokenOptions, TokenVerifier, sign_connection_token
from bongsu.node.admission import Admission
from bongsu.protocol import problems
from bongsu.protocol.messages import Principal
from bongsu.protocol.problems import Problem, ProblemKind

SECRET = "a secret of at least thirty-two bytes"
KEY = "the key of this server"


def admission(*, anonymous: bool = False, origins: list[str] | None = None, tokens: bool = True) -> Admission:
    verifier = TokenVerifier(TokenOptions(hmac_secret=SecretStr(SECRET))) if tokens else None
    return Admission(verifier=verifier, api_key=KEY, allowed_origins=origins or [], anonymous=anonymous)


def token(user: str = "42", ttl: float = 60) -> str:
    now = time.time()
    return sign_connection_token(SECRET, user=user, now=now, ttl=ttl)


OWN = [
    ("http://localhost:8000", "localhost:8000"),
    ("http://example.org", "example.org"),
    ("http://example.org", "example.org:80"),
    ("https://example.org", "example.org"),
    ("https://example.org:443", "example.org"),
    ("HTTP://EXAMPLE.org", "Example.ORG"),
    ("http://[::1]:8000", "[::1]:8000"),
]
FOREIGN = [
    ("http://example.org:8000", "example.org"),
    ("http://evil.org", "example.org"),
    ("http://example.org.evil.org", "example.org"),
    ("http://example.org@evil.org", "example.org"),
    ("null", "example.org"),
    ("null", "null"),
    ("file://", ""),
    ("http://", ""),
    ("http://example.org:99999", "example.org:99999"),
    ("ftp://example.org", "example.org"),
]


@pytest.mark.parametrize(("origin", "host"), OWN)
def test_the_own_origin_is_allowed(origin: str, host: str) -> None:
    admission().check_origin({b"origin": origin.encode(), b"host": host.encode()})


@pytest.mark.parametrize(("origin", "host"), FOREIGN)
def test_a_foreign_origin_is_refused(origin: str, host: str) -> None:
    with pytest.raises(Problem) as refused:
        admission().check_origin({b"origin": origin.encode(), b"host": host.encode()})
    assert refused.value.kind is problems.ORIGIN_NOT_ALLOWED


def test_without_an_origin_header_it_is_no_browser() -> None:
    admission().check_origin({b"host": b"example.org"})


def test_listed_origins_are_allowed_by_pattern() -> None:
    rules = admission(origins=["https://*.example.org"])
    rules.check_origin({b"origin": b"https://app.example.org", b"host": b"api.example.org"})
    with pytest.raises(Problem):
        rules.check_origin({b"origin": b"https://example.org", b"host": b"api.example.org"})


def test_reading_needs_no_origin_and_writing_does() -> None:
    headers = {b"origin": b"https://evil.org", b"host": b"example.org"}
    for method in ("GET", "HEAD", "OPTIONS"):
        admission().check_method(method, headers)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(Problem):
            admission().check_method(method, headers)


def test_the_api_key_makes_one_trusted() -> None:
    for headers in ({b"x-api-key": KEY.encode()}, {b"authorization": b"apikey " + KEY.encode()}):
        assert asyncio.run(admission().admit(headers)) == Principal(trusted=True)


def test_a_token_names_the_user_in_either_place() -> None:
    bearer = {b"authorization": b"Bearer " + token().encode()}
    assert asyncio.run(admission().admit(bearer)).user == "42"
    offered = ["bongsu", f"bongsu.token.{token()}"]
    assert asyncio.run(admission().admit({}, offered)).user == "42"


def test_anonymous_ones_come_in_only_where_that_is_allowed() -> None:
    assert asyncio.run(admission(anonymous=True).admit({})) == Principal()
    with pytest.raises(Problem) as refused:
        asyncio.run(admission().admit({}))
    assert refused.value.kind is problems.UNAUTHORIZED


WRONG: list[tuple[dict[bytes, bytes], ProblemKind]] = [
    ({b"x-api-key": b"wrong"}, problems.UNAUTHORIZED),
    ({b"x-api-key": b""}, problems.UNAUTHORIZED),
    ({b"authorization": b"apikey wrong"}, problems.UNAUTHORIZED),
    ({b"authorization": b"Bearer nonsense"}, problems.UNAUTHORIZED),
    ({b"authorization": b"Bearer " + token(ttl=-60).encode()}, problems.UNAUTHORIZED),
    ({b"authorization": b"Bearer \xff\xfe"}, problems.UNAUTHORIZED),
]


@pytest.mark.parametrize(("headers", "kind"), WRONG)
@pytest.mark.parametrize("anonymous", [False, True])
def test_wrong_credentials_are_refused_even_where_none_are_needed(
    headers: dict[bytes, bytes], kind: ProblemKind, anonymous: bool
) -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(admission(anonymous=anonymous).admit(headers))
    assert refused.value.kind is kind


def test_no_secret_is_in_a_refusal() -> None:
    with pytest.raises(Problem) as refused:
        asyncio.run(admission().admit({b"authorization": b"Bearer " + token(ttl=-60).encode()}))
    assert token(ttl=-60) not in str(refused.value)
