"""Contradictions among the token options are refused in words, and secrets never show."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests.unit.auth.forge import SECRET, ec_key, ed_key, private_pem, public_pem, rsa_key

from bongsu.auth import TokenOptions

ENDPOINT = "https://id.example/certs"


def test_nothing_is_configured_unless_it_is_said() -> None:
    assert not TokenOptions().configured


@pytest.mark.parametrize(
    "options",
    [
        {"hmac_secret": "secret"},
        {"hmac_secret": SECRET, "hmac_previous_secret_key": "old"},
        {
            "hmac_secret": SECRET,
            "hmac_previous_secret_key": "old",
            "hmac_previous_secret_key_valid_until": 1_800_000_000,
        },
        {"rsa_public_key": public_pem(rsa_key())},
        {"rsa_public_key": public_pem(rsa_key()).replace("\n", "\\n")},
        {"ecdsa_public_key": public_pem(ec_key("P-521"))},
        {
            "hmac_secret": SECRET,
            "rsa_public_key": public_pem(rsa_key()),
            "ecdsa_public_key": public_pem(ec_key()),
        },
        {"jwks_public_endpoint": ENDPOINT},
        {
            "jwks_public_endpoint": "https://id.example/{{realm}}/certs",
            "issuer_regex": r"https://id\.example/(?P<realm>acme|glo\.bex)",
        },
    ],
)
def test_one_way_to_find_a_key_is_enough(options: dict[str, object]) -> None:
    assert TokenOptions.model_validate(options).configured


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hmac_secret_key": SECRET}, "Extra inputs are not permitted"),
        ({"hmac_secret": ""}, "is empty"),
        ({"hmac_secret": public_pem(rsa_key())}, "not a secret"),
        ({"hmac_secret": SECRET, "hmac_previous_secret_key": public_pem(ec_key())}, "not a secret"),
        ({"hmac_secret": '{"kty":"oct","k":"AAAA"}'}, "not a secret"),
        ({"hmac_previous_secret_key": SECRET}, "needs hmac_secret"),
        (
            {"hmac_secret": SECRET, "hmac_previous_secret_key_valid_until": 1},
            "needs hmac_previous_secret_key",
        ),
        ({"rsa_public_key": "no PEM"}, "is not a PEM public key"),
        ({"rsa_public_key": public_pem(ec_key())}, "is not an RSA key"),
        ({"rsa_public_key": private_pem(rsa_key())}, "is a private key"),
        ({"rsa_public_key": public_pem(rsa_key(bits=1024))}, "1024 bits"),
        ({"ecdsa_public_key": public_pem(rsa_key())}, "is not an elliptic curve key"),
        ({"ecdsa_public_key": public_pem(ed_key())}, "is not an elliptic curve key"),
        ({"ecdsa_public_key": public_pem(ec_key("secp256k1"))}, "curve secp256k1"),
        ({"hmac_secret": SECRET, "jwks_public_endpoint": ENDPOINT}, "either the endpoint or keys"),
        ({"rsa_public_key": public_pem(rsa_key()), "jwks_public_endpoint": ENDPOINT}, "either the endpoint"),
        ({"jwks_public_endpoint": "file:///etc/keys"}, "http:// or https://"),
        ({"jwks_public_endpoint": "https:///certs"}, "http:// or https://"),
        ({"jwks_public_endpoint": "https://["}, "is not a URL"),
        ({"jwks_public_endpoint": "https://me:pass@id.example/certs"}, "user name or password"),
        ({"jwks_public_endpoint": "https://{{realm}}.example/certs"}, "its host"),
        ({"jwks_public_endpoint": "https://id.example/{{a-b}}"}, "brace"),
        ({"jwks_public_endpoint": "https://id.example/{{realm}}"}, "exactly one"),
        (
            {
                "jwks_public_endpoint": "https://id.example/{{realm}}",
                "issuer_regex": "(?P<realm>a|b)",
                "audience_regex": "(?P<realm>c|d)",
            },
            "exactly one",
        ),
        ({"issuer": "a", "issuer_regex": "a"}, "not both"),
        ({"audience": "a", "audience_regex": "a"}, "not both"),
        ({"issuer_regex": "("}, "is not a regular expression"),
        ({"user_id_claim": "user-id"}, "user_id_claim"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TokenOptions.model_validate(options)
    assert words in str(refused.value)


@pytest.mark.parametrize("group", [".*", "[a-z]+", "a|.", "a|", r"a|\w", "a/b", "a|b?", "(?:a)"])
def test_only_a_list_of_values_may_fill_the_url_of_the_key_set(group: str) -> None:
    with pytest.raises(ValidationError, match=r"list its values|exactly one"):
        TokenOptions(
            jwks_public_endpoint="https://id.example/{{realm}}", issuer_regex=f"https://(?P<realm>{group})"
        )


def test_no_secret_shows_when_options_are_printed_or_refused() -> None:
    secret = "hunter2"  # short, since pydantic cuts long values out of its messages anyway
    assert secret not in repr(TokenOptions.model_validate({"hmac_secret": secret}))
    with pytest.raises(ValidationError) as refused:
        TokenOptions.model_validate({"hmac_secret": secret, "jwks_public_endpoint": ENDPOINT})
    assert secret not in str(refused.value)
