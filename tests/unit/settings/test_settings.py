"""What may be set, from where, and what is said about everything that may not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from bongsu.node.channels import ChannelOptions
from bongsu.node.client import ClientOptions
from bongsu.settings import Settings, SettingsError, known_settings, load, load_explained

API_KEY = "an-api-key-for-tests"
HMAC_SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and none of our variables: the developer's own must not decide."""
    for name in os.environ:
        if name.upper().startswith("BONGSU_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def toml(text: str) -> None:
    Path("bongsu.toml").write_text(text, "utf-8")


def problems(**overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


# Where values come from


def test_arguments_win_over_the_environment_which_wins_over_the_file_which_wins_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toml('dev = true\nport = 1\nhost = "10.0.0.1"\nredis_prefix = "file"')
    monkeypatch.setenv("BONGSU_PORT", "2")
    monkeypatch.setenv("BONGSU_HOST", "10.0.0.2")
    settings, origins = load_explained(port=3)
    assert (settings.port, settings.host, settings.redis_prefix) == (3, "10.0.0.2", "file")
    assert settings.broker_url == "memory://"
    assert origins == {
        ("port",): "argument port",
        ("host",): "BONGSU_HOST",
        ("redis_prefix",): "bongsu.toml: redis_prefix",
        ("dev",): "bongsu.toml: dev",
    }


def test_a_group_is_merged_option_by_option_from_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('[client]\nslow_timeout = "7s"\ndrain_timeout = 1')
    monkeypatch.setenv("BONGSU_CLIENT__DRAIN_TIMEOUT", "2s")
    settings = load(dev=True, client={"queue_max_size": "1MiB"})
    assert settings.client.queue_max_size == 2**20
    assert (settings.client.slow_timeout, settings.client.drain_timeout) == (7.0, 2.0)


def test_an_argument_may_be_the_rooms_own_model_and_counts_only_what_it_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BONGSU_CLIENT__DRAIN_TIMEOUT", "2s")
    channels = {
        "namespaces": {"Chat": ChannelOptions(allow_publish_for_client=True), "empty": ChannelOptions()}
    }
    settings = load(dev=True, client=ClientOptions(slow_timeout=9), channels=channels)
    assert (settings.client.slow_timeout, settings.client.drain_timeout) == (9.0, 2.0)
    assert settings.channels.namespaces["Chat"].allow_publish_for_client
    assert settings.channels.namespaces["empty"] == ChannelOptions()


def test_the_file_may_be_named_and_must_then_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    toml("port = 1")
    Path("other.toml").write_text("port = 2")
    monkeypatch.setenv("BONGSU_CONFIG", "other.toml")
    assert load(dev=True).port == 2
    monkeypatch.setenv("BONGSU_CONFIG", "absent.toml")
    assert problems(dev=True) == ["BONGSU_CONFIG: there is no file absent.toml"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"port = \n", "bongsu.toml: is not valid TOML"),
        (b"port = 1\nport = 2\n", "bongsu.toml: is not valid TOML"),
        (b'host = "\xff"\n', "bongsu.toml: is not valid TOML"),
    ],
)
def test_a_file_that_is_not_toml_is_told_of(content: bytes, words: str) -> None:
    Path("bongsu.toml").write_bytes(content)
    (problem,) = problems(dev=True)
    assert problem.startswith(words)


def test_a_file_that_cannot_be_read_is_told_of() -> None:
    Path("bongsu.toml").mkdir()
    assert problems(dev=True) == ["bongsu.toml: cannot be read: Is a directory"]


def test_option_names_are_read_in_either_case(monkeypatch: pytest.MonkeyPatch) -> None:
    toml("[Client]\nSlow_Timeout = 3\n[channels.without_namespace]\nALLOW_PUBLISH_FOR_CLIENT = true")
    monkeypatch.setenv("bongsu_port", "7")
    monkeypatch.setenv("BONGSU_CLIENT__drain_timeout", "4")
    settings = load(dev=True)
    assert (settings.port, settings.client.slow_timeout, settings.client.drain_timeout) == (7, 3.0, 4.0)
    assert settings.channels.without_namespace.allow_publish_for_client


