"""What the gateway allows: how much, how fast and how many; and how it notes what it refused."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from echofed.protocol.audit_log import AuditLog, Event, Fact
from echofed.protocol.errors import AuditLogError, GatewayRefusedError, TooLargeError
from echofed.protocol.http_connection import Pace
from echofed.protocol.http_head import RefusalError, Request
from echofed.server.settings import ConsortiumSettings

LOG = logging.getLogger("echofed.gateway")
MAX_WAIT_SECONDS = 2.0
"""For which a request above the rate is held back before it is refused."""
NOTE_SECONDS = 60.0
MAX_NOTED = 1000


@dataclass(frozen=True)
class Limits:
    """What the gateway allows.

    Args:
        connections: in all.
        connections_per_site: of a site's certificate.
        strangers: connections whose certificate is not known yet, in all.
        strangers_per_address: the same, from one address.
        silent_seconds: for the first byte of a stranger.
        handshake_seconds: for TLS.
        requests_per_second: of a site, on average.
        burst: requests a site may send at once.
        fleet_bytes: of a message to SuperLink.
        document_bytes: of an answer or a request for renewal.
        blob_bytes: of a file of parameters.
        uploads_per_site: blobs a site may send at a time.
        poll_seconds: for which a site's question for messages is held.
        pace: of every connection.
    """

    connections: int = 256
    connections_per_site: int = 16
    strangers: int = 512
    strangers_per_address: int = 64
    silent_seconds: float = 2.0
    handshake_seconds: float = 10.0
    requests_per_second: float = 50.0
    burst: int = 100
    fleet_bytes: int = 2**20
    document_bytes: int = 2**20
    blob_bytes: int = 2**31
    uploads_per_site: int = 2
    poll_seconds: float = 20.0
    pace: Pace = field(default_factory=Pace)


def limits_of(settings: ConsortiumSettings) -> Limits:
    """Return the limits a coordinator has set."""
    given = settings.limits
    pace = Pace(
        head_seconds=given.header_timeout_seconds,
        grace_seconds=given.idle_body_timeout_seconds,
        idle_body_seconds=given.idle_body_timeout_seconds,
        bytes_per_second=given.minimum_bytes_per_second,
    )
    return Limits(
        connections_per_site=given.connections_per_site,
        handshake_seconds=given.header_timeout_seconds,
        requests_per_second=given.requests_per_second,
        burst=max(1, round(10 * given.requests_per_second)),
        fleet_bytes=given.message_bytes,
        blob_bytes=given.blob_bytes,
        pace=pace,
    )


def check_length(request: Request, limit: int) -> None:
    """Check a body's announced length before any of it is read.

    Raises:
        RefusalError: 411 without a length; 413 above the limit.
    """
    if request.method != "GET" and "content-length" not in request.headers:
        raise RefusalError(411, GatewayRefusedError("A body needs its Content-Length."), closes=True)
    if request.content_length > limit:
        error = TooLargeError(f"{request.content_length} bytes were announced; at most {limit} are taken here.")
        raise RefusalError(413, error, closes=True)


class Quota:
    """How many of something each may have at a time.

    Args:
        each: for one name.
        in_all: for all names together; None: no limit.
    """

    def __init__(self, each: int, in_all: int | None = None) -> None:
        self._each, self._in_all = each, in_all
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Take one for a name; False if there is none left."""
        with self._lock:
            if self._taken[name] >= self._each or (self._in_all is not None and self._taken.total() >= self._in_all):
                return False
            self._taken[name] += 1
            return True

    def give_back(self, name: str) -> None:
        """Give one back."""
        with self._lock:
            self._taken[name] -= 1
            if self._taken[name] <= 0:
                del self._taken[name]

    @contextmanager
    def taken(self, name: str, what: str) -> Iterator[None]:
        """Hold one for a name.

        Raises:
            RefusalError: 503, there is none left.
        """
        if not self.take(name):
            raise RefusalError(503, GatewayRefusedError(f"Too many {what} at a time.", "Try again later."), closes=True)
        try:
            yield
        finally:
            self.give_back(name)


class Rates:
    """How fast each site may ask: a token bucket for each.

    Args:
        per_second: tokens that come back.
        burst: tokens of a full bucket.
        clock: monotonic, seconds.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._burst, self._clock = 1 / per_second, burst, clock
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait_seconds(self, site: str) -> float:
        """Take a token and return how long to wait for it.

        Raises:
            RefusalError: 429, the wait would exceed `MAX_WAIT_SECONDS`; no token was taken.
        """
        with self._lock:
            now = self._clock()
            due = max(self._due.get(site, 0.0), now - self._burst * self._interval) + self._interval
            if due - now > MAX_WAIT_SECONDS:
                error = GatewayRefusedError(
                    "Too many requests of this site.", "Send fewer; try again in a few seconds."
                )
                raise RefusalError(429, error)
            self._due[site] = due
            return max(0.0, due - now)


class Notes:
    """What was refused and who came, in the audit log: of the same kind at most one entry a minute, with their number.

    A note that cannot be written is said on stderr; a refusal stays one.

    Args:
        audit_log: the coordinator's.
        clock: monotonic, seconds.
    """

    def __init__(self, audit_log: AuditLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit_log, self._clock = audit_log, clock
        self._written_at: dict[_Kind, float] = {}
        self._waiting: Counter[_Kind] = Counter()
        self._lock = threading.Lock()

    def refused(self, site: str | None, reason: str, address: str) -> None:
        """Note a refused request.

        Args:
            site: whose it was; None: unknown.
            reason: one of a limited number of texts.
            address: from where it came; empty: unknown.
        """
        count = self._due(_Kind("refused request", site, reason))
        if count:
            LOG.warning("refused %s (%s), %d time(s): %s", site or "a stranger", address, count, reason)
            self._append("refused request", site=site, reason=reason, address=address, count=count)

    def connected(self, site: str) -> None:
        """Note that a site's node has come."""
        count = self._due(_Kind("connected", site, ""))
        if count:
            LOG.info("%s connected", site)
            self._append("connected", site=site, count=count)

    def close(self) -> None:
        """Write what is still waiting for its minute to end."""
        with self._lock:
            waiting, self._waiting = self._waiting, Counter()
        for kind, count in waiting.items():
            self._append(kind.event, site=kind.site, reason=kind.reason, count=count)

    def _due(self, kind: "_Kind") -> int:
        """Return how many of a kind are to be written now; 0: none."""
        with self._lock:
            if kind not in self._written_at and len(self._written_at) >= MAX_NOTED:
                kind = _Kind("refused request", None, "various")
            self._waiting[kind] += 1
            now = self._clock()
            if now - self._written_at.get(kind, -NOTE_SECONDS) < NOTE_SECONDS:
                return 0
            self._written_at[kind] = now
            return self._waiting.pop(kind)

    def _append(self, event: Event, **facts: Fact) -> None:
        try:
            self._audit_log.append(event, **facts)
        except AuditLogError as error:
            LOG.error("%s", error)


class _Kind(NamedTuple):
    event: Event
    site: str | None
    reason: str
