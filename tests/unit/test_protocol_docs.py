"""docs/protocol.md has every code of the protocol and every option, and no other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from bongsu.node.channels import ChannelOptions
from bongsu.node.client import ClientOptions
from bongsu.protocol.errors import DISCONNECTS, ERRORS, UNSUBSCRIBES, Disconnect, Error, Unsubscribe
from bongsu.settings import Channels

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")

# Of WebSocket itself, not of the protocol.
FIRST_OF_THE_PROTOCOL = 3000


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "table"),
    [("Errors", ERRORS), ("Unsubscriptions", UNSUBSCRIBES), ("Disconnects", DISCONNECTS)],
)
def test_each_table_of_codes_is_the_code_s_table(
    heading: str, table: Mapping[int, Disconnect] | Mapping[int, Error] | Mapping[int, Unsubscribe]
) -> None:
    rows = {
        int(code): text
        for code, text in re.findall(r"^\| (\d+) \| ([^|]+?) \|", section(heading), re.MULTILINE)
    }
    expected = {code: row[1] for code, row in table.items()}
    if heading == "Disconnects":
        expected = {code: text for code, text in expected.items() if code >= FIRST_OF_THE_PROTOCOL}
    assert rows == expected


@pytest.mark.parametrize(
    ("heading", "options", "elsewhere"),
    [
        ("Channels", ChannelOptions, set[str]()),
        ("Names of channels", Channels, {"without_namespace", "namespaces"}),
        ("Clients", ClientOptions, set[str]()),
    ],
)
def test_each_list_of_options_is_the_code_s_list(
    heading: str, options: type[BaseModel], elsewhere: set[str]
) -> None:
    listed = section("Options").split(f"- **{heading}** ")[1].split(".\n")[0].split(". ")[0].split(": ")[1]
    assert set(re.findall(r"`(\w+)`", listed)) == set(options.model_fields) - elsewhere


def test_whatever_is_not_supported_says_so_in_the_words_of_the_table() -> None:
    states = re.findall(r"^\| [^|]+ \| ([^|]+?) \|", section("What is supported"), re.MULTILINE)
    assert set(states[1:]) <= {"Supported", "Partial", "Not yet", "Not planned", "Not planned so far"}
    assert "Supported" in states