def test_a_setting_given_twice_in_two_cases_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_PORT", "1")
    monkeypatch.setenv("bongsu_port", "2")
    (problem,) = problems(dev=True)
    assert "is set twice" in problem
    assert "BONGSU_PORT" in problem
    assert "bongsu_port" in problem


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BONGSU_PORT", "BONGSU_REPLICA", "BONGSU_CLIENT__SLOW_TIMEOUT", "BONGSU_API_KEY"):
        monkeypatch.setenv(name, "")
    settings = load(dev=True)
    assert settings.port == 8000
    assert settings.client.slow_timeout == ClientOptions().slow_timeout


def test_the_variables_of_the_client_commands_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_URL", "http://example.org")
    monkeypatch.setenv("BONGSU_ACCESS_TOKEN", "x")
    assert load(dev=True).port == 8000


# Namespaces


def test_namespaces_from_the_environment_are_lower_case_and_from_the_file_as_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toml('[channels.namespaces.News]\nallow_subscribe_for_client = true\n[channels.namespaces."a.b"]')
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__CHAT__ALLOW_PUBLISH_FOR_CLIENT", "true")
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__my-Room__allow_publish_for_client", "1")
    namespaces = load(dev=True).channels.namespaces
    assert sorted(namespaces) == ["News", "a.b", "chat", "my-room"]
    assert namespaces["chat"].allow_publish_for_client
    assert namespaces["News"].allow_subscribe_for_client
    assert namespaces["a.b"] == ChannelOptions()


@pytest.mark.parametrize("name", ["x", "a b", "a:b", "뉴스", "a#b", "a\n", ""])
def test_a_namespace_name_has_two_or_more_letters_digits_dashes_dots_or_underscores(name: str) -> None:
    (problem,) = problems(dev=True, channels={"namespaces": {name: {}}})
    assert "is not a namespace name" in problem


def test_the_built_in_namespace_cannot_be_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__UPLOADS__ALLOW_PUBLISH_FOR_CLIENT", "true")
    (problem,) = problems(dev=True)
    assert "“uploads” is built in" in problem


def test_a_namespace_that_is_empty_in_a_weaker_source_keeps_the_options_of_the_stronger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toml("[channels.namespaces.chat]")
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__CHAT__ALLOW_PUBLISH_FOR_CLIENT", "true")
    assert load(dev=True).channels.namespaces["chat"].allow_publish_for_client


