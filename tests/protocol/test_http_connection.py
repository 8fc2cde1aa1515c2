"""How long a peer may take with a body."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from echofed.protocol.http_connection import HttpConnection, Pace
from echofed.protocol.http_head import RefusalError

HEAD = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[HttpConnection, socket.socket]]:
    """A connection that waits 0.3 s for a byte and 3 s for the whole, and its peer."""
    ours, peer = socket.socketpair()
    pace = Pace(grace_seconds=3.0, idle_body_seconds=0.3, bytes_per_second=1e6)
    with closing(HttpConnection(ours, pace)) as connection, closing(peer):
        yield connection, peer


def test_a_body_of_which_no_byte_comes_is_given_up(pair: tuple[HttpConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.sendall(HEAD + b"x" * 100)
    peer.settimeout(5)
    assert connection.read_request() is not None
    start = time.monotonic()
    with pytest.raises(RefusalError, match="too slowly") as refused:
        connection.read_body()
    assert refused.value.status == 408
    assert time.monotonic() - start < 2


def test_a_body_that_comes_little_by_little_is_waited_for(pair: tuple[HttpConnection, socket.socket]) -> None:
    connection, peer = pair
    peer.sendall(HEAD.replace(b"1000000", b"10"))
    assert connection.read_request() is not None

    def send() -> None:
        for _ in range(10):
            time.sleep(0.06)
            peer.sendall(b"y")

    sender = threading.Thread(target=send)
    sender.start()
    assert connection.read_body() == b"y" * 10
    sender.join()
