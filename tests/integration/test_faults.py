"""The proxy that tests break connections with does what it says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.faults import Fault, FaultProxy


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """In front of a server that sends back what it gets, and `end` when that has ended."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                    connection.sendall(b"end")
                except OSError:
                    continue

    server = threading.Thread(target=serve)
    server.start()
    with FaultProxy(listener.getsockname()[1]) as made:
        yield made
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join()


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def received(client: socket.socket) -> bytes:
    data = bytearray()
    while block := client.recv(65536):
        data += block
    return bytes(data)


def test_a_connection_without_a_fault_is_whole(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"abc")
        client.shutdown(socket.SHUT_WR)
        assert received(client) == b"abcend"
    assert proxy.happened == 0


def test_a_half_close_lets_the_other_direction_go_on(proxy: FaultProxy) -> None:
    proxy.break_next(Fault("half-close", after=2))
    with connect(proxy) as client:
        client.sendall(b"abcd")
        assert received(client) == b"abend"


def test_a_cut_ends_both_directions_at_the_byte(proxy: FaultProxy) -> None:
    proxy.break_next(Fault("cut", after=2, direction="down"))
    with connect(proxy) as client:
        client.sendall(b"abcd")
        assert received(client) == b"ab"


def test_a_reset_is_a_reset(proxy: FaultProxy) -> None:
    proxy.break_next(Fault("reset", after=2))
    with connect(proxy) as client:
        client.sendall(b"ab")
        with pytest.raises(ConnectionResetError):
            received(client)


def test_a_stall_says_nothing(proxy: FaultProxy) -> None:
    proxy.break_next(Fault("stall", after=2))
    with connect(proxy) as client:
        client.sendall(b"abcd")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            received(client)


def test_a_server_that_is_away_comes_back(proxy: FaultProxy) -> None:
    def ask() -> bytes:
        with connect(proxy) as client:
            client.sendall(b"abc")
            client.shutdown(socket.SHUT_WR)
            return received(client)

    with connect(proxy) as before, proxy.away():
        with pytest.raises(ConnectionResetError):
            received(before)
        with pytest.raises(ConnectionError):
            ask()
    assert ask() == b"abcend"