# Values


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("dev", "yes", True),
        ("port", "8123", 8123),
        ("port", "0", 0),
        ("client.slow_timeout", "300s", 300.0),
        ("client.slow_timeout", "5m", 300.0),
        ("client.slow_timeout", "1h", 3600.0),
        ("client.slow_timeout", "500ms", 0.5),
        ("client.slow_timeout", "1.5", 1.5),
        ("client.slow_timeout", " 2 ", 2.0),
        ("shutdown.timeout", "1m", 60.0),
        ("token.jwks_cache_ttl", "2h", 7200.0),
        ("upload.max_size", "1GiB", 2**30),
        ("upload.max_size", "10mib", 10 * 2**20),
        ("upload.max_size", "10 MB", 10_000_000),
        ("upload.max_size", "65536", 65536),
        ("client.queue_max_size", "64KiB", 65536),
        ("plain.message_size_limit", "1KiB", 1024),
        ("upload.user_quota", "20MiB", 20 * 2**20),
        ("upload.total_quota", "1TB", 10**12),
        ("upload.min_free", "1GiB", 2**30),
        ("upload.min_rate", "1KiB", 1024),
        ("allowed_origins", '["https://App.Example.org"]', ["https://app.example.org"]),
        (
            "allowed_origins",
            "https://*.example.org, http://localhost:3000",
            ["https://*.example.org", "http://localhost:3000"],
        ),
        ("allowed_origins", "*", ["*"]),
        ("allowed_origins", "[]", []),
        ("forwarded_allow_ips", '["127.0.0.1", "10.0.0.0/8", "::1"]', ["127.0.0.1", "10.0.0.0/8", "::1"]),
        ("plain.template", "<{text}> {}", "<{text}> {}"),
        ("broker_url", "redis://:pass@h:6379/0", "redis://:pass@h:6379/0"),
        ("broker_url", "rediss://h", "rediss://h"),
        ("broker_url", "unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("database_url", "postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("database_url", "postgresql+asyncpg:///d?host=/run/pg", "postgresql+asyncpg:///d?host=/run/pg"),
        ("database_url", "sqlite+aiosqlite:////abs/x.db", "sqlite+aiosqlite:////abs/x.db"),
        ("storage_url", "file:///srv/files", "file:///srv/files"),
        ("log.level", "DEBUG", "debug"),
        ("log.format", "Json", "json"),
        ("replica", "node-1.a_b", "node-1.a_b"),
    ],
)
def test_a_value_is_read_from_its_variable(
    path: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BONGSU_DEV", "true")
    monkeypatch.setenv("BONGSU_" + path.upper().replace(".", "__"), text)
    assert at(load(), path) == value


@pytest.mark.parametrize(
    ("path", "literal", "value"),
    [
        ("client.slow_timeout", '"5m"', 300.0),
        ("client.slow_timeout", "2", 2.0),
        ("client.slow_timeout", "0.25", 0.25),
        ("upload.max_size", '"10MiB"', 10 * 2**20),
        ("allowed_origins", '["https://a.example"]', ["https://a.example"]),
        ("dev", "true", True),
    ],
)
def test_a_value_is_read_from_its_key_in_the_file(path: str, literal: str, value: object) -> None:
    toml(f"{path} = {literal}" if path == "dev" else f"dev = true\n{path} = {literal}")
    assert at(load(), path) == value


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("dev", "perhaps", "must be true or false, not 'perhaps'"),
        ("port", "abc", "must be a whole number, not 'abc'"),
        ("port", "65536", "must be less than or equal to 65535"),
        ("port", "-1", "must be greater than or equal to 0"),
        ("port", "tcp://10.0.0.1:8000", "enableServiceLinks"),
        ("client.slow_timeout", "5 minutes", "must be a duration such as"),
        ("client.slow_timeout", "-1s", "must be a duration such as"),
        ("client.slow_timeout", "nan", "must be a duration such as"),
        ("client.slow_timeout", "9" * 400, "must be a duration such as"),
        ("client.slow_timeout", "0s", "must be greater than 0"),
        ("client.slow_timeout", "٣s", "must be a duration such as"),
        ("upload.max_size", "10XB", "must be a size such as"),
        ("upload.max_size", "1.5MiB", "must be a size such as"),
        ("upload.max_size", "0", "must be greater than 0"),
        ("port", "8KiB", "must be a whole number"),
        ("allowed_origins", '["https://a.example"', "must be JSON"),
        ("allowed_origins", "https://a.example/", "is not an origin"),
        ("allowed_origins", "a.example", "is not an origin"),
        ("allowed_origins", "null", "is not an origin"),
        ("forwarded_allow_ips", "nginx", "is not an address or network"),
        ("forwarded_allow_ips", "*", "is not an address or network"),
        ("plain.template", "no place", "must contain {text} exactly once"),
        ("plain.template", "{text}{text}", "must contain {text} exactly once"),
        ("broker_url", "amqp://h", "must begin with memory://"),
        ("broker_url", "localhost:6379", "is not a URL"),
        ("broker_url", "redis://", "names no host"),
        ("broker_url", "redis://h:port", "names no host"),
        ("broker_url", "memory://x", "takes nothing after it"),
        ("broker_url", "unix://run/redis.sock", "names no socket"),
        ("database_url", "postgres://h/d", "write postgresql+asyncpg://"),
        ("database_url", "postgresql://h/d", "write postgresql+asyncpg://"),
        ("database_url", "sqlite:///x", "write sqlite+aiosqlite:///"),
        ("database_url", "mysql://h/d", "must begin with"),
        ("database_url", "sqlite+aiosqlite://x.db", "has a path after"),
        ("storage_url", "ftp://host/files", "must begin with file:///"),
        ("storage_url", "memory://here", "takes nothing after it"),
        ("storage_url", "s3://Bucket/prefix", "names no bucket"),
        ("storage_url", "s3://bucket/a/../b", "between single slashes"),
        ("storage_url", "s3://key:secret@bucket", "set AWS_ACCESS_KEY_ID"),
        ("storage_url", "file://relative", "must name an absolute directory"),
        ("storage_url", "file:///", "names no directory"),
        ("storage_url", "file:///a?b", "write ? as %3F"),
        ("storage_url", "file:///a#b", "and # as %23"),
        ("replica", "a b", "must match"),
        ("redis_prefix", "a{b}", "must match"),
        ("host", "a b", "must match"),
        ("log.level", "loud", "must be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        ("log.format", "xml", "not 'xml'"),
        ("token.rsa_public_key", "not a key", "PEM"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_the_name_of_its_variable(
    path: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "BONGSU_" + path.upper().replace(".", "__")
    monkeypatch.setenv(variable, text)
    overrides = {} if path == "dev" else {"dev": True}
    found = [problem for problem in problems(**overrides) if problem.startswith(f"{variable}: ")]
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "client.slow_timeout = true",
            "bongsu.toml: client.slow_timeout: must be a number, not true or false",
        ),
        ("client.slow_timeout = inf", "bongsu.toml: client.slow_timeout: must be a finite number"),
        ("port = true", "bongsu.toml: port: must be a number, not true or false"),
        ("port = 1.5", "bongsu.toml: port: must be a whole number, not 1.5"),
        ("host = 5", "bongsu.toml: host: must be a text, not 5"),
        ('allowed_origins = "https://a.example"', "bongsu.toml: allowed_origins: must be a valid list"),
        ("client = 5", "bongsu.toml: client: is a group of settings"),
        ("channels.namespaces = 5", "bongsu.toml: channels.namespaces: is a group of settings"),
        ("channels.namespaces.chat = 5", "bongsu.toml: channels.namespaces.chat: is a group of settings"),
        ("port.x = 5", "bongsu.toml: port: must be"),
        ("log.level = [1]", "bongsu.toml: log.level: must be"),
    ],
)
def test_a_value_of_the_wrong_kind_in_the_file_is_told_with_its_key(line: str, words: str) -> None:
    toml(f"dev = true\n{line}")
    (problem,) = problems()
    assert problem.startswith(words)


# Options of the client protocol

# As somebody would set them who runs the test suites of the client libraries against the server.
SDK_SUITES = """
BONGSU_PORT=8000
BONGSU_API_KEY=test-api-key
BONGSU_TOKEN__HMAC_SECRET=secret
BONGSU_CLIENT__INSECURE=true
BONGSU_CLIENT__SUBSCRIBE_TO_USER_PERSONAL_CHANNEL__ENABLED=true
BONGSU_CLIENT__CONCURRENCY=8
BONGSU_CHANNELS__WITHOUT_NAMESPACE__PRESENCE=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__JOIN_LEAVE=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__FORCE_PUSH_JOIN_LEAVE=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__HISTORY_SIZE=100
BONGSU_CHANNELS__WITHOUT_NAMESPACE__HISTORY_TTL=300s
BONGSU_CHANNELS__WITHOUT_NAMESPACE__FORCE_RECOVERY=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__ALLOWED_DELTA_TYPES=["fossil"]
BONGSU_CHANNELS__WITHOUT_NAMESPACE__DELTA_PUBLISH=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__ALLOW_PUBLISH_FOR_SUBSCRIBER=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__ALLOW_PRESENCE_FOR_SUBSCRIBER=true
BONGSU_CHANNELS__WITHOUT_NAMESPACE__ALLOW_HISTORY_FOR_SUBSCRIBER=true
BONGSU_CHANNELS__NAMESPACES__smallhistory__HISTORY_SIZE=2
BONGSU_CHANNELS__NAMESPACES__smallhistory__HISTORY_TTL=300s
BONGSU_CHANNELS__NAMESPACES__smallhistory__FORCE_RECOVERY=true
"""

SDK_SUITES_FILE = """
port = 8000
api_key = "test-api-key"

[token]
hmac_secret = "secret"

[client]
insecure = true
concurrency = 8
subscribe_to_user_personal_channel.enabled = true

[channels.without_namespace]
presence = true
join_leave = true
force_push_join_leave = true
history_size = 100
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_publish_for_subscriber = true
allow_presence_for_subscriber = true
allow_history_for_subscriber = true

[channels.namespaces.smallhistory]
history_size = 2
history_ttl = "5m"
force_recovery = true
"""


@pytest.mark.parametrize("source", ["environment", "file"])
def test_environment_or_file_alone_can_say_what_the_suites_of_the_client_libraries_need(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "file":
        toml(SDK_SUITES_FILE)
    else:
        for line in SDK_SUITES.split():
            monkeypatch.setenv(*line.split("=", 1))
    settings = load()
    assert not settings.dev
    assert settings.port == 8000
    assert settings.api_key == SecretStr("test-api-key")
    assert settings.token.hmac_secret == SecretStr("secret")
    assert settings.client.insecure
    assert settings.client.concurrency == 8
    assert settings.client.subscribe_to_user_personal_channel.enabled
    assert settings.http_stream.enabled  # by default
    assert settings.sse.enabled
    assert settings.channels.without_namespace == ChannelOptions(
        presence=True,
        join_leave=True,
        force_push_join_leave=True,
        history_size=100,
        history_ttl=300.0,
        force_recovery=True,
        allowed_delta_types=("fossil",),
        delta_publish=True,
        allow_publish_for_subscriber=True,
        allow_presence_for_subscriber=True,
        allow_history_for_subscriber=True,
    )
    assert settings.channels.namespaces == {
        "smallhistory": ChannelOptions(history_size=2, history_ttl=300.0, force_recovery=True)
    }


@pytest.mark.parametrize("text", ["fossil", '["fossil"]', "fossil,"])
def test_a_list_of_delta_types_may_be_written_in_either_form(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__NEWS__ALLOWED_DELTA_TYPES", text)
    history = {"history_size": 1, "history_ttl": 1}
    settings = load(dev=True, channels={"namespaces": {"news": history}})
    assert settings.channels.namespaces["news"].allowed_delta_types == ("fossil",)


def test_a_history_size_counts_publications_and_takes_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__NEWS__HISTORY_TTL", "1m")
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__NEWS__HISTORY_SIZE", "100")
    assert load(dev=True).channels.namespaces["news"].history_size == 100
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__NEWS__HISTORY_SIZE", "100KiB")
    assert problems(dev=True) == [
        "BONGSU_CHANNELS__NAMESPACES__NEWS__HISTORY_SIZE: must be a whole number, not '100KiB'"
    ]


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("channels__without_namespace__force_recovery", "true", "force_recovery needs history"),
        ("channels__namespaces__news__history_size", "5", "history needs both history_size and history_ttl"),
        ("channels__namespaces__news__channel_regex", "(", "is not a regular expression"),
        (
            "channels__namespaces__news__force_recovery_mode",
            "tape",
            "must be 'stream' or 'cache', not 'tape'",
        ),
        ("channels__private_prefix", "#", "must differ"),
        ("client__pong_timeout", "25s", "pong_timeout must be less than ping_interval"),
        ("client__channel_limit", "0", "must be greater than 0"),
        (
            "client__subscribe_to_user_personal_channel__single_connection",
            "true",
            "has no effect until its option enabled is true",
        ),
        ("client__subscription_token__enabled", "true", "no key is set"),
        ("client__subscription_token__hmac_secret", "x" * 32, "is not enabled"),
    ],
)
def test_options_that_contradict_each_other_stop_the_start(
    path: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"BONGSU_{path.upper()}", text)
    (problem,) = problems(dev=True)
    assert words in problem
    assert path.split("__")[0] in problem.lower()


def test_pings_and_pongs_may_be_switched_off() -> None:
    assert load(dev=True, client={"ping_interval": 0}).client.ping_interval == 0
    assert load(dev=True, client={"pong_timeout": "0"}).client.pong_timeout == 0


def test_personal_channels_need_their_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_CLIENT__SUBSCRIBE_TO_USER_PERSONAL_CHANNEL__ENABLED", "true")
    monkeypatch.setenv(
        "BONGSU_CLIENT__SUBSCRIBE_TO_USER_PERSONAL_CHANNEL__PERSONAL_CHANNEL_NAMESPACE", "personal"
    )
    (problem,) = problems(dev=True)
    assert "the namespace “personal”, which is not set up" in problem
    monkeypatch.setenv("BONGSU_CHANNELS__NAMESPACES__PERSONAL__PRESENCE", "true")
    load(dev=True)


def test_no_namespace_may_have_the_boundary_in_its_name() -> None:
    channels = {"namespace_boundary": ".", "namespaces": {"a.b": {}}}
    (problem,) = problems(dev=True, channels=channels)
    assert "the namespace_boundary is in its name" in problem


# Unknown names


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("BONGSU_PROT", "BONGSU_PORT"),
        ("BONGSU_BROKER", "BONGSU_BROKER_URL"),
        ("BONGSU_REDIS_URL", None),
        ("BONGSU_HMAC_SECRET", "BONGSU_TOKEN__HMAC_SECRET"),
        ("BONGSU_TOKEN_HMAC_SECRET", "BONGSU_TOKEN__HMAC_SECRET"),
        ("BONGSU_CLIENT__SLOW_TIMEOT", "BONGSU_CLIENT__SLOW_TIMEOUT"),
        ("BONGSU_PORT__X", "BONGSU_PORT"),
        ("BONGSU_MAX_SIZE", "BONGSU_UPLOAD__MAX_SIZE"),
        ("BONGSU_LOGLEVEL", "BONGSU_LOG__LEVEL"),
        (
            "BONGSU_CHANNELS__NAMESPACES__chat__ALLOW_PUBLISH_FOR_CLIENTS",
            "BONGSU_CHANNELS__NAMESPACES__chat__ALLOW_PUBLISH_FOR_CLIENT",
        ),
        (
            "BONGSU_CHANNELS__WITHOUT_NAMESPACES__ALLOW_PUBLISH_FOR_CLIENT",
            "BONGSU_CHANNELS__WITHOUT_NAMESPACE__ALLOW_PUBLISH_FOR_CLIENT",
        ),
        ("BONGSU_", None),
        ("BONGSU___PORT", None),
        ("BONGSU_COMPLETELY_ELSE", None),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest_known_one(
    variable: str, nearest: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    (problem,) = problems(dev=True)
    assert problem.startswith(f"{variable}: there is no such setting")
    if nearest is not None:
        assert problem.endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prot = 1", "bongsu.toml: prot: there is no such setting; did you mean port?"),
        ("client.slow_timeot = 1", "did you mean client.slow_timeout?"),
        (
            "channels.namespaces.Chat.allow_publish_for_clients = true",
            "did you mean channels.namespaces.Chat.allow_publish_for_client?",
        ),
        ("url = 1", "bongsu.toml: url: there is no such setting"),
        ("[clients]\nslow_timeout = 1", "did you mean client?"),
    ],
)
def test_an_unknown_key_of_the_file_is_an_error_that_names_the_nearest_known_one(
    line: str, words: str
) -> None:
    toml(f"dev = true\n{line}")
    (problem,) = problems()
    assert words in problem


