"""Tokens we make are read by others, and by us."""

from __future__ import annotations

import jwt
import pytest
from tests.unit.auth.forge import NOW, SECRET, public_pem, rsa_key

from bongsu.auth import (
    TokenOptions,
    TokenVerifier,
    sign_connection_token,
    sign_subscription_token,
)

VERIFIER = TokenVerifier(TokenOptions.model_validate({"hmac_secret": SECRET}))


async def test_a_connection_token_of_ours_is_believed_by_us_and_by_pyjwt() -> None:
    made = sign_connection_token(SECRET, user="42", now=NOW, ttl=60, info={"name": "봉수"}, channels=["a"])
    granted = await VERIFIER.verify_connection(made, now=NOW)
    assert (granted.user, granted.expire_at, set(granted.subs)) == ("42", NOW + 60, {"a"})
    assert granted.info.decode() == '{"name":"봉수"}'
    claims = jwt.decode(
        made, SECRET, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
    )
    assert claims["exp"] == int(NOW) + 60


async def test_a_subscription_token_of_ours_names_its_channel() -> None:
    made = sign_subscription_token(SECRET, user="42", channel="$vip", now=NOW, ttl=None)
    granted = await VERIFIER.verify_subscription(made, now=NOW + 10**9)
    assert (granted.user, granted.channel, granted.expire_at) == ("42", "$vip", None)


async def test_a_short_secret_signs_without_a_warning() -> None:
    made = sign_connection_token("secret", user="1", now=NOW, ttl=60)
    tokens = TokenVerifier(TokenOptions.model_validate({"hmac_secret": "secret"}))
    assert (await tokens.verify_connection(made, now=NOW)).user == "1"


@pytest.mark.parametrize("secret", ["", public_pem(rsa_key())])
def test_what_is_no_secret_signs_nothing(secret: str) -> None:
    with pytest.raises(jwt.InvalidKeyError):
        sign_connection_token(secret, user="1", now=NOW, ttl=60)
