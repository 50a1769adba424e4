"""What the connections of a listener inherit from it."""

from __future__ import annotations

import socket

from bongsu.server.run import _TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER, _hide_little


def test_each_connection_of_a_listener_hides_little_in_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _hide_little(listener)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT) == NOT_SENT_LOW_WATER