def test_a_variable_that_names_a_group_is_told_to_set_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_LOG", "debug")
    assert problems(dev=True) == [
        "BONGSU_LOG: is a group of settings; set its members, such as BONGSU_LOG__…"
    ]


def test_variables_that_kubernetes_makes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("BONGSU_PORT_8000_TCP_ADDR", "10.0.0.1")
    found = problems(dev=True)
    assert len(found) == 2
    assert all("enableServiceLinks: false" in problem for problem in found)


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    toml('[log]\nlevel = "loud"\n[upload]\nmax_size = "big"\n')
    monkeypatch.setenv("BONGSU_PROT", "1")
    monkeypatch.setenv("BONGSU_PORT", "x")
    found = "\n".join(problems())
    for name in (
        "BONGSU_PROT",
        "BONGSU_PORT",
        "log.level",
        "upload.max_size",
        "BONGSU_API_KEY",
        "HMAC_SECRET",
    ):
        assert name in found


# Secrets


def test_without_dev_the_missing_secrets_stop_the_start_and_say_how_to_make_one() -> None:
    api_key, token = problems()
    assert api_key.startswith(
        "BONGSU_API_KEY (api_key in bongsu.toml): is not set. Make one with `openssl rand"
    )
    assert "BONGSU_TOKEN__HMAC_SECRET" in token
    assert "openssl rand -hex 32" in token


