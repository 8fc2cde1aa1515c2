"""A persistent pool of single-threaded worker processes, one a core.

Parameters travel through shared memory, everything else as small JSON lines over a socket pair. A worker is a fresh
Python process, so nothing of the caller is inherited and nothing is pickled.
"""

import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from echofed.simulations.shared_buffer import SharedBuffer

STOP_SECONDS = 5.0


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
    def __init__(self, arguments: Sequence[str], broadcast: SharedBuffer) -> None:
        ours, theirs = socket.socketpair()
        self.reply = SharedBuffer()
        descriptors = (theirs.fileno(), broadcast.descriptor, self.reply.descriptor)
        command = [sys.executable, "-m", "echofed.simulations.worker", *map(str, descriptors), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.job: Job | None = None

    def stop(self) -> None:
        self.connection.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reply.close()


class WorkerPool:
    """Runs the ClientApp for many sites on a few processes; use it as a context.

    Args:
        study_folder: the study and its initial parameters.
        site_folders: state folder of each site.
        seed: of the simulation.
        workers: number of processes.
    """

    def __init__(self, study_folder: Path, site_folders: Sequence[Path], seed: int, workers: int) -> None:
        self._arguments = [str(study_folder), str(seed), *map(str, site_folders)]
        self._broadcast = SharedBuffer()
        self.size = workers
        self._shared: bytes | None = None
        self._shared_length = 0
        self._queue: deque[Job] = deque()
        self._workers = [_Worker(self._arguments, self._broadcast) for _ in range(workers)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._broadcast.close()

    def submit(self, job: Job) -> None:
        """Queue a job; it starts as soon as a worker is free."""
        self._queue.append(job)
        self._dispatch()

    def answers(self, timeout_seconds: float) -> Iterator[Answer]:
        """Yield the answers that are ready, waiting for the first one up to the given time.

        A worker that dies answers its job with an error and is replaced.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        for connection in wait(list(busy), timeout_seconds):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            yield self._collect(worker)

    def _collect(self, worker: _Worker) -> Answer:
        job = worker.job
        assert job is not None
        worker.job = None
        try:
            line = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            worker.stop()
            self._workers[self._workers.index(worker)] = _Worker(self._arguments, self._broadcast)
            self._dispatch()
            code = worker.process.returncode
            return Answer(job.key, None, b"", (0, f"The worker process ended unexpectedly (exit status {code})."))
        answer = Answer(job.key, line["document"], worker.reply.read(line["length"]), line["error"])
        self._dispatch()
        return answer

    def _dispatch(self) -> None:
        for worker in self._workers:
            if not self._queue:
                return
            if worker.job is None and self._offer(worker, self._queue[0]):
                self._queue.popleft()

    def _offer(self, worker: _Worker, job: Job) -> bool:
        if job.parameters is not self._shared:
            # One block serves every worker, so new parameters wait until nobody reads the old ones.
            if any(other.job is not None for other in self._workers):
                return False
            self._shared, self._shared_length = job.parameters, self._broadcast.write(job.parameters)
        fields = {"site": job.site, "kind": job.kind, "group": job.group, "document": job.document}
        with suppress(OSError):  # if the worker is gone, reading its answer says so
            worker.connection.send_bytes(json.dumps({**fields, "length": self._shared_length}).encode())
        worker.job = job
        return True
