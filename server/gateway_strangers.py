"""Connections whose certificate is not known yet: when there are too many, the one that has waited longest goes."""

import contextlib
import socket
import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(eq=False)
class Stranger:
    """A connection whose certificate is not known yet.

    Args:
        stream: as it was taken, or with TLS on it.
        address: from where it came; empty: unknown.
    """

    stream: socket.socket
    address: str


class Strangers:
    """All strangers; whoever floods the door drops first itself, so that a newcomer from elsewhere finds a place.

    Args:
        each: from one address.
        in_all: from all addresses.
    """

    def __init__(self, each: int, in_all: int) -> None:
        self._each, self._in_all = each, in_all
        self._here: dict[Stranger, None] = {}
        self._lock = threading.Lock()

    def enter(self, newcomer: Stranger) -> Stranger | None:
        """Take a newcomer in and return who was dropped for it: the oldest of its address, or of the one with most places."""
        with self._lock:
            dropped = self._who_goes(newcomer.address)
            if dropped is not None:
                del self._here[dropped]
                with contextlib.suppress(OSError):
                    # TLS stays as it is for the thread that reads, which now sees the end.
                    socket.socket.shutdown(dropped.stream, socket.SHUT_RDWR)
            self._here[newcomer] = None
            return dropped

    def goes_on(self, stranger: Stranger, stream: socket.socket) -> bool:
        """Note that a stranger has TLS on its stream now; False if it was dropped meanwhile."""
        with self._lock:
            stranger.stream = stream
            return stranger in self._here

    def leave(self, stranger: Stranger) -> None:
        """Give a stranger's place back, if it still has it."""
        with self._lock:
            self._here.pop(stranger, None)

    def _who_goes(self, address: str) -> Stranger | None:
        places = Counter(one.address for one in self._here)
        if places[address] < self._each:
            if len(self._here) < self._in_all:
                return None
            address = max(places, key=lambda one: places[one])
        return next(one for one in self._here if one.address == address)
