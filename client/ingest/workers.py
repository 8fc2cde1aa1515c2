"""Processes that read instances: one that hangs or dies costs the instance it was reading, and is replaced.

Each has a pipe of its own and is given one instance at a time, so it is always known what a process that ended was reading, and
no other instance is lost with it.
"""

import logging
import queue
import resource
import signal
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from os import environ
from pathlib import Path
from threading import Lock

from echofed.client.ingest.arrival_check import check_arrival
from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.instance import Read, Reading, read_instance
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources.filters import Selection
from echofed.client.ingest.sources.item import Fetched
from echofed.protocol.errors import EchoFedError

LOG = logging.getLogger(__name__)

_PAGE_BYTES = resource.getpagesize()
_INSTANCES_PER_PROCESS = 1000
"""Then it is replaced: what decoders leak never comes near its limit."""
_START_SECONDS = 300.0
_START_ATTEMPTS = 3

Answer = Read | EchoFedError | OSError | MemoryError | None
"""What a process sends: None, once, when it is ready; then what came of each instance."""


class ReadingProcesses:
    """Processes that read instances; made by `reading_processes`."""

    def __init__(self, reading: Reading, selection: Selection) -> None:
        self._reading, self._selection = reading, selection
        self._threads = ThreadPoolExecutor(reading.settings.processes, "reading", _leave_interrupts_to_others)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._lock, self._alive, self._stopped = Lock(), set[_Process](), False

    def begin(self, fetched: Fetched, seconds: float) -> Future[Read]:
        """Have one instance read; what comes of it raises FrameStoreError or OSError if the disk is full or cannot be written."""
        return self._threads.submit(self._read, fetched, seconds)

    def stop(self) -> None:
        """End all processes at once, whatever they are doing."""
        with self._lock:
            self._stopped = True
            for process in self._alive:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._alive:
            process.close()

    def _read(self, fetched: Fetched, seconds: float) -> Read:
        process = self._take()
        read = process.read(fetched, seconds)
        if process.is_worn:
            self._let_go(process)
        else:
            self._idle.put(process)
        if isinstance(read, Exception):
            raise read
        return read

    def _take(self) -> "_Process":
        with suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process.is_alive():
                    return process
                # It ended while it had nothing to do: no instance is to blame.
                self._let_go(process)
        for _ in range(_START_ATTEMPTS):
            with self._lock:
                if self._stopped:
                    break
                process = _Process(self._reading, self._selection)
                self._alive.add(process)
            if process.is_ready():
                return process
            self._let_go(process)
        raise IngestError(
            "A process that reads instances could not be started.",
            "Check the free memory, and memory_mb_per_worker in ingest.yaml.",
        )

    def _let_go(self, process: "_Process") -> None:
        with self._lock:
            self._alive.discard(process)
        process.close()


class _Process:
    """One process and our end of its pipe."""

    def __init__(self, reading: Reading, selection: Selection) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        what = (theirs, reading, selection)
        self._process = context.Process(target=_serve, args=what, name="echofed-reading", daemon=True)
        self._process.start()
        theirs.close()
        self._read_count = 0
        self.is_worn = False

    def is_ready(self) -> bool:
        """Wait until it can read; return whether it can, or has ended instead."""
        return self._answer(_START_SECONDS) is None

    def read(self, fetched: Fetched, seconds: float) -> Read | EchoFedError | OSError:
        """Return what came of one instance."""
        self._read_count += 1
        with suppress(OSError):  # it has ended: so the answer says
            self._pipe.send(fetched)
        answer = self._answer(seconds)
        self.is_worn = self._read_count >= _INSTANCES_PER_PROCESS
        if isinstance(answer, MemoryError):
            answer = Read(None, Why.TOO_LARGE)
            self.is_worn = True
        elif isinstance(answer, Read) and answer.why in (Why.TIMED_OUT, Why.WORKER_DIED):
            self.is_worn = True
        assert answer is not None
        return answer

    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it and let go of it."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self, seconds: float) -> Answer:
        if not wait([self._pipe, self._process.sentinel], seconds):
            return Read(None, Why.TIMED_OUT)
        try:
            # What it said before it ended counts.
            answer: Answer = self._pipe.recv() if self._pipe.poll() else Read(None, Why.WORKER_DIED)
        except (EOFError, OSError):
            return Read(None, Why.WORKER_DIED)
        return answer


@contextmanager
def reading_processes(reading: Reading, selection: Selection) -> Iterator[ReadingProcesses]:
    """Give processes that read instances, each with one thread and bounded memory; they end with the block.

    Args:
        reading: what is the same for all instances; its settings say how many processes and how much memory.
        selection: which instances are wanted.
    """
    # Libraries read this when they are loaded: the processes share the cores already.
    before = environ.get("OMP_NUM_THREADS")
    environ["OMP_NUM_THREADS"] = "1"
    # Started by one of our threads it would have that thread take interrupts again.
    resource_tracker.ensure_running()
    processes = ReadingProcesses(reading, selection)
    try:
        yield processes
    finally:
        processes.stop()
        if before is None:
            del environ["OMP_NUM_THREADS"]
        else:
            environ["OMP_NUM_THREADS"] = before


def _leave_interrupts_to_others() -> None:
    """Have what this thread starts not see Ctrl-C, which a terminal sends to all processes: the ingest itself ends them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _serve(pipe: Connection, reading: Reading, selection: Selection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    most = in_use + reading.settings.memory_mb_per_worker * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    leave_no_core()
    # The ingest's process may end at any time, and with it the pipe.
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            pipe.send(_read(pipe.recv(), reading, selection))


def leave_no_core() -> None:
    """Have a crash of this process, and of those it starts, leave no core file: it would hold patients' names and images."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(fetched: Fetched, reading: Reading, selection: Selection) -> Answer:
    try:
        if fetched.study:
            selection.add_found(fetched.study)
        return read_instance(
            fetched.path, reading, lambda dataset: check_arrival(dataset, selection, fetched.expected_patient)
        )
    except MemoryError:
        return MemoryError()
    except (EchoFedError, OSError) as error:
        return error
    except Exception as error:
        # Its text may quote the header.
        where = traceback.extract_tb(error.__traceback__)[-1:]
        LOG.error(
            "An instance could not be read: %s at %s", type(error).__name__, [(at.name, at.lineno) for at in where]
        )
        return Read(None, Why.DAMAGED)
