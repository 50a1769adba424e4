"""The official JavaScript SDK in node, over every transport and encoding it has with us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.sdk.conftest import WAYS, Deployment

HERE = Path(__file__).parent

# Each scenario waits for at most half a minute at a time and would say what for; this is for node itself.
_PATIENCE = 300


@pytest.mark.parametrize(("transport", "encoding"), WAYS)
def test_every_scenario_succeeds_with_the_javascript_sdk(
    deployment: Deployment, transport: str, encoding: str
) -> None:
    """The scenarios, one test of node's own runner each, are in tests/sdk/scenarios."""
    env = {
        **os.environ,
        "BONGSU_URL": deployment.url,
        "BONGSU_API_KEY": deployment.api_key,
        "BONGSU_TOKEN_SECRET": deployment.secret,
    }
    played = subprocess.run(
        ["node", "--test-reporter=spec", "play.mjs", transport, encoding],
        cwd=HERE,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    assert played.returncode == 0, played.stdout
    assert "\nℹ skipped 0\n" in played.stdout, played.stdout
