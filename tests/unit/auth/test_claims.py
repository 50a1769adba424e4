"""What an accepted token grants, and that a parser fed with anything answers in documented ways only."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.auth.forge import NOW, SECRET, dump, raw_token

from bongsu.auth import (
    ChannelOverride,
    ConnectionToken,
    InvalidToken,
    ServerSubscription,
    SubscriptionToken,
    TokenError,
    TokenOptions,
    TokenVerifier,
)
from bongsu.auth.claims import Claims

VERIFIER = TokenVerifier(TokenOptions.model_validate({"hmac_secret": SECRET}))


async def connection(payload: bytes | dict[str, object]) -> ConnectionToken:
    payload = payload if isinstance(payload, bytes) else dump(payload)
    return await VERIFIER.verify_connection(raw_token(payload), now=NOW)


async def test_every_claim_of_a_connection_token_is_kept() -> None:
    granted = await connection(
        {
            "sub": "42",
            "exp": NOW + 60,
            "info": {"name": "Kim"},
            "meta": {"tier": 3},
            "subs": {
                "news": {},
                "#42": {
                    "info": {"role": "owner"},
                    "data": [1, 2],
                    "override": {"presence": {"value": True}, "force_recovery": {"value": False}},
                },
            },
            "jti": "unknown claims are nobody's business",
        }
    )
    assert granted == ConnectionToken(
        user="42",
        expire_at=NOW + 60,
        info=b'{"name":"Kim"}',
        meta=b'{"tier":3}',
        subs={
            "news": ServerSubscription(),
            "#42": ServerSubscription(
                info=b'{"role":"owner"}',
                data=b"[1,2]",
                override=ChannelOverride(presence=True, force_recovery=False),
            ),
        },
    )


async def test_every_claim_of_a_subscription_token_is_kept() -> None:
    granted = await VERIFIER.verify_subscription(
        raw_token(
            dump(
                {
                    "sub": "42",
                    "channel": "$vip",
                    "client": "c1",
                    "expire_at": NOW + 5,
                    "info": "x",
                    "b64data": base64.b64encode(b"\x00\xff").decode(),
                    "override": {"force_push_join_leave": {"value": True}, "join_leave": None},
                }
            )
        ),
        now=NOW,
    )
    assert granted == SubscriptionToken(
        user="42",
        channel="$vip",
        client="c1",
        expire_at=NOW + 5,
        info=b'"x"',
        data=b"\x00\xff",
        override=ChannelOverride(force_push_join_leave=True),
    )


async def test_channels_are_subscriptions_without_options_and_subs_win_over_them() -> None:
    assert (await connection({"channels": ["a", "b", "a"]})).subs == {
        "a": ServerSubscription(),
        "b": ServerSubscription(),
    }
    assert set((await connection({"channels": ["a"], "subs": {"b": {}}})).subs) == {"b"}
    assert set((await connection({"channels": ["a"], "subs": {}})).subs) == {"a"}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b'{ "a" :\n [1 ,\t2]\r\n}', b'{"a":[1,2]}'),
        (b'"a b\\n\\"c d"', b'"a b\\n\\"c d"'),
        (b'"\\\\" ', b'"\\\\"'),
        (b"12345678901234567890.10", b"12345678901234567890.10"),
        (b'{"b":1,"a":2,"b":3}', b'{"b":1,"a":2,"b":3}'),
        ('"\\ud55c 글 📢"'.encode(), '"\\ud55c 글 📢"'.encode()),
        (b" null ", b""),
        (b"false", b"false"),
        (b'""', b'""'),
    ],
)
async def test_json_in_a_claim_keeps_its_bytes_but_for_white_space(written: bytes, kept: bytes) -> None:
    """A newline would break the framing of the client protocol; a re-encoded number would not be the same."""
    granted = await connection(b'{"info":' + written + b',"meta":' + written + b"}")
    assert (granted.info, granted.meta) == (kept, kept)


async def test_base64_info_wins_over_info_and_is_kept_exactly() -> None:
    encoded = base64.b64encode(b"a \n\x00").decode()
    assert (await connection({"info": 1, "b64info": encoded})).info == b"a \n\x00"
    assert (await connection({"info": 1, "b64info": ""})).info == b"1"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{} {}",
        b'{"sub":"1",}',
        b'{"sub":"\xff"}',
        b'{"info":"\xff"}',
        b'{"unknown":"\xff"}',
        b'{"info":nan}',
        b'{"info":01}',
        b'{"info":"a\nb"}',
        b'{"exp":1e999}',
        b'{"expire_at":-1}',
        b'{"channels":"news"}',
        b'{"channels":[1]}',
        b'{"channels":[""]}',
        b'{"subs":["news"]}',
        b'{"subs":{"":{}}}',
        b'{"subs":{"news":{"override":{"presence":true}}}}',
        b'{"subs":{"news":{"b64data":"%%%"}}}',
        b'{"b64info":"YQ"}',
        b'{"b64info":"\xc3\xa9"}',
        b'{"aud":{"a":1}}',
        b'{"iss":1}',
        b'{"channel":1}',
        b'{"info":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"unknown":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    ],
)
async def test_claims_of_a_wrong_type_or_form_make_the_token_invalid(payload: bytes) -> None:
    with pytest.raises(InvalidToken):
        await connection(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["sub", *Claims.__struct_fields__])
CLAIMS = st.dictionaries(NAMES | st.text(max_size=3), JSON)


def outcome(token: str) -> ConnectionToken | SubscriptionToken | None:
    async def both() -> ConnectionToken | SubscriptionToken | None:
        granted: ConnectionToken | SubscriptionToken | None = None
        for verify in (VERIFIER.verify_connection, VERIFIER.verify_subscription):
            try:
                granted = await verify(token, now=NOW)
            except TokenError:
                continue
        return granted

    return asyncio.run(both())


@given(token=st.text(max_size=300) | st.text(alphabet="abcABC012-_=. ", max_size=300))
def test_any_text_is_refused_as_a_token_and_nothing_worse(token: str) -> None:
    assert outcome(token) is None


@given(header=st.binary(max_size=80), payload=st.binary(max_size=200))
def test_any_bytes_in_a_signed_token_have_a_documented_answer(header: bytes, payload: bytes) -> None:
    outcome(raw_token(payload, header=header))
    outcome(raw_token(payload))


@given(claims=CLAIMS)
def test_any_json_in_a_signed_token_has_a_documented_answer_and_keeps_its_meaning(
    claims: dict[str, object],
) -> None:
    granted = outcome(raw_token(dump(claims)))
    if granted is not None and claims.get("info") is not None and not claims.get("b64info"):
        assert json.loads(granted.info) == claims["info"]
        assert b"\n" not in granted.info