def test_an_api_key_and_a_token_key_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_API_KEY", API_KEY)
    monkeypatch.setenv("BONGSU_TOKEN__HMAC_SECRET", HMAC_SECRET)
    settings = load()
    assert settings.api_key == SecretStr(API_KEY)
    assert settings.token.hmac_secret == SecretStr(HMAC_SECRET)
    assert not settings.dev


def test_a_key_set_of_another_server_is_enough_for_tokens() -> None:
    load(api_key=API_KEY, token={"jwks_public_endpoint": "https://id.example.org/keys"})


def test_weak_secrets_are_refused_without_dev_and_accepted_with_it() -> None:
    token = {"hmac_secret": "x" * 31, "hmac_previous_secret_key": HMAC_SECRET}
    found = problems(api_key="x" * 15, token=token)
    assert len(found) == 2
    assert all("too short" in problem for problem in found)
    settings = load(dev=True, api_key="x", token=token)
    assert settings.api_key == SecretStr("x")


def test_insecure_accepts_weak_secrets_but_needs_them_all_the_same() -> None:
    weak = {"hmac_secret": "secret"}
    client: dict[str, object] = {"insecure": True, "subscription_token": {"enabled": True, **weak}}
    settings = load(api_key="short", token=weak, client=client)
    assert settings.token.hmac_secret == SecretStr("secret")
    api_key, token = problems(client=client)
    assert "is not set" in api_key
    assert "no key is set" in token


