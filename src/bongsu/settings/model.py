"""What an operator may set, composed from the rooms' own options. Pure: reads no environment."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from bongsu.auth import TokenOptions
from bongsu.jobs.options import JobOptions, OutboxOptions
from bongsu.node.channels import UPLOADS_NAMESPACE, ChannelOptions, NameOptions
from bongsu.node.client import ClientOptions
from bongsu.uploads.options import UploadOptions
from bongsu.uploads.stores import file_directory, s3_address
from bongsu.uploads.stores.s3.plan import LARGEST

MAKE_A_SECRET: Final = "openssl rand -hex 32"

# Short enough to type, long enough that nobody guesses it: 128 bits when it is random.
_MIN_API_KEY_BYTES: Final = 16
# RFC 7518 §3.2: a key of HS256 must have 256 bits or more. Anyone who has one token can try secrets offline.
_MIN_HMAC_BYTES: Final = 32

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{2,}", re.ASCII)
_ORIGIN: Final = re.compile(r"[a-z*][a-z0-9+.*-]*://[^/\s?#]+", re.ASCII)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _replica_name() -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname(), flags=re.ASCII)[:40] or "replica"
    # The random part keeps two containers apart whose host name and pid are equal, and a restart from its
    # predecessor, whose lease may still live.
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


class _Options(BaseModel):
    # An error must not repeat what was given: it may be a secret, and errors end up in logs.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Plain(_Options):
    """The plain broadcast, `/ws` and `/ws/{channel}`."""

    template: str = Field(
        "📢 새로운 알림: {text}",
        description="What plain clients are shown of a text another one sent; must hold {text} exactly once",
    )
    message_size_limit: int = Field(
        65536, gt=0, description="Largest message of a plain client in bytes; larger ones close it (1009)"
    )

    @field_validator("template")
    @classmethod
    def _holds_the_text_once(cls, template: str) -> str:
        if template.count("{text}") != 1:
            raise ValueError("must contain {text} exactly once, where the message goes")
        return template


class WebSocket(_Options):
    """What sockets may agree on at their handshake."""

    compression: bool = Field(
        False, description="Compress messages for clients that ask for it (permessage-deflate)"
    )
    compression_min_size: int = Field(
        128, ge=0, description="Bytes of a message below which it is sent as it is"
    )
    compression_level: int = Field(1, ge=1, le=9, description="From 1, fastest, to 9, smallest")


class HttpStream(_Options):
    """The client protocol at `/connection/http_stream`."""

    enabled: bool = Field(True, description="Serve /connection/http_stream, and /emulation with it")


class Sse(_Options):
    """The client protocol at `/connection/sse`."""

    enabled: bool = Field(True, description="Serve /connection/sse, and /emulation with it")


class UniHttpStream(_Options):
    """One-way, at `/connection/uni_http_stream`."""

    enabled: bool = Field(False, description="Serve /connection/uni_http_stream")


class UniSse(_Options):
    """One-way, at `/connection/uni_sse`."""

    enabled: bool = Field(False, description="Serve /connection/uni_sse")


class UniWebSocket(_Options):
    """One-way, at `/connection/uni_websocket`."""

    enabled: bool = Field(False, description="Serve /connection/uni_websocket")


class Channels(NameOptions):
    """What the channels can do, who may do what on them, and how their names are read."""

    without_namespace: ChannelOptions = Field(
        ChannelOptions(), description="Options of channels without a namespace, such as `broadcast`"
    )
    namespaces: dict[str, ChannelOptions] = Field(
        default_factory=dict, description="Options of the channels `<name>:…`, by namespace name"
    )

    @field_validator("namespaces")
    @classmethod
    def _names_are_valid(
        cls, namespaces: dict[str, ChannelOptions], info: ValidationInfo
    ) -> dict[str, ChannelOptions]:
        for name in namespaces:
            if name == UPLOADS_NAMESPACE:
                raise ValueError(
                    f"the namespace “{name}” is built in and cannot be set up; choose another name"
                )
            if _NAMESPACE.fullmatch(name) is None:
                raise ValueError(
                    f"“{name}” is not a namespace name: two or more letters, digits, “_”, “-” or “.” are"
                )
            if info.data.get("namespace_boundary", ":") in name:
                raise ValueError(f"no channel could be in “{name}”: the namespace_boundary is in its name")
        return namespaces


class Log(_Options):
    """What is logged, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", description="Least severe lines that are logged: debug, info, warning or error"
    )
    format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = Field(
        "auto", description="json, console, or auto: console in a terminal and json elsewhere"
    )


class Shutdown(_Options):
    """How a replica ends."""

    timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds from the signal until what is still open is cut off and the process ends",
    )


