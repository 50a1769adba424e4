"""docs/tokens.md is right: its examples run in the order they stand, and it names every setting."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bongsu.auth import TokenOptions, TokenVerifier
from bongsu.auth.claims import MAX_TOKEN_LENGTH
from bongsu.auth.jwks import MAX_KEYS

PAGE = Path(__file__).parents[2] / "docs" / "tokens.md"
TEXT = PAGE.read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TOML = [body for language, body in BLOCKS if language == "toml"]

# What `bongsu check` wants besides tokens, outside --dev.
SERVER = {"BONGSU_API_KEY": "api-key-of-the-tests-that-is-long-enough"}


def environment(**variables: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("BONGSU_")}
    ours["PATH"] = f"{Path(sys.executable).parent}:{ours['PATH']}"
    return ours | variables


def test_the_examples_run_and_the_tokens_they_print_are_believed(tmp_path: Path) -> None:
    """One shell runs them all from top to bottom, as a reader would, and so keeps what they export."""
    script = ["set -euo pipefail"]
    for index, (language, body) in enumerate(BLOCKS):
        if language == "sh":
            script.append(body)
        elif language == "python":
            (tmp_path / f"{index}.py").write_text(body)
            script.append(f'"{sys.executable}" {index}.py')
    script.append('printf "%s\\n" "$BONGSU_ACCESS_TOKEN" "$BONGSU_TOKEN__HMAC_SECRET" ')
    script.append('printf "%s" "$BONGSU_TOKEN__ECDSA_PUBLIC_KEY"')
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    subscription, ours, theirs, ecdsa, connection, secret, *pem = run.stdout.splitlines()
    tokens = TokenVerifier(
        TokenOptions.model_validate({"hmac_secret": secret, "ecdsa_public_key": "\n".join(pem)})
    )
    asyncio.run(believe(tokens, [ours, theirs, ecdsa, connection], subscription))


async def believe(tokens: TokenVerifier, connections: list[str], subscription: str) -> None:
    now = time.time()
    for made in connections:
        assert (await tokens.verify_connection(made, now=now)).user == "42"
    assert json.loads((await tokens.verify_connection(connections[1], now=now)).info) == {"name": "김봉수"}
    assert (await tokens.verify_subscription(subscription, now=now)).channel == "$room:1"


@pytest.mark.parametrize("toml", TOML)
def test_each_configuration_is_accepted_by_the_check_command(tmp_path: Path, toml: str) -> None:
    (tmp_path / "bongsu.toml").write_text(toml)
    check = subprocess.run(
        ["bongsu", "check"],
        cwd=tmp_path,
        env=environment(**SERVER),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("name", TokenOptions.model_fields)
def test_every_setting_is_in_the_table(name: str) -> None:
    assert f"`BONGSU_TOKEN__{name.upper()}`" in TEXT.partition("## All settings")[2]


def test_the_limits_are_the_ones_in_force() -> None:
    assert f"{MAX_TOKEN_LENGTH:,} characters" in TEXT
    assert f"{MAX_KEYS} keys" in TEXT
