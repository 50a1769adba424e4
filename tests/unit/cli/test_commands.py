"""What the commands print and how they end, where no server is needed."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import httpx
import jwt
import pytest
from typer.testing import CliRunner, Result

from bongsu import __version__
from bongsu.cli import app
from bongsu.cli.console import one_line, reason, refusal

HMAC_SECRET = "0123456789abcdef0123456789abcdef"
API_KEY = "an-api-key-for-tests"
COMMANDS = ["serve", "check", "migrate", "token", "doctor", "publish", "subscribe", "upload"]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("BONGSU_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=input)


def test_the_version_is_that_of_the_package() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"bongsu {__version__}\n")


def test_the_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert [name for name in COMMANDS if name not in result.stdout] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert any(
        line.strip().startswith("$") and f"bongsu {name}" in line for line in result.stdout.splitlines()
    )


def test_a_mistyped_command_is_answered_with_the_nearest_one() -> None:
    result = run("subcribe", "x")
    assert result.exit_code == 2
    assert "subscribe" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("publish", "news", "hello"), "A text needs quotes"),
        (("publish", "news", "{"), "not JSON"),
        (("publish", "news", "NaN"), "not JSON"),
        (("publish", "news", ""), "not JSON"),
        (("publish", "news"), "Missing argument"),
        (("publish", "news", "1", "--url", "example.org"), "must be an address such as"),
        (("publish", "news", "1", "--url", "ftp://example.org"), "must be an address such as"),
        (("publish", "news", "1", "--url", "http://"), "must be an address such as"),
        (("publish", "news", "1", "--url", "http://h:x"), "must be an address such as"),
        (("publish", "news", "1", "--url", "http://h/?a=1"), "must be an address such as"),
        (("subscribe", "news", "--count", "0"), "--count"),
        (("upload", "absent.bin"), "does not exist"),
        (("upload", "."), "is a directory"),
        (("token", "42", "--ttl", "soon"), "must be a duration"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_json_from_standard_input_is_checked_too() -> None:
    result = run("publish", "news", "-", input="not json")
    assert result.exit_code == 2
    assert "not JSON" in result.stderr


# check


def test_check_names_every_problem_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_PROT", "1")
    monkeypatch.setenv("BONGSU_PORT", "x")
    result = run("check")
    assert result.exit_code == 1
    assert result.stdout == ""
    for words in (
        "did you mean BONGSU_PORT?",
        "BONGSU_PORT: must be a whole number",
        "BONGSU_API_KEY",
        "HMAC_SECRET",
    ):
        assert words in result.stderr
    as_json = run("check", "--json")
    assert as_json.exit_code == 1
    answer = json.loads(as_json.stdout)
    assert not answer["ok"]
    assert len(answer["problems"]) == 4


def test_check_shows_values_with_their_origin_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bongsu.toml").write_text("[channels.namespaces.News]\nallow_publish_for_client = true\n")
    monkeypatch.setenv("BONGSU_API_KEY", API_KEY)
    monkeypatch.setenv("BONGSU_TOKEN__HMAC_SECRET", HMAC_SECRET)
    monkeypatch.setenv("BONGSU_BROKER_URL", "redis://user:hunter2@redis:6379")
    result = run("check")
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.split()}
    assert rows["broker_url"][1:] == ["redis://user:***@redis:6379", "BONGSU_BROKER_URL"]
    assert rows["api_key"][1:] == ["***", "BONGSU_API_KEY"]
    assert rows["port"][1:] == ["8000", "default"]
    assert rows["channels.namespaces.News.allow_publish_for_client"][1] == "true"
    for secret in (API_KEY, HMAC_SECRET, "hunter2"):
        assert secret not in result.output


def test_check_as_json_is_for_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_CLIENT__SLOW_TIMEOUT", "250ms")
    result = run("check", "--dev", "--json")
    assert result.exit_code == 0
    rows = {row["key"]: row for row in json.loads(result.stdout)["settings"]}
    assert rows["client.slow_timeout"] == {
        "key": "client.slow_timeout",
        "variable": "BONGSU_CLIENT__SLOW_TIMEOUT",
        "value": 0.25,
        "origin": "BONGSU_CLIENT__SLOW_TIMEOUT",
    }
    assert rows["dev"]["origin"] == "argument dev"
    assert rows["api_key"]["value"] == "***"


def test_serve_does_not_start_with_settings_that_cannot_be_used() -> None:
    result = run("serve", "--port", "0")
    assert result.exit_code == 1
    assert "BONGSU_API_KEY" in result.stderr
    assert "openssl rand -hex 32" in result.stderr


# token


def test_token_prints_a_connection_token_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_TOKEN__HMAC_SECRET", HMAC_SECRET)
    before = int(time.time())
    result = run("token", "42", "--ttl", "5m")
    claims = jwt.decode(result.stdout.strip(), HMAC_SECRET, algorithms=["HS256"])
    assert claims["sub"] == "42"
    assert "channel" not in claims
    assert claims["exp"] - claims["iat"] == 300
    assert claims["iat"] >= before
    assert result.stdout.count("\n") == 1


def test_token_makes_subscription_tokens_and_ones_that_never_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONGSU_TOKEN__HMAC_SECRET", HMAC_SECRET)
    result = run("token", "", "--channel", "$room:1", "--ttl", "0")
    claims = jwt.decode(result.stdout.strip(), HMAC_SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["channel"]) == ("", "$room:1")
    assert "exp" not in claims


def test_token_signs_subscription_tokens_with_their_own_secret_where_they_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = HMAC_SECRET[::-1]
    monkeypatch.setenv("BONGSU_TOKEN__HMAC_SECRET", HMAC_SECRET)
    monkeypatch.setenv("BONGSU_CLIENT__SUBSCRIPTION_TOKEN__ENABLED", "true")
    monkeypatch.setenv("BONGSU_CLIENT__SUBSCRIPTION_TOKEN__HMAC_SECRET", own)
    for arguments, secret in ((["--channel", "$room:1"], own), ([], HMAC_SECRET)):
        result = run("token", "42", *arguments)
        assert jwt.decode(result.stdout.strip(), secret, algorithms=["HS256"])["sub"] == "42"


def test_token_without_a_secret_says_which_setting_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("token", "42")
    assert result.exit_code == 1
    assert "BONGSU_TOKEN__HMAC_SECRET is not set" in result.stderr
    monkeypatch.setenv("BONGSU_CLIENT__SUBSCRIPTION_TOKEN__ENABLED", "true")
    monkeypatch.setenv(
        "BONGSU_CLIENT__SUBSCRIPTION_TOKEN__JWKS_PUBLIC_ENDPOINT", "https://id.example.org/keys"
    )
    result = run("token", "42", "--channel", "$room:1")
    assert result.exit_code == 1
    assert "BONGSU_CLIENT__SUBSCRIPTION_TOKEN__HMAC_SECRET is not set" in result.stderr


# migrate


def test_migrate_says_what_it_applied_and_then_that_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BONGSU_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/x.db")
    first, second = run("migrate"), run("migrate")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert first.stdout.startswith("applied 0001")
    assert second.stdout == "nothing to do: the database is up to date\n"


# Words


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            413,
            b'{"title":"Too large","detail":"10 bytes are allowed","code":"upload_too_large"}',
            "Too large: 10 bytes are allowed (upload_too_large)",
        ),
        (403, b'{"title":"Not allowed"}', "Not allowed"),
        (502, b"<html>\r\nBad Gateway", "the server answered 502: <html>\\r\\nBad Gateway"),
        (500, b"", "the server answered 500"),
        (400, b"[1]", "the server answered 400: [1]"),
        (400, b"\xff" * 3, "the server answered 400: \ufffd\ufffd\ufffd"),
    ],
)
def test_an_error_answer_is_told_in_words(status: int, body: bytes, words: str) -> None:
    assert refusal(status, body) == words


def test_an_error_answer_that_is_long_is_cut() -> None:
    assert len(refusal(500, b"x" * 100_000)) < 600


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    assert one_line("봉수 \x1b[2J\r\n\u2028\x9b") == "봉수 \\x1b[2J\\r\\n\\u2028\\x9b"


def test_the_reason_of_a_failed_connection_is_the_system_error_behind_it() -> None:
    wrapped = httpx.ConnectError("All connection attempts failed")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")
    assert reason(wrapped) == "connection refused"
    assert reason(httpx.ReadTimeout("x")) == "no answer in time"
    assert reason(OSError(113, "No route to host")) == "No route to host"
    assert reason(ValueError("odd")) == "odd"
    assert reason(io.UnsupportedOperation()) == "UnsupportedOperation"
