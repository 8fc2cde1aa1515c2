"""A persistent pool of single-threaded worker processes, one a core.

Parameters travel through shared memory, everything else as small JSON lines over a socket pair. A worker is a fresh
Python process, so nothing of the caller is inherited and nothing is pickled.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from echofed.simulations.shared_buffer import SharedBuffer

STOP_SECONDS = 5.0
LOG_FILE = "workers.log"
JOBS_IN_HAND = 2
"""A worker holds its next job while it does one, so that it need not wait for its parent."""

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Else glibc returns a layer's memory to the system and asks for it again: up to a sixth of a training's time.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}


@dataclass(frozen=True)
class Job:
    """One instruction for one site, known by the index of its state folder: a document and parameters."""

    key: str
    site: int
    kind: str
    group: str
    document: str
    parameters: bytes


@dataclass(frozen=True)
class Answer:
    """A site's answer to a job: a document and parameters (empty if none), or an error."""

    key: str
    document: str | None
    parameters: bytes
    error: tuple[int, str] | None


class _Worker:
    def __init__(self, arguments: Sequence[str], broadcast: SharedBuffer, log: Path) -> None:
        ours, theirs = socket.socketpair()
        self._replies = tuple(SharedBuffer() for _ in range(JOBS_IN_HAND))
        descriptors = (theirs.fileno(), broadcast.descriptor, *(reply.descriptor for reply in self._replies))
        told = (",".join(map(str, descriptors)), *arguments)
        command = [sys.executable, "-m", "echofed.simulations.worker", *told]
        # What a site logs is for the one who simulates; on the terminal it would run through the progress bars.
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                command,
                pass_fds=descriptors,
                env={**os.environ, **WORKER_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.jobs: deque[Job] = deque()
        self._answered = 0

    def send(self, job: Job, version: int) -> None:
        """Give the worker a job whose parameters are in the block all share, as its given version."""
        fields = {"site": job.site, "kind": job.kind, "group": job.group, "document": job.document}
        with suppress(OSError):  # if the worker is gone, reading its answer says so
            line = json.dumps({**fields, "length": len(job.parameters), "version": version})
            self.connection.send_bytes(line.encode())
        self.jobs.append(job)

    def receive(self) -> Answer:
        """Return the answer to the oldest job.

        Raises:
            EOFError, OSError: the worker is gone.
        """
        line = json.loads(self.connection.recv_bytes())
        # Each job in hand has a block for its answer.
        parameters = self._replies[self._answered % JOBS_IN_HAND].read(line["length"])
        self._answered += 1
        return Answer(self.jobs.popleft().key, line["document"], parameters, line["error"])

    def stop(self) -> None:
        self.connection.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reply in self._replies:
            reply.close()


class WorkerPool:
    """Runs the ClientApp for many sites on a few processes; use it as a context.

    Args:
        study_folder: the study and its initial parameters; the workers' log goes there, too.
        site_folders: state folder of each site.
        seed: of the simulation.
        workers: number of processes.
    """

    def __init__(self, study_folder: Path, site_folders: Sequence[Path], seed: int, workers: int) -> None:
        self._arguments = [str(study_folder), str(seed), *map(str, site_folders)]
        self._broadcast, self._log = SharedBuffer(), study_folder / LOG_FILE
        self.size = workers
        self._shared: bytes | None = None
        self._version = 0
        self._queue: deque[Job] = deque()
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._selector.close()
        self._broadcast.close()

    def submit(self, job: Job) -> None:
        """Queue a job; it starts as soon as a worker is free."""
        self._queue.append(job)
        self._dispatch()

    def abandon(self, key: str) -> None:
        """Forget a job; the worker that is at it is killed and replaced, and its next job goes to another."""
        self._queue = deque(job for job in self._queue if job.key != key)
        for worker in list(self._workers):
            if key not in (job.key for job in worker.jobs):
                continue
            worker.process.kill()
            worker.jobs = deque(job for job in worker.jobs if job.key != key)
            self._replace(worker)

    def answers(self, timeout_seconds: float) -> Iterator[Answer]:
        """Yield the answers that are ready, waiting for the first one up to the given time.

        A worker that dies answers its job with an error and is replaced.
        """
        for key, _ in self._selector.select(timeout_seconds):
            yield from self._collect(key.data)

    def _start(self) -> _Worker:
        worker = _Worker(self._arguments, self._broadcast, self._log)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        return worker

    def _collect(self, worker: _Worker) -> Iterator[Answer]:
        try:
            answer = worker.receive()
        except (EOFError, OSError):
            lost = worker.jobs.popleft() if worker.jobs else None
            self._replace(worker)
            if lost is not None:
                code = worker.process.returncode
                yield Answer(lost.key, None, b"", (0, f"The worker process ended unexpectedly (exit status {code})."))
            return
        self._dispatch()
        yield answer

    def _replace(self, worker: _Worker) -> None:
        self._selector.unregister(worker.connection)
        worker.stop()
        self._workers[self._workers.index(worker)] = self._start()
        self._queue.extendleft(reversed(worker.jobs))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue:
            worker = min(self._workers, key=lambda one: len(one.jobs))
            # The last jobs wait for whoever is free first.
            ahead = JOBS_IN_HAND if len(self._queue) > len(self._workers) else 1
            if len(worker.jobs) >= ahead or not self._share(self._queue[0].parameters):
                return
            worker.send(self._queue.popleft(), self._version)

    def _share(self, parameters: bytes) -> bool:
        """Put parameters into the block that serves every worker; new ones wait until nobody reads the old ones."""
        if parameters is self._shared:
            return True
        if any(worker.jobs for worker in self._workers):
            return False
        self._broadcast.write(parameters)
        self._shared, self._version = parameters, self._version + 1
        return True
