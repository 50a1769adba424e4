"""Which tokens are believed: keys and algorithms, issuer and audience, kind, time, the order of checks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from tests.unit.auth.forge import (
    NOW,
    OTHER_SECRET,
    SECRET,
    PrivateKey,
    b64,
    dump,
    ec_key,
    ed_key,
    public_pem,
    raw_token,
    rsa_key,
    token,
)

from bongsu.auth import InvalidToken, TokenExpired, TokenOptions, TokenVerifier

ALL_KEYS = {
    "hmac_secret": SECRET,
    "rsa_public_key": public_pem(rsa_key()),
    "ecdsa_public_key": public_pem(ec_key("P-384")),
}


def verifier(**options: object) -> TokenVerifier:
    return TokenVerifier(TokenOptions.model_validate(options or {"hmac_secret": SECRET}))


@pytest.mark.parametrize(
    ("options", "key", "alg"),
    [
        ({"hmac_secret": SECRET}, SECRET, "HS256"),
        ({"hmac_secret": SECRET}, SECRET, "HS384"),
        ({"hmac_secret": SECRET}, SECRET, "HS512"),
        ({"rsa_public_key": public_pem(rsa_key())}, rsa_key(), "RS256"),
        ({"rsa_public_key": public_pem(rsa_key())}, rsa_key(), "RS384"),
        ({"rsa_public_key": public_pem(rsa_key())}, rsa_key(), "RS512"),
        ({"ecdsa_public_key": public_pem(ec_key("P-256"))}, ec_key("P-256"), "ES256"),
        ({"ecdsa_public_key": public_pem(ec_key("P-384"))}, ec_key("P-384"), "ES384"),
        ({"ecdsa_public_key": public_pem(ec_key("P-521"))}, ec_key("P-521"), "ES512"),
        (ALL_KEYS, SECRET, "HS256"),
        (ALL_KEYS, rsa_key(), "RS256"),
        (ALL_KEYS, ec_key("P-384"), "ES384"),
    ],
)
async def test_a_token_of_a_configured_key_is_believed(
    options: dict[str, object], key: PrivateKey | str, alg: str
) -> None:
    connection = await verifier(**options).verify_connection(token(key, alg, sub="42"), now=NOW)
    assert connection.user == "42"


@pytest.mark.parametrize(
    ("options", "key", "alg"),
    [
        ({}, SECRET, "HS256"),
        ({"hmac_secret": SECRET}, OTHER_SECRET, "HS256"),
        ({"hmac_secret": SECRET}, rsa_key(), "RS256"),
        ({"hmac_secret": SECRET}, ed_key(), "EdDSA"),
        ({"rsa_public_key": public_pem(rsa_key())}, SECRET, "HS256"),
        ({"rsa_public_key": public_pem(rsa_key())}, rsa_key("other"), "RS256"),
        ({"rsa_public_key": public_pem(rsa_key())}, rsa_key(), "PS256"),
        ({"ecdsa_public_key": public_pem(ec_key())}, ec_key(name="other"), "ES256"),
        ({"ecdsa_public_key": public_pem(ec_key("P-384"))}, ec_key("P-256"), "ES256"),
        (ALL_KEYS, ec_key("P-384", "other"), "ES384"),
    ],
)
async def test_a_token_of_any_other_key_is_invalid(
    options: dict[str, object], key: PrivateKey | str, alg: str
) -> None:
    tokens = TokenVerifier(TokenOptions.model_validate(options))
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(token(key, alg, sub="42"), now=NOW)


@pytest.mark.parametrize("pem", [public_pem(rsa_key()), public_pem(ec_key("P-384"))])
@pytest.mark.parametrize("trim", [str, str.strip])
async def test_a_public_key_is_never_taken_for_a_secret(pem: str, trim: type[str]) -> None:
    """The classic confusion: everybody knows the public key, so everybody can compute this HMAC."""
    only_public = {name: value for name, value in ALL_KEYS.items() if name != "hmac_secret"}
    forged = raw_token(b'{"sub":"admin"}', secret=trim(pem).encode())
    with pytest.raises(InvalidToken):
        await verifier(**only_public).verify_connection(forged, now=NOW)


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", "hs256", "HS256 ", "ES256K", "ES521"])
@pytest.mark.parametrize("signature", ["", "valid"])
async def test_an_algorithm_outside_the_list_is_invalid_whatever_the_signature(
    alg: str, signature: str
) -> None:
    signed_by_us = raw_token(b'{"sub":"admin"}', header=dump({"alg": alg}))
    forged = signed_by_us if signature else signed_by_us.rpartition(".")[0] + "."
    with pytest.raises(InvalidToken):
        await verifier(**ALL_KEYS).verify_connection(forged, now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "kid": "../../../../dev/null"},
        {"alg": "HS256", "kid": "x' UNION SELECT 'k"},
        {"alg": "HS256", "jku": "http://127.0.0.1:1/keys"},
        {"alg": "HS256", "x5u": "http://127.0.0.1:1/cert"},
        {"alg": "HS256", "jwk": {"kty": "oct", "k": b64(b"mine")}},
    ],
)
@pytest.mark.parametrize("secret", [b"", b"mine"])
async def test_a_header_cannot_bring_or_choose_its_key(header: dict[str, object], secret: bytes) -> None:
    with pytest.raises(InvalidToken):
        await verifier().verify_connection(
            raw_token(b'{"sub":"admin"}', header=dump(header), secret=secret), now=NOW
        )
    honest = raw_token(b'{"sub":"42"}', header=dump(header))
    assert (await verifier().verify_connection(honest, now=NOW)).user == "42"


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"HS256","crit":["exp"],"exp":1}',
        b'{"alg":"HS256","crit":[]}',
        b'{"alg":"HS256","crit":["b64"],"b64":false}',
        b'{"alg":"HS256","b64":false}',
        b'{"alg":"HS256","kid":7}',
        b'{"alg":["HS256"]}',
        b'{"typ":"JWT"}',
        b'{"alg":"\xff"}',
        b'["HS256"]',
        b"{",
        b"",
    ],
)
async def test_a_header_that_is_not_understood_makes_the_token_invalid(header: bytes) -> None:
    with pytest.raises(InvalidToken):
        await verifier().verify_connection(raw_token(b'{"sub":"42"}', header=header), now=NOW)


async def test_every_change_of_a_character_makes_the_token_invalid() -> None:
    good = token(sub="42")
    for index in range(len(good)):
        for other in ("A", "B", ".", "=", "+", "é"):
            changed = good[:index] + other + good[index + 1 :]
            if changed != good:
                with pytest.raises(InvalidToken):
                    await verifier().verify_connection(changed, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "",
        lambda t: t + "=",
        lambda t: t + "\n",
        lambda t: " " + t,
        lambda t: t + ".",
        lambda t: t[:-4],
    ],
)
async def test_a_token_has_exactly_one_written_form(change: object) -> None:
    assert callable(change)
    with pytest.raises(InvalidToken):
        await verifier().verify_connection(change(token(sub="42")), now=NOW)


async def test_a_token_longer_than_a_message_is_invalid_before_anything_is_computed() -> None:
    with pytest.raises(InvalidToken, match="longer"):
        await verifier().verify_connection(token(sub="x" * 65_536), now=NOW)


async def test_the_secret_of_the_protocols_own_suites_works_though_it_is_short() -> None:
    short = raw_token(b'{"sub":"42"}', secret=b"secret")
    assert (await verifier(hmac_secret="secret").verify_connection(short, now=NOW)).user == "42"


@pytest.mark.parametrize(
    ("valid_until", "now", "accepted"),
    [(None, NOW, True), (NOW, NOW - 1, True), (NOW, NOW, True), (NOW, NOW + 1, False)],
)
async def test_a_rotated_secret_counts_until_its_end(
    valid_until: float | None, now: float, accepted: bool
) -> None:
    tokens = verifier(
        hmac_secret=SECRET,
        hmac_previous_secret_key=OTHER_SECRET,
        hmac_previous_secret_key_valid_until=valid_until,
    )
    assert (await tokens.verify_connection(token(SECRET, sub="new"), now=now)).user == "new"
    if accepted:
        assert (await tokens.verify_connection(token(OTHER_SECRET, sub="old"), now=now)).user == "old"
    else:
        with pytest.raises(InvalidToken):
            await tokens.verify_connection(token(OTHER_SECRET, sub="old"), now=now)


@pytest.mark.parametrize(
    ("options", "claims", "accepted"),
    [
        ({"audience": "a"}, {"aud": "a"}, True),
        ({"audience": "a"}, {"aud": ["b", "a"]}, True),
        ({"audience": "a"}, {"aud": "ab"}, False),
        ({"audience": "a"}, {"aud": []}, False),
        ({"audience": "a"}, {}, False),
        ({"audience_regex": "a|b"}, {"aud": ["c", "b"]}, True),
        ({"audience_regex": "a|b"}, {"aud": "ab"}, False),
        ({"audience_regex": "a|b"}, {"aud": "a\n"}, False),
        ({"audience_regex": ".*"}, {}, False),
        ({"issuer": "https://id"}, {"iss": "https://id"}, True),
        ({"issuer": "https://id"}, {"iss": "https://id/"}, False),
        ({"issuer": "https://id"}, {}, False),
        ({"issuer_regex": "https://[a-z]+"}, {"iss": "https://id"}, True),
        ({"issuer_regex": "^https://[a-z]+$"}, {"iss": "https://id"}, True),
        ({"issuer_regex": "https://[a-z]+"}, {"iss": "https://id.evil"}, False),
        ({"issuer_regex": "[a-z]+"}, {"iss": "x" * 1025}, False),
        ({"issuer_regex": ".*"}, {}, False),
        ({}, {"iss": "anybody", "aud": "anyone"}, True),
    ],
)
async def test_issuer_and_audience_must_match_as_a_whole(
    options: dict[str, object], claims: dict[str, object], accepted: bool
) -> None:
    tokens = verifier(hmac_secret=SECRET, **options)
    if accepted:
        await tokens.verify_connection(raw_token(dump({"sub": "42", **claims})), now=NOW)
    else:
        with pytest.raises(InvalidToken):
            await tokens.verify_connection(raw_token(dump({"sub": "42", **claims})), now=NOW)


@pytest.mark.parametrize(
    ("claims", "outcome"),
    [
        ({"exp": NOW + 1}, None),
        ({"exp": NOW}, TokenExpired),
        ({"exp": NOW - 1}, TokenExpired),
        ({"exp": NOW + 0.5}, None),
        ({"exp": 0}, TokenExpired),
        ({"exp": -1}, TokenExpired),
        ({"exp": 10**30}, None),
        ({"nbf": NOW}, None),
        ({"nbf": NOW + 1}, TokenExpired),
        ({"iat": NOW + 1000}, None),
        ({"exp": NOW - 1, "expire_at": 0}, TokenExpired),
        ({"exp": str(int(NOW + 1))}, InvalidToken),
        ({"exp": True}, InvalidToken),
        ({"nbf": [1]}, InvalidToken),
    ],
)
async def test_exp_and_nbf_bound_the_time_a_token_is_good_for(
    claims: dict[str, object], outcome: type[Exception] | None
) -> None:
    made = raw_token(dump({"sub": "42", **claims}))
    if outcome is None:
        await verifier().verify_connection(made, now=NOW)
    else:
        with pytest.raises(outcome):
            await verifier().verify_connection(made, now=NOW)


@pytest.mark.parametrize(
    ("claims", "expire_at"),
    [
        ({}, None),
        ({"exp": NOW + 5}, NOW + 5),
        ({"exp": NOW + 5, "expire_at": 0}, None),
        ({"exp": NOW + 5, "expire_at": NOW + 50}, NOW + 50),
        ({"expire_at": NOW - 50}, NOW - 50),
    ],
)
async def test_expire_at_replaces_exp_for_what_the_token_opens(
    claims: dict[str, object], expire_at: float | None
) -> None:
    connection = await verifier().verify_connection(raw_token(dump({"sub": "1", **claims})), now=NOW)
    subscription = await verifier().verify_subscription(
        raw_token(dump({"sub": "1", "channel": "news", **claims})), now=NOW
    )
    assert connection.expire_at == subscription.expire_at == expire_at


@pytest.mark.parametrize(
    ("claims", "key", "options", "outcome"),
    [
        # signature before time
        ({"exp": 1}, OTHER_SECRET, {}, InvalidToken),
        # issuer and audience before time
        ({"exp": 1, "iss": "x"}, SECRET, {"issuer": "y"}, InvalidToken),
        ({"exp": 1, "aud": "x"}, SECRET, {"audience": "y"}, InvalidToken),
        # kind before time
        ({"exp": 1, "channel": "news"}, SECRET, {}, InvalidToken),
        ({"exp": 1}, SECRET, {}, TokenExpired),
    ],
)
async def test_only_a_token_that_is_right_in_all_else_counts_as_expired(
    claims: dict[str, object], key: str, options: dict[str, object], outcome: type[Exception]
) -> None:
    with pytest.raises(outcome):
        await verifier(hmac_secret=SECRET, **options).verify_connection(
            raw_token(dump({"sub": "1", **claims}), secret=key.encode()), now=NOW
        )


async def test_the_patterns_are_checked_before_the_signature() -> None:
    with pytest.raises(InvalidToken, match="another issuer"):
        await verifier(hmac_secret=SECRET, issuer_regex="a").verify_connection(
            raw_token(b'{"iss":"b"}', secret=b"wrong"), now=NOW
        )


async def test_a_subscription_token_opens_no_connection_and_the_other_way_round() -> None:
    with pytest.raises(InvalidToken):
        await verifier().verify_connection(token(sub="42", channel="news"), now=NOW)
    with pytest.raises(InvalidToken):
        await verifier().verify_subscription(token(sub="42"), now=NOW)
    with pytest.raises(InvalidToken):
        await verifier().verify_subscription(token(sub="42", channel=""), now=NOW)


@pytest.mark.parametrize(
    ("claim", "claims", "user"),
    [
        ("sub", {}, ""),
        ("sub", {"sub": ""}, ""),
        ("sub", {"sub": None}, ""),
        ("sub", {"sub": "봉수"}, "봉수"),
        ("user_id", {"sub": "7", "user_id": "42"}, "42"),
        ("user_id", {"sub": 7, "user_id": "42"}, "42"),
        ("user_id", {"sub": "7"}, ""),
    ],
)
async def test_the_user_is_what_the_user_id_claim_says(
    claim: str, claims: dict[str, object], user: str
) -> None:
    tokens = verifier(hmac_secret=SECRET, user_id_claim=claim)
    assert (await tokens.verify_connection(raw_token(dump(claims)), now=NOW)).user == user


@pytest.mark.parametrize("user", [7, True, ["42"], {"id": "42"}, 1.5])
async def test_a_user_id_that_is_no_string_makes_the_token_invalid(user: object) -> None:
    with pytest.raises(InvalidToken):
        await verifier().verify_connection(raw_token(dump({"sub": user})), now=NOW)


async def test_no_reason_repeats_anything_of_the_token() -> None:
    marker = "marker-in-the-token"
    for payload in (
        {"sub": {marker: 1}},
        {"sub": "1", "exp": marker},
        {"sub": "1", "subs": {marker: 7}},
        {"sub": "1", "iss": marker, "aud": [marker]},
        {"sub": "1", "b64info": marker},
    ):
        for header in ({"alg": "HS256"}, {"alg": marker}, {"alg": "HS256", "kid": marker, "crit": [marker]}):
            with pytest.raises(InvalidToken) as refused:
                await verifier(hmac_secret=SECRET, issuer="other").verify_connection(
                    raw_token(dump(payload), header=dump(header)), now=NOW
                )
            assert marker not in str(refused.value)
            assert marker not in refused.value.reason


def test_the_honest_signature_of_these_tests_is_what_the_standard_library_computes() -> None:
    """Ties PyJWT, `raw_token` and RFC 7515 together, so that none of them vouches for itself."""
    header, payload, signature = token(sub="42").split(".")
    assert json.loads(base64.urlsafe_b64decode(payload + "==")) == {"sub": "42"}
    assert signature == b64(hmac.digest(SECRET.encode(), f"{header}.{payload}".encode(), hashlib.sha256))
