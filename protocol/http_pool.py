"""Connections to one HTTP server that are kept for the next request."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable

from echofed.protocol.http_connection import is_readable


class ConnectionPool:
    """Idle connections, the one used last first; safe to use from several threads.

    Args:
        connect: opens a connection; its errors are the caller's.
        idle_seconds: after which a kept connection is no longer used; shorter than the server keeps it.
    """

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], idle_seconds: float) -> None:
        self._connect, self._idle_seconds = connect, idle_seconds
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def take(self) -> http.client.HTTPConnection | None:
        """Return a kept connection that the server has not closed, or None."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                since, connection = self._idle.pop()
            fresh = time.monotonic() - since < self._idle_seconds
            # Nothing is due from the server between two requests: what can be read is the end of the stream.
            if fresh and connection.sock is not None and not is_readable(connection.sock):
                return connection
            connection.close()

    def open(self) -> http.client.HTTPConnection:
        """Return a new connection."""
        return self._connect()

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose last answer was read to its end; one that the server closes is dropped."""
        with self._lock:
            if not self._is_closed and connection.sock is not None:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def clear(self) -> None:
        """Close all kept connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            with contextlib.suppress(OSError):
                connection.close()

    def close(self) -> None:
        """Close all kept connections, and keep none any more."""
        with self._lock:
            self._is_closed = True
        self.clear()
