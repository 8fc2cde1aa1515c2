"""Parties in network namespaces of their own, and a bad network between them.

Each namespace has loopback and one tunnel; what leaves it comes to `Network`, which loses, holds back, doubles, swaps or slows
packets as it is told, and passes the rest on. So a cut looks like a cut: nothing is reset, nobody is told. Needs root.
"""

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

SUBNET = "10.213.77"
DEVICE = "echofed0"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 1 << 16
_HELD_PACKETS = 5000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Weather:
    """What becomes of packets one way; the default passes them at once.

    Args:
        lost: fraction that disappears.
        doubled: fraction that arrives twice.
        delay_seconds: for each packet.
        jitter_seconds: at most this much more, drawn for each packet: they overtake each other.
        bytes_per_second: at most; None: as fast as they come.
    """

    lost: float = 0.0
    doubled: float = 0.0
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None


FAIR = Weather()
CUT = Weather(lost=1.0)


@dataclass
class _Way:
    weather: Weather = FAIR
    free_at: float = 0.0


@dataclass
class Network:
    """Namespaces and what carries packets between them, while `running` is entered.

    Args:
        parties: names; the first has the address ending in 1.
        prefix: of the namespaces' names.
    """

    parties: Sequence[str]
    prefix: str = "echofed-faults"
    _ways: dict[tuple[str, str], _Way] = field(default_factory=dict)
    _tunnels: dict[str, int] = field(default_factory=dict)

    def address(self, party: str) -> str:
        """Return a party's address."""
        return f"{SUBNET}.{self.parties.index(party) + 1}"

    def namespace(self, party: str) -> str:
        """Return the name of a party's namespace."""
        return f"{self.prefix}-{party}"

    def command(self, party: str) -> list[str]:
        """Return what to put before a command for it to run in a party's namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(party)}"]

    def set(self, source: str, target: str, weather: Weather) -> None:
        """Say what becomes of packets from one party to another."""
        self._ways[source, target] = _Way(weather)

    def link(self, party: str, state: str) -> None:
        """Set a party's tunnel `up` or `down`; while it is down its programs are told that there is no way."""
        _ip("-n", self.namespace(party), "link", "set", DEVICE, state)
        if state == "up":
            _ip("-n", self.namespace(party), "route", "replace", f"{SUBNET}.0/24", "dev", DEVICE)

    @contextmanager
    def inside(self, party: str) -> Iterator[None]:
        """Have this thread's new sockets belong to a party's namespace; others' and older ones stay where they are."""
        with Path("/proc/thread-self/ns/net").open() as here:
            with Path("/run/netns", self.namespace(party)).open() as there:
                _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(here.fileno())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make the namespaces and carry packets; remove all at the end."""
        self._remove()  # what a killed run has left
        stopped = threading.Event()
        carrier = threading.Thread(target=self._carry, args=(stopped, random.Random(0)), daemon=True)
        try:
            for party in self.parties:
                self._make(party)
            carrier.start()
            yield
        finally:
            stopped.set()
            if carrier.ident:
                carrier.join()
            for tunnel in self._tunnels.values():
                os.close(tunnel)
            self._tunnels.clear()
            self._remove()

    def _make(self, party: str) -> None:
        name = self.namespace(party)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        with self.inside(party):
            tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        self._tunnels[party] = tunnel
        _ip("-n", name, "addr", "add", f"{self.address(party)}/24", "dev", DEVICE)
        self.link(party, "up")

    def _remove(self) -> None:
        for party in self.parties:
            if Path("/run/netns", self.namespace(party)).exists():
                _ip("netns", "delete", self.namespace(party))

    def _carry(self, stopped: threading.Event, rng: random.Random) -> None:
        names = {self.address(party): party for party in self.parties}
        held: list[tuple[float, int, int, bytes]] = []
        order = count()
        with selectors.DefaultSelector() as selector:
            for party, tunnel in self._tunnels.items():
                selector.register(tunnel, selectors.EVENT_READ, party)
            while not stopped.is_set():
                wait = min(0.1, max(0.0, held[0][0] - time.monotonic())) if held else 0.1
                for key, _ in selector.select(wait):
                    for packet in _packets(key.fd):
                        target = names.get(".".join(map(str, packet[16:20]))) if packet[0] >> 4 == 4 else None
                        if target is None or len(held) >= _HELD_PACKETS:
                            continue
                        for due in self._due(key.data, target, len(packet), rng):
                            heapq.heappush(held, (due, next(order), self._tunnels[target], packet))
                while held and held[0][0] <= time.monotonic():
                    _, _, tunnel, packet = heapq.heappop(held)
                    with suppress(OSError):  # its link is down
                        os.write(tunnel, packet)

    def _due(self, source: str, target: str, size: int, rng: random.Random) -> list[float]:
        way = self._ways.setdefault((source, target), _Way())
        weather, due = way.weather, time.monotonic()
        if rng.random() < weather.lost:
            return []
        if weather.bytes_per_second:
            way.free_at = due = max(due, way.free_at) + size / weather.bytes_per_second
        copies = 2 if rng.random() < weather.doubled else 1
        return [due + weather.delay_seconds + rng.uniform(0, weather.jitter_seconds) for _ in range(copies)]


def _packets(tunnel: int) -> Iterator[bytes]:
    with suppress(OSError):  # no more for now, or its link is down
        while packet := os.read(tunnel, _PACKET_BYTES):
            yield packet


def _set_namespace(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
