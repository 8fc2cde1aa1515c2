"""One run of a source: decisions in the caller's thread, transfers in others, outcomes in one stream."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.sources.item import NO_ANSWER, Fetched, Missed, Outcome, Progress
from echofed.client.ingest.sources.politeness import Pace, Politeness

Job = Callable[[], None]
"""Transfers instances and emits an outcome for each."""

MAX_WAITING = 16
"""No transfer is begun while so many fetched instances wait for the consumer."""
MAX_UNREACHABLE = 3
"""Jobs in a row that cannot reach the PACS before the run ends."""


@dataclass(frozen=True)
class _Done:
    error: BaseException | None


class Run:
    """What the parts of one run share.

    Args:
        spool: folder for what arrives.
        known: whether an instance is known from earlier; asked in the caller's thread only.
        politeness: the limits.
        report: takes the progress, in the caller's thread.
    """

    def __init__(
        self, spool: Path, known: Callable[[str], bool], politeness: Politeness, report: Callable[[Progress], None]
    ) -> None:
        self.spool, self.politeness = spool, politeness
        self.stopped = threading.Event()
        self.pace = Pace(politeness, self.stopped)
        self._known, self._report, self._seen = known, report, set[str]()
        self._progress = Progress()
        self._outcomes: queue.SimpleQueue[Outcome | _Done] = queue.SimpleQueue()
        self._aborts: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def is_wanted(self, key: str) -> bool:
        """Return whether an instance that was found is to be fetched: neither known nor found before in this run."""
        if key in self._seen:
            return False
        self._seen.add(key)
        is_known = self._known(key)
        self.count(found=1, skipped=int(is_known))
        return not is_known

    def count(self, **more: int) -> None:
        """Add to the progress."""
        with self._lock:
            now = {name: (getattr(self._progress, name) or 0) + number for name, number in more.items()}
            self._progress = dataclasses.replace(self._progress, **now)

    def emit(self, outcome: Outcome) -> None:
        """Hand over an outcome, from any thread."""
        self._outcomes.put(outcome)

    @contextmanager
    def aborting(self, abort: Callable[[], None]) -> Iterator[None]:
        """Have something called from another thread if the run is stopped meanwhile."""
        with self._lock:
            self._aborts.append(abort)
        if self.stopped.is_set():
            abort()
        try:
            yield
        finally:
            with self._lock:
                self._aborts.remove(abort)

    def outcomes(self, jobs: Iterator[Job | Missed]) -> Iterator[Outcome]:
        """Do the jobs and yield what comes of them; closing the iterator ends the transfers and empties the spool.

        Raises:
            SourceError: the source cannot be used any more, or the disk is full.
        """
        pool = ThreadPoolExecutor(self.politeness.concurrency, "transfer")
        try:
            yield from self._stream(jobs, pool)
        finally:
            self.stopped.set()
            with self._lock:
                aborts = list(self._aborts)
            for abort in aborts:
                with suppress(OSError):
                    abort()
            pool.shutdown(cancel_futures=True)
            self._empty()

    def _stream(self, jobs: Iterator[Job | Missed], pool: ThreadPoolExecutor) -> Iterator[Outcome]:
        running, has_more, unreachable = 0, True, 0
        while has_more or running or not self._outcomes.empty():
            while has_more and running < 2 * self.politeness.concurrency and self._outcomes.qsize() < MAX_WAITING:
                job = next(jobs, None)
                if job is None:
                    has_more = False
                elif isinstance(job, Missed):
                    self.emit(job)
                else:
                    pool.submit(self._do, job)
                    running += 1
            self._report(self._progress)
            if not running and self._outcomes.empty():
                continue
            outcome = self._outcomes.get()
            if isinstance(outcome, _Done):
                running -= 1
                if outcome.error is not None:
                    raise outcome.error
                continue
            unreachable = self._follow(outcome, unreachable)
            yield outcome

    def _follow(self, outcome: Outcome, unreachable: int) -> int:
        """Count an outcome; return how many in a row could not be had because the PACS does not answer."""
        if isinstance(outcome, Fetched):
            self.count(fetched=1, fetched_bytes=outcome.size_bytes)
            return 0
        self.count(missed=outcome.count)
        if outcome.reason not in NO_ANSWER:
            return 0
        if unreachable + 1 >= MAX_UNREACHABLE:
            raise SourceError("The PACS has stopped answering.")
        return unreachable + 1

    def _do(self, job: Job) -> None:
        error: BaseException | None = None
        try:
            if not self.stopped.is_set():
                job()
        except BaseException as raised:  # raised again in the caller's thread
            error = raised
        self._outcomes.put(_Done(error))

    def _empty(self) -> None:
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            if isinstance(outcome, Fetched) and not outcome.is_only_copy:
                outcome.path.unlink(missing_ok=True)
