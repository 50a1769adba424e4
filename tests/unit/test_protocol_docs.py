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
from bongsu.settings.names import UnknownName, find

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


OF_THE_SPECIFICATION = """
client: ping_interval pong_timeout stale_close_delay expired_close_delay expired_sub_close_delay channel_limit
    queue_max_size presence_update_interval channel_position_check_delay channel_position_max_time_lag
    history_max_publication_limit recovery_max_publication_limit concurrency connect_include_server_time
    allow_anonymous_connect_without_token disallow_anonymous_connection_tokens insecure allowed_origins
    user_connection_limit connection_limit connection_rate_limit subscribe_to_user_personal_channel.enabled
    subscription_token.enabled
websocket: message_size_limit write_timeout compression
http_stream: enabled max_request_body_size
sse: enabled max_request_body_size
emulation: max_request_body_size
uni_http_stream: enabled
uni_sse: enabled
uni_websocket: enabled
channels: max_length private_prefix namespace_boundary user_boundary user_separator
channels.without_namespace: presence join_leave force_push_join_leave history_size history_ttl
    history_meta_ttl force_positioning allow_positioning force_recovery allow_recovery force_recovery_mode
    auto_cache_recover
    allowed_delta_types delta_publish allow_tags_filter allow_subscribe_for_client
    allow_subscribe_for_anonymous allow_publish_for_client allow_publish_for_subscriber
    allow_publish_for_anonymous allow_history_for_client allow_history_for_subscriber
    allow_history_for_anonymous allow_presence_for_client allow_presence_for_subscriber
    allow_presence_for_anonymous allow_user_limited_channels channel_regex publication_data_format
    subscription_type map shared_poll
channel: history_meta_ttl
redis: prefix connect_timeout io_timeout presence_ttl
http_api: prefix insecure
health: enabled
prometheus: enabled
shutdown: timeout
"""


NAMED_OPTIONS = [
    f"{group}.{name}"
    for group, names in re.findall(r"^([\w.]+): ((?:.|\n )+)", OF_THE_SPECIFICATION, re.MULTILINE)
    for name in names.split()
]


@pytest.mark.parametrize("option", NAMED_OPTIONS)
def test_each_option_of_the_specification_can_be_set_or_is_told_what_becomes_of_it(option: str) -> None:
    told = section("Options").split("| option of Centrifugo |")[1]
    try:
        find(option.split("."))
    except UnknownName:
        assert f"`{option.removeprefix('channels.without_namespace.')}`" in told


def test_whatever_is_not_supported_says_so_in_the_words_of_the_table() -> None:
    states = re.findall(r"^\| [^|]+ \| ([^|]+?) \|", section("What is supported"), re.MULTILINE)
    assert set(states[1:]) <= {"Supported", "Partial", "Not yet", "Not planned", "Not planned so far"}
    assert "Supported" in states