def test_dev_does_not_mean_insecure() -> None:
    assert not load(dev=True).client.insecure


def test_keys_of_subscription_tokens_are_as_strong_as_others() -> None:
    good = {"api_key": API_KEY, "token": {"hmac_secret": HMAC_SECRET}}
    weak = {"subscription_token": {"enabled": True, "hmac_secret": "x" * 31}}
    (problem,) = problems(**good, client=weak)
    assert problem.startswith("client: subscription_token.hmac_secret is too short: 32 bytes or more")
    load(dev=True, client=weak)
    own = {"subscription_token": {"enabled": True, "hmac_secret": "y" * 32}}
    assert load(**good, client=own).client.subscription_token.hmac_secret == SecretStr("y" * 32)


@pytest.mark.parametrize("key", [" " * 20, "a" * 20 + "\n", "봉" * 20, "a" * 20 + "\r\nX-Evil: 1"])
def test_an_api_key_that_no_header_can_carry_is_refused(key: str) -> None:
    (problem,) = problems(dev=True, api_key=key)
    assert "printable ASCII" in problem


def test_dev_makes_an_api_key_of_its_own_each_time_unless_one_is_set() -> None:
    first, second = load(dev=True), load(dev=True)
    assert first.api_key is not None
    assert len(first.api_key.get_secret_value()) >= 32
    assert first.api_key != second.api_key
    assert "api_key" not in first.model_fields_set  # how `serve` knows that it has to show it
    given = load(dev=True, api_key=API_KEY)
    assert given.api_key == SecretStr(API_KEY)
    assert "api_key" in given.model_fields_set


