"""Starts the processes of a coordinator or a site, starts them again when they end, and stops them together.

Runs in the foreground, for systemd or a terminal. What the processes say is passed on, each line with the process's name.
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import PortInUseError, RunError, StateFolderError

LOG = logging.getLogger("echofed.supervisor")
DELAYS_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
"""Before a process is started again; from the beginning once it has lived for STEADY_SECONDS."""
STEADY_SECONDS = 20.0
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """One process to keep running.

    Args:
        name: of the process, in logs and in `run/processes`.
        command: to run.
        ready: tells whether the next may start.
        ends_with: names of the processes that are started anew whenever this one ends.
        environment: added to the supervisor's own.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool] = lambda: True
    ends_with: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


class Supervisor:
    """Keeps programs running until told to stop.

    Args:
        programs: in the order of their start.
        folder: where `processes`, one line "name pid" each, is written.
        every: called again and again while they run.
    """

    def __init__(self, programs: Sequence[Program], folder: Path, every: Callable[[], None] = lambda: None) -> None:
        self._programs, self._folder, self._every = programs, folder, every
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._started: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._anew: set[str] = set()
        self._stop = threading.Event()

    def run(self) -> None:
        """Start all and keep them running until SIGTERM or SIGINT.

        Raises:
            RunError: a program ends at once, again and again, before all have been started.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        try:
            for program in self._programs:
                self._start(program)
                self._await(program)
            while not self._stop.wait(LOOK_SECONDS):
                self._look()
                self._every()
        finally:
            self._end_all()

    def _await(self, program: Program) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not program.ready() and not self._stop.wait(LOOK_SECONDS):
            self._look()
            if self._failures.get(program.name, 0) >= 3 or time.monotonic() > deadline:
                raise RunError(f"The {program.name} does not start.", "Its last lines above say why.")

    def _look(self) -> None:
        now = time.monotonic()
        for program in self._programs:
            process = self._running.get(program.name)
            if process is not None and process.poll() is not None:
                self._ended(program, process.returncode)
            elif process is None and now >= self._due.get(program.name, float("inf")):
                self._start(program)

    def _ended(self, program: Program, status: int) -> None:
        del self._running[program.name]
        steady = time.monotonic() - self._started[program.name] > STEADY_SECONDS
        failures = 0 if steady else self._failures.get(program.name, 0)
        if program.name in self._anew:  # it did not fail
            self._anew.remove(program.name)
            self._failures[program.name], delay = failures, DELAYS_SECONDS[0]
        else:
            self._failures[program.name], delay = failures + 1, DELAYS_SECONDS[min(failures, len(DELAYS_SECONDS) - 1)]
        self._due[program.name] = time.monotonic() + delay
        LOG.warning("The %s has ended (%s); it starts again in %.1f s.", program.name, status, delay)
        for name in program.ends_with:
            if other := self._running.get(name):
                self._anew.add(name)
                other.terminate()
        self._note()

    def _start(self, program: Program) -> None:
        self._due.pop(program.name, None)
        process = subprocess.Popen(
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **program.environment},
            start_new_session=True,  # Ctrl-C on a terminal reaches the supervisor alone
            preexec_fn=_die_with_parent,
        )
        self._running[program.name], self._started[program.name] = process, time.monotonic()
        assert process.stdout is not None
        threading.Thread(target=_pass_on, args=(program.name, process.stdout), daemon=True).start()
        self._note()

    def _note(self) -> None:
        lines = [f"{name} {process.pid}\n" for name, process in self._running.items()]
        with contextlib.suppress(OSError):  # a full disk must not stop what runs
            replace_file(self._folder / "processes", "".join(lines).encode())

    def _end_all(self) -> None:
        for program in reversed(self._programs):
            if process := self._running.get(program.name):
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        self._note()


def _die_with_parent() -> None:
    # Linux only: should the supervisor be killed outright, its processes end too and free their ports.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(name: str, stream: IO[str]) -> None:
    with stream:
        for line in stream:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"[{name}] {line}")
                sys.stderr.flush()


@contextlib.contextmanager
def running_folder(state_folder: Path) -> Iterator[Path]:
    """Give the folder of a running party's passing files, and let no other process run the same party meanwhile.

    Raises:
        StateFolderError: another process runs it.
    """
    folder = state_folder / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateFolderError(
                f"{state_folder} is in use by another process.", "Stop the other one first."
            ) from error
        yield folder
        (folder / "processes").unlink(missing_ok=True)


def free_port(wanted: int = 0) -> int:
    """Return a free port on loopback, the wanted one if it is named.

    Raises:
        PortInUseError: the wanted port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise PortInUseError(f"Port {wanted} on 127.0.0.1: {error.strerror}.") from error
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
