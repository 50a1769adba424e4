"""Bytes from Redis that are not what they should be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bongsu.brokers.redis.link import Link


class Transport(asyncio.Transport):
    aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(
    "broken", [b"HTTP/1.1 400 Bad Request\r\n", b"%1\r\n%0\r\n:1\r\n", b"*4000000000000\r\n"]
)
async def test_what_is_not_resp_ends_the_connection_and_is_no_exception(broken: bytes) -> None:
    replies: list[Any] = []
    link, transport = Link(replies.extend), Transport()
    link._transport = transport
    link.data_received(b":1\r\n")
    link.data_received(broken)
    assert replies == [1]
    assert transport.aborted