class Settings(_Options):
    """Everything that can be set. Frozen; made by `bongsu.settings.load`.

    Raises `pydantic.ValidationError`; `load` turns that into a `SettingsError` that names the variables.
    """

    # These two first: the checks of secrets below ask for them.
    dev: bool = Field(
        False,
        description="Development: anonymous clients and uploads, open plain sockets, a made-up API key",
    )
    client: ClientOptions = Field(ClientOptions(), description="Limits and rules of client connections")
    host: str = Field("127.0.0.1", pattern=r"^\S+$", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 = any free one")
    replica: str = Field(
        default_factory=_replica_name,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="This replica's name, unique in the cluster; default: host name, process id, random part",
    )
    broker_url: str = Field(
        "memory://",
        repr=False,
        description="Between replicas: redis://, rediss:// or unix:// (Redis); memory:// serves one replica",
    )
    redis_prefix: str = Field(
        "bongsu",
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="Beginning of every Redis key and channel; deployments that share a Redis need their own",
    )
    database_url: str = Field(
        "sqlite+aiosqlite:///var/bongsu.db",
        repr=False,
        description="Shared database: postgresql+asyncpg://user:password@host/name, or sqlite+aiosqlite:///file",
    )
    storage_url: str = Field(
        default_factory=lambda: (Path.cwd() / "var" / "uploads").as_uri(),
        repr=False,
        description="Where files are stored: file:///directory, one for all replicas; s3://bucket/prefix, "
        "with the usual AWS_… variables; memory://, gone with the process. Default: var/uploads",
    )
    api_key: SecretStr | None = Field(
        None,
        validate_default=True,
        description="Key of the server API, sent as X-API-Key; required unless dev, which makes one",
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="Other origins whose pages may connect, such as https://app.example.org; * stands for "
        "anything. The server's own origin is always allowed",
    )
    forwarded_allow_ips: list[str] = Field(
        default_factory=list,
        description="Addresses or networks of proxies whose X-Forwarded-For and -Proto headers are believed; "
        "default: nobody's, since any client can send them",
    )
    plain: Plain = Field(Plain(), description="The plain broadcast")
    websocket: WebSocket = Field(WebSocket(), description="Compression of sockets")
    http_stream: HttpStream = Field(HttpStream(), description="The client protocol over an HTTP stream")
    sse: Sse = Field(Sse(), description="The client protocol over server-sent events")
    uni_http_stream: UniHttpStream = Field(UniHttpStream(), description="One-way HTTP stream")
    uni_sse: UniSse = Field(UniSse(), description="One-way server-sent events")
    uni_websocket: UniWebSocket = Field(UniWebSocket(), description="One-way WebSocket")
    channels: Channels = Field(Channels(), validate_default=True, description="Channels and namespaces")
    upload: UploadOptions = Field(UploadOptions(), description="Uploads")
    jobs: JobOptions = Field(JobOptions(), description="Jobs of the embedding application")
    outbox: OutboxOptions = Field(OutboxOptions(), description="Publications committed to the database")
    token: TokenOptions = Field(TokenOptions(), validate_default=True, description="Client tokens")
    log: Log = Field(Log(), description="Logging")
    shutdown: Shutdown = Field(Shutdown(), description="Ending")

    @field_validator("broker_url")
    @classmethod
    def _broker_is_known(cls, url: str) -> str:
        scheme, rest = _split_scheme(url)
        if scheme not in {"memory", "redis", "rediss", "unix"}:
            raise ValueError("must begin with memory://, redis://, rediss:// or unix://")
        if scheme == "memory" and rest:
            raise ValueError("memory:// takes nothing after it")
        if scheme in {"redis", "rediss"} and not _has_host(url):
            raise ValueError(f"names no host, or no port there can be; write {scheme}://host:6379/0")
        if scheme == "unix" and not rest.rpartition("@")[2].startswith("/"):
            raise ValueError("names no socket; write unix:///path/to/redis.sock")
        return url

    @field_validator("database_url")
    @classmethod
    def _database_is_known(cls, url: str) -> str:
        scheme, rest = _split_scheme(url)
        if scheme in {"postgres", "postgresql"}:
            raise ValueError(f"needs an asynchronous driver: write postgresql+asyncpg://… for {scheme}://…")
        if scheme == "sqlite":
            raise ValueError("needs an asynchronous driver: write sqlite+aiosqlite:///… for sqlite:///…")
        if scheme not in {"sqlite+aiosqlite", "postgresql+asyncpg"}:
            raise ValueError("must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
        if scheme == "sqlite+aiosqlite" and not rest.startswith("/"):
            raise ValueError(
                "has a path after two slashes; write sqlite+aiosqlite:///relative or ////absolute"
            )
        return url

    @field_validator("storage_url")
    @classmethod
    def _storage_is_known(cls, url: str) -> str:
        scheme, rest = _split_scheme(url)
        if scheme not in {"file", "s3", "memory"}:
            raise ValueError("must begin with file:///, s3:// or memory://")
        if scheme == "s3":
            s3_address(url)
        if scheme == "memory" and rest:
            raise ValueError("memory:// takes nothing after it")
        if scheme == "file":
            if not rest.startswith("/"):
                raise ValueError("must name an absolute directory: file:///path/to/uploads")
            file_directory(url)
        return url

    @field_validator("upload")
    @classmethod
    def _storage_takes_such_files(cls, upload: UploadOptions, info: ValidationInfo) -> UploadOptions:
        if info.data.get("storage_url", "").startswith("s3://") and upload.max_size > LARGEST:
            raise ValueError(f"max_size is too large: storage on S3 takes files of up to {LARGEST} bytes")
        return upload

    @field_validator("api_key")
    @classmethod
    def _api_key_is_strong(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        dev = info.data.get("dev")
        if dev is None:  # itself not valid, which is told already
            return key
        if key is None or not key.get_secret_value():
            if dev:
                return SecretStr(secrets.token_urlsafe(24))
            raise ValueError(
                f"is not set. Make one with `{MAKE_A_SECRET}`, or use --dev (BONGSU_DEV=true) "
                "on your own machine"
            )
        text = key.get_secret_value()
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise ValueError("must be printable ASCII without spaces around it, since it travels in a header")
        if len(text) < _MIN_API_KEY_BYTES and not _weak_secrets_will_do(info):
            raise ValueError(
                f"is too short: {_MIN_API_KEY_BYTES} characters or more. Make one with `{MAKE_A_SECRET}`"
            )
        return key

    @field_validator("client")
    @classmethod
    def _subscription_token_keys_are_strong(
        cls, client: ClientOptions, info: ValidationInfo
    ) -> ClientOptions:
        if info.data.get("dev") is False and not client.insecure:
            _check_strength(client.subscription_token, "subscription_token.")
        return client

    @field_validator("token")
    @classmethod
    def _token_keys_are_strong(cls, token: TokenOptions, info: ValidationInfo) -> TokenOptions:
        if info.data.get("dev") is not False:
            return token
        if not token.configured:
            raise ValueError(
                "no key is set that client tokens could be checked with. Set BONGSU_TOKEN__HMAC_SECRET "
                f"(make one with `{MAKE_A_SECRET}`), BONGSU_TOKEN__RSA_PUBLIC_KEY, "
                "BONGSU_TOKEN__ECDSA_PUBLIC_KEY or BONGSU_TOKEN__JWKS_PUBLIC_ENDPOINT, or use --dev "
                "(BONGSU_DEV=true) on your own machine"
            )
        if not _weak_secrets_will_do(info):
            _check_strength(token)
        return token

    @field_validator("channels")
    @classmethod
    def _personal_channels_have_their_namespace(cls, channels: Channels, info: ValidationInfo) -> Channels:
        client: ClientOptions | None = info.data.get("client")
        name = client.subscribe_to_user_personal_channel.personal_channel_namespace if client else ""
        if name and name not in channels.namespaces:
            raise ValueError(
                f"personal channels are to be in the namespace “{name}”, which is not set up; set an option "
                f"of BONGSU_CHANNELS__NAMESPACES__{name}__…"
            )
        return channels

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        # Browsers send scheme and host in lower case, and never a path: such an entry would never match.
        origins = [origin.lower() for origin in origins]
        for origin in origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"“{origin}” is not an origin; write scheme and host without a path, such as "
                    "https://app.example.org or https://*.example.org"
                )
        return origins

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ValueError(
                    f"“{network}” is not an address or network; write 10.0.0.5 or 10.0.0.0/8"
                ) from None
        return networks


def _weak_secrets_will_do(info: ValidationInfo) -> bool:
    """Where everybody may do everything, a guessed secret opens nothing more."""
    client: ClientOptions | None = info.data.get("client")
    return info.data.get("dev") is not False or client is None or client.insecure


def _check_strength(token: TokenOptions, group: str = "") -> None:
    for name in ("hmac_secret", "hmac_previous_secret_key"):
        secret: SecretStr | None = getattr(token, name)
        if secret is not None and len(secret.get_secret_value().encode()) < _MIN_HMAC_BYTES:
            raise ValueError(
                f"{group}{name} is too short: {_MIN_HMAC_BYTES} bytes or more (RFC 7518 §3.2). "
                f"Make one with `{MAKE_A_SECRET}`"
            )


def _split_scheme(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError("is not a URL: it has no ://")
    return scheme, rest


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