def test_no_secret_is_in_a_problem_or_in_the_settings_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2-hunter2-hunter2-hunter2-hunter2"
    monkeypatch.setenv("BONGSU_BROKER_URL", f"amqp://user:{secret}@host")
    monkeypatch.setenv("BONGSU_DATABASE_URL", f"postgres://user:{secret}@host/db")
    monkeypatch.setenv("BONGSU_API_KEY", f"{secret}\n")
    toml(f'dev = true\n[token]\nhmac_secret = ["{secret}"]\nhmac_previous_secret_key = "{secret}"')
    with pytest.raises(SettingsError) as caught:
        load()
    assert len(caught.value.problems) == 4
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__
    settings = load_settings_with(secret)
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError) as invalid:
        Settings.model_validate({"api_key": secret, "token": {"hmac_secret": [secret]}})
    assert "hunter2" not in str(invalid.value)


def test_a_secret_of_the_wrong_kind_is_not_repeated_either() -> None:
    toml("dev = true\napi_key = 1234567890")
    assert problems() == ["bongsu.toml: api_key: must be a text"]


def load_settings_with(secret: str) -> Settings:
    return Settings.model_validate(
        {
            "api_key": secret,
            "token": {"hmac_secret": secret},
            "broker_url": f"redis://:{secret}@host",
            "database_url": f"postgresql+asyncpg://user:{secret}@host/db",
        }
    )


