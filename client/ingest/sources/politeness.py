"""How hard a PACS is asked: how much at once, how often, and when to try again."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import Field

from echofed.client.ingest.sources.item import Reason
from echofed.protocol.document import Document

MAX_DELAY_SECONDS = 60.0

Result = TypeVar("Result")


class Politeness(Document):
    """Limits for what is asked of a PACS; the defaults are gentle."""

    concurrency: int = Field(default=2, ge=1, le=16, description="transfers at once.")
    per_second: float = Field(default=200.0, gt=0, le=10_000, description="requests a second, all transfers together.")
    attempts: int = Field(default=5, ge=1, le=10, description="for each request, before it is given up.")
    first_delay_seconds: float = Field(default=1.0, gt=0, le=60, description="before the second attempt; then doubled.")


class TransferError(Exception):
    """A request failed.

    Args:
        reason: why.
        may_pass: it may do better later.
        after_seconds: not before, as the PACS asked.
    """

    def __init__(self, reason: Reason, *, may_pass: bool, after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.may_pass, self.after_seconds = reason, may_pass, after_seconds


class Pace:
    """Spaces requests evenly and repeats failed ones; safe to use from several threads.

    Args:
        politeness: the limits.
        stopped: ends every wait.
    """

    def __init__(self, politeness: Politeness, stopped: threading.Event) -> None:
        self._politeness, self._stopped = politeness, stopped
        self._lock, self._next = threading.Lock(), 0.0

    def wait_for_turn(self) -> None:
        """Wait until the next request may be made; raises TransferError if the run is stopped."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 1 / self._politeness.per_second
        self.pause(turn - now)

    def pause(self, seconds: float) -> None:
        """Wait; raises TransferError if the run is stopped."""
        if self._stopped.wait(seconds) if seconds > 0 else self._stopped.is_set():
            raise TransferError(Reason.BROKEN_OFF, may_pass=False)

    def delays(self) -> Iterator[float]:
        """Yield the wait after each failed attempt but the last: doubled each time, half of it drawn by chance."""
        delay = self._politeness.first_delay_seconds
        for _ in range(self._politeness.attempts - 1):
            # Sites that failed together must not come back together.
            yield min(delay, MAX_DELAY_SECONDS) * random.SystemRandom().uniform(0.5, 1.0)
            delay *= 2

    def try_again(self, request: Callable[[], Result]) -> Result:
        """Return what a request returns, in the first attempt that does not fail; raises the last one's TransferError."""
        for delay in self.delays():
            self.wait_for_turn()
            try:
                return request()
            except TransferError as error:
                if not error.may_pass:
                    raise
                self.pause(min(max(delay, error.after_seconds), MAX_DELAY_SECONDS))
        self.wait_for_turn()
        return request()
