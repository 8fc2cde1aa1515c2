"""The supervisor over real processes: starts again what ends, stops all together, leaves nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echofed.cli.supervisor import Program, Supervisor, free_port, listens, running_folder
from echofed.protocol.errors import PortInUseError, RunError, StateFolderError

WAIT_SECONDS = 20.0
# A party of two: the second starts when the first listens, and the first is started anew with it.
PARTY = """
import logging, sys
from pathlib import Path
from echofed.cli.supervisor import Program, Supervisor, listens, running_folder
from echofed.protocol.errors import EchoFedError
logging.basicConfig(level=logging.INFO, format="[supervisor] %(message)s")
folder, port = Path(sys.argv[1]), int(sys.argv[2])
listener = [sys.executable, "-u", "-c", f"import socket, time; s = socket.create_server(('127.0.0.1', {port}));"
            "print('listening'); time.sleep(1000)"]
sleeper = [sys.executable, "-c", sys.argv[3]]
programs = [Program("listener", listener, lambda: listens(port)),
            Program("sleeper", sleeper, ends_with=("listener",), environment={"OWN": "its own"})]
try:
    with running_folder(folder) as run:
        Supervisor(programs, run).run()
except EchoFedError as error:
    sys.exit(str(error))
"""
SLEEPS = "import time; time.sleep(1000)"
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(folder: Path) -> dict[str, int]:
    """Return the process ids of a party's programs."""
    path = folder / "run" / "processes"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(pid) for name, pid in (line.split() for line in lines)}


def lives(pid: int) -> bool:
    """Return whether a process runs; one that has ended and not been looked at does not."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def party(folder: Path, sleeper: str = SLEEPS) -> Iterator[subprocess.Popen[str]]:
    port = free_port()
    command = [sys.executable, "-c", PARTY, str(folder), str(port), sleeper]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        pids = running(folder).values()
        process.kill()
        process.communicate()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_what_is_killed_is_started_again_with_what_depends_on_it(tmp_path: Path) -> None:
    with party(tmp_path):
        wait_for(lambda: len(running(tmp_path)) == 2)
        before = running(tmp_path)
        os.kill(before["sleeper"], signal.SIGKILL)
        wait_for(lambda: len(running(tmp_path)) == 2 and not set(running(tmp_path).values()) & set(before.values()))
        between = running(tmp_path)
        os.kill(between["listener"], signal.SIGKILL)
        wait_for(lambda: len(running(tmp_path)) == 2 and running(tmp_path)["listener"] != between["listener"])
        assert running(tmp_path)["sleeper"] == between["sleeper"]


def test_what_is_started_anew_with_another_has_not_failed(tmp_path: Path) -> None:
    with party(tmp_path):
        wait_for(lambda: len(running(tmp_path)) == 2)
        for _ in range(3):
            before = set(running(tmp_path).values())
            os.kill(running(tmp_path)["sleeper"], signal.SIGKILL)
            wait_for(lambda old=before: len(running(tmp_path)) == 2 and not old & set(running(tmp_path).values()))
        killed, start = running(tmp_path)["listener"], time.monotonic()
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: running(tmp_path).get("listener", killed) != killed)
        assert time.monotonic() - start < 3.0  # as after a first failure; after a fourth it would be five


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_stops_all_and_says_nothing_of_it(tmp_path: Path, number: signal.Signals) -> None:
    with party(tmp_path) as process:
        wait_for(lambda: len(running(tmp_path)) == 2)
        pids = running(tmp_path).values()
        start = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=WAIT_SECONDS)
        assert time.monotonic() - start < 5
        assert process.returncode == 0
        assert "Traceback" not in said
        assert not any(map(lives, pids))
        assert running(tmp_path) == {}


def test_a_program_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    with party(tmp_path, IGNORES) as process:
        wait_for(lambda: len(running(tmp_path)) == 2)
        time.sleep(0.5)  # until it ignores the signal
        pids = running(tmp_path).values()
        process.terminate()
        process.communicate(timeout=WAIT_SECONDS)
        assert not any(map(lives, pids))


def test_killed_outright_it_leaves_no_process_behind_and_can_start_again(tmp_path: Path) -> None:
    with party(tmp_path) as process:
        wait_for(lambda: len(running(tmp_path)) == 2)
        pids = running(tmp_path).values()
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(lives, pids)))
    with party(tmp_path):
        wait_for(lambda: len(running(tmp_path)) == 2 and not set(running(tmp_path).values()) & set(pids))


def test_a_second_one_says_that_the_folder_is_in_use(tmp_path: Path) -> None:
    with party(tmp_path) as first:
        wait_for(lambda: len(running(tmp_path)) == 2)
        before = running(tmp_path)
        with party(tmp_path / ".." / tmp_path.name) as second:
            _, said = second.communicate(timeout=WAIT_SECONDS)
            assert second.returncode == 1
            assert "EF-710" in said
            assert "in use by another process" in said
            assert running(tmp_path) == before
            assert first.poll() is None
            assert all(map(lives, before.values()))


def test_a_program_that_does_not_start_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Program("broken", [sys.executable, "-c", "raise SystemExit('no such thing')"], ready=lambda: False)
    other = Program("other", [sys.executable, "-c", SLEEPS])
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(RunError, match="The broken does not start"), running_folder(tmp_path) as run:
            Supervisor([other, broken], run).run()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    wait_for(lambda: "[broken] no such thing" in capfd.readouterr().err)
    assert running(tmp_path) == {}


def test_the_folder_of_a_running_party_is_for_its_owner_alone_and_free_afterwards(tmp_path: Path) -> None:
    with running_folder(tmp_path) as run:
        assert run.stat().st_mode & 0o777 == 0o700
        with pytest.raises(StateFolderError, match="in use"), running_folder(tmp_path):
            pass
    with running_folder(tmp_path) as run:
        assert run.is_dir()


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert listens(port)
        with pytest.raises(PortInUseError, match=str(port)):
            free_port(port)
    assert not listens(port)
    assert free_port(port) == port