# The whole


def test_settings_cannot_be_changed() -> None:
    settings = load(dev=True)
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]  # what is tested
    with pytest.raises(ValidationError, match="frozen"):
        settings.client.slow_timeout = 1  # type: ignore[misc]  # what is tested


def test_replicas_on_one_host_get_names_of_their_own() -> None:
    names = {load(dev=True).replica for _ in range(5)}
    assert len(names) == 5


def test_files_are_stored_below_the_working_directory_by_default() -> None:
    assert load(dev=True).storage_url == (Path.cwd() / "var" / "uploads").as_uri()


def test_every_setting_can_be_set_by_its_variable_to_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the rules of reading (floats are durations, `size` is bytes) against options yet to come."""
    settings = load(dev=True)
    for setting in known_settings():
        if "<name>" in setting.path:
            continue
        value = at(settings, ".".join(setting.path))
        if isinstance(value, bool | int | float | str) and setting.path != ("dev",):
            monkeypatch.setenv(
                setting.variable, str(value).lower() if isinstance(value, bool) else str(value)
            )
    again = load(dev=True)
    for group in sorted({setting.path[0] for setting in known_settings()} - {"dev", "api_key", "replica"}):
        assert getattr(again, group) == getattr(settings, group)


def test_every_setting_is_described() -> None:
    assert [setting.key for setting in known_settings() if not setting.field.description] == []
