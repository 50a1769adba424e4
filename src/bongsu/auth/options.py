"""What an operator may set about tokens (`BONGSU_TOKEN__*`). See docs/tokens.md."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from bongsu.auth.keys import ec_key_from_pem, rsa_key_from_pem

_PLACEHOLDER: Final = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*)\}\}")
_LISTED_VALUE: Final = re.compile(r"(?:[A-Za-z0-9_~-]|\\[.-])+")


class TokenOptions(BaseModel):
    """Which keys vouch for a token, and what else it must say. Durations and times in seconds.

    The keys fix the algorithms: a token can never choose to be checked in a way that is not set up here.
    Nothing set means that no token is accepted. Names follow Centrifugo's where it has the option.

    Raises `pydantic.ValidationError` for combinations that contradict each other, in words.
    """

    # An error would otherwise repeat what was given, and with it a secret, into a log.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    hmac_secret: SecretStr | None = Field(
        None, description="Shared secret of HS256, HS384 and HS512 tokens; 32 random bytes or more"
    )
    hmac_previous_secret_key: SecretStr | None = Field(
        None, description="The secret before this one, still accepted while tokens signed with it are around"
    )
    hmac_previous_secret_key_valid_until: int | None = Field(
        None, gt=0, description="Unix time after which the previous secret is not accepted; unset = no end"
    )
    rsa_public_key: str | None = Field(
        None, description="PEM public key of RS256, RS384 and RS512 tokens; 2,048 bits or more"
    )
    ecdsa_public_key: str | None = Field(
        None, description="PEM public key of ES256 (P-256), ES384 (P-384) or ES512 (P-521) tokens"
    )
    jwks_public_endpoint: str | None = Field(
        None,
        description="URL of a JSON Web Key Set; takes the place of all keys above. {{name}} stands for that "
        "named group of issuer_regex or audience_regex",
    )
    jwks_cache_ttl: float = Field(
        3600.0,
        gt=0,
        description="Seconds until the key set is read again; when that fails, it serves as long once more",
    )
    jwks_retry_delay: float = Field(
        10.0, gt=0, description="Shortest time in seconds between two reads of the key set"
    )
    jwks_timeout: float = Field(5.0, gt=0, description="Seconds that one read of the key set may take")
    audience: str | None = Field(None, min_length=1, description="Value that must be among the token's aud")
    audience_regex: str | None = Field(
        None, min_length=1, description="Regular expression that a whole value of the token's aud must match"
    )
    issuer: str | None = Field(None, min_length=1, description="Value that the token's iss must have")
    issuer_regex: str | None = Field(
        None, min_length=1, description="Regular expression that the token's whole iss must match"
    )
    user_id_claim: str = Field(
        "sub", pattern=r"^[A-Za-z_]+$", description="Claim that holds the user id, a string"
    )

    @property
    def configured(self) -> bool:
        """Whether any key is set, so that some token can be accepted at all."""
        return any((self.hmac_secret, self.rsa_public_key, self.ecdsa_public_key, self.jwks_public_endpoint))

    def jwks_values(self) -> dict[str, frozenset[str]]:
        """The values each `{{name}}` of the key set's URL may take: those its named group lists."""
        return {
            name: _listed_values(name, self.issuer_regex, self.audience_regex)
            for name in _PLACEHOLDER.findall(self.jwks_public_endpoint or "")
        }

    @field_validator("hmac_secret", "hmac_previous_secret_key")
    @classmethod
    def _secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        if not secret.get_secret_value():
            raise ValueError("is empty; leave it out, or make one: openssl rand -hex 32")
        try:
            # Whoever knows a public key could sign HS256 tokens if it were used as the secret.
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret.get_secret_value())
        except InvalidKeyError:
            raise ValueError(
                "is a public key, certificate or JWK, not a secret; use rsa_public_key, "
                "ecdsa_public_key or jwks_public_endpoint"
            ) from None
        return secret

    @field_validator("rsa_public_key", "ecdsa_public_key")
    @classmethod
    def _newlines(cls, pem: str | None) -> str | None:
        # Files of environment variables hold one line a value, so PEM is written with \n in them.
        return None if pem is None else pem.replace("\\n", "\n")

    @field_validator("rsa_public_key")
    @classmethod
    def _rsa(cls, pem: str | None) -> str | None:
        if pem is not None:
            rsa_key_from_pem(pem)
        return pem

    @field_validator("ecdsa_public_key")
    @classmethod
    def _ecdsa(cls, pem: str | None) -> str | None:
        if pem is not None:
            ec_key_from_pem(pem)
        return pem

    @field_validator("audience_regex", "issuer_regex")
    @classmethod
    def _regex(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @field_validator("jwks_public_endpoint")
    @classmethod
    def _endpoint(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            named, credentials = bool(parts.hostname), parts.username is not None
        except ValueError:
            raise ValueError("is not a URL") from None
        if parts.scheme not in ("http", "https") or not named:
            raise ValueError("must be an http:// or https:// URL")
        if credentials:
            raise ValueError("must not hold a user name or password")
        if "{" in parts.netloc:
            raise ValueError("must not take its host from the token")
        if set(_PLACEHOLDER.sub("", url)) & {"{", "}"}:
            raise ValueError("has a brace outside of {{name}}")
        return url

    @model_validator(mode="after")
    def _combinations(self) -> TokenOptions:
        if self.jwks_public_endpoint and (self.hmac_secret or self.rsa_public_key or self.ecdsa_public_key):
            raise ValueError(
                "jwks_public_endpoint takes the place of hmac_secret, rsa_public_key and ecdsa_public_key; "
                "set either the endpoint or keys"
            )
        if self.hmac_previous_secret_key and not self.hmac_secret:
            raise ValueError("hmac_previous_secret_key needs hmac_secret, the one that follows it")
        if self.hmac_previous_secret_key_valid_until and not self.hmac_previous_secret_key:
            raise ValueError("hmac_previous_secret_key_valid_until needs hmac_previous_secret_key")
        if self.audience and self.audience_regex:
            raise ValueError("set audience or audience_regex, not both")
        if self.issuer and self.issuer_regex:
            raise ValueError("set issuer or issuer_regex, not both")
        self.jwks_values()
        return self


class SubscriptionTokenOptions(TokenOptions):
    """Keys of subscription tokens alone (`BONGSU_CLIENT__SUBSCRIPTION_TOKEN__*`); they need no other options.

    Not enabled, subscription tokens are checked as connection tokens are.
    """

    enabled: bool = Field(
        False, description="Check subscription tokens by the settings below, instead of BONGSU_TOKEN__…"
    )

    @model_validator(mode="after")
    def _keys_are_used(self) -> SubscriptionTokenOptions:
        if self.enabled and not self.configured:
            raise ValueError("is enabled, but no key is set that subscription tokens could be checked with")
        if self.configured and not self.enabled:
            raise ValueError("has a key, but is not enabled; set its option enabled to true")
        return self


def _listed_values(name: str, *patterns: str | None) -> frozenset[str]:
    """The alternatives of the group `(?P<name>a|b|c)`.

    Anything freer than a list would let whoever makes up a token choose the place its key is read from.
    Raises `ValueError` when no pattern, or more than one, has the group, or it is not a plain list.
    """
    groups = [
        group for pattern in patterns for group in re.findall(rf"\(\?P<{name}>([^()]*)\)", pattern or "")
    ]
    if len(groups) != 1:
        raise ValueError(
            f"jwks_public_endpoint has {{{{{name}}}}}: issuer_regex or audience_regex must have exactly one "
            f"group (?P<{name}>value1|value2)"
        )
    values = groups[0].split("|")
    if not all(_LISTED_VALUE.fullmatch(value) for value in values):
        raise ValueError(
            f"the group (?P<{name}>…) fills the key set's URL, so it must list its values, as in "
            f"(?P<{name}>acme|globex): letters, digits, _, ~, - and \\."
        )
    return frozenset(value.replace("\\", "") for value in values)
