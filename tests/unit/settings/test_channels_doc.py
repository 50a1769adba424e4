"""docs/channels.md is right: its examples load, and it names every option."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bongsu.node.channels import ChannelOptions
from bongsu.settings import load

TEXT = (Path(__file__).parents[3] / "docs" / "channels.md").read_text("utf-8")
TOML = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
EXPORTS = re.findall(r"^export (\w+)=(.*)$", TEXT, re.MULTILINE)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("BONGSU_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_first_set_up_is_accepted() -> None:
    Path("bongsu.toml").write_text(TOML[0], "utf-8")
    namespaces = load(dev=True).channels.namespaces
    assert sorted(namespaces) == ["chat", "dialog", "news"]
    assert namespaces["chat"].history_ttl == 24 * 3600


def test_the_policy_for_slow_subscribers_is_accepted() -> None:
    Path("bongsu.toml").write_text(TOML[1], "utf-8")
    prices = load(dev=True).channels.namespaces["prices"]
    assert (prices.slow_consumer, prices.conflate_key) == ("conflate", "symbol")


def test_the_variables_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EXPORTS:
        monkeypatch.setenv(name, value)
    channels = load(dev=True).channels
    assert channels.namespaces == {"chat": ChannelOptions(history_size=100, history_ttl=86400.0)}
    assert channels.without_namespace == ChannelOptions(allow_subscribe_for_client=True)


def test_the_set_up_for_development_needs_no_dev_and_no_strong_secrets() -> None:
    Path("bongsu.toml").write_text(TOML[-1], "utf-8")
    settings = load()
    assert settings.client.insecure
    assert settings.channels.namespaces["smallhistory"].history_size == 2


@pytest.mark.parametrize("name", ChannelOptions.model_fields)
def test_every_option_of_a_channel_is_named(name: str) -> None:
    form = re.sub(r"^allow_(publish|history|presence)(_for_\w+)$", r"…\2", name)
    assert f"`{form}`" in TEXT or re.search(rf"`{form} = ", TEXT) or f"\n{form} = " in TEXT
