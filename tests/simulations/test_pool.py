"""The worker pool: real processes that answer, die, are replaced, and end with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from echofed.protocol.messages import DescribeReply, Instruction
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE
from echofed.simulations.initial import write_initial_parameters
from echofed.simulations.pool import Answer, Job, WorkerPool
from echofed.simulations.sites import make_sites
from tests.small_simulations import small_study, source, write_study

STUDY = small_study()
DESCRIBE = Instruction(kind="describe", study_hash=STUDY.hash, round_number=0).model_dump_json()
START_SECONDS = 60.0


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            status, command = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if f"PPid:\t{parent}\n" in status and b"echofed.simulations.worker" in command:
            found.append(int(folder.name))
    return found


def job(key: str, site: int, document: str = DESCRIBE) -> Job:
    return Job(key, site, "query", "0", document, b"")


def gather(pool: WorkerPool, count: int) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    deadline = time.monotonic() + START_SECONDS
    while len(answers) < count and time.monotonic() < deadline:
        answers |= {answer.key: answer for answer in pool.answers(1.0)}
    return answers


@pytest.fixture(scope="module")
def folder(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    path = tmp_path_factory.mktemp("pool")
    write_study(path / STUDY_FILE, STUDY)
    write_initial_parameters(STUDY, path / PARAMETERS_FILE, 0)
    return path, make_sites(source(phantoms), path / "sites", 0)


@pytest.fixture(scope="module")
def pool(folder: tuple[Path, list[Path]]) -> Iterator[WorkerPool]:
    with WorkerPool(*folder, seed=0, workers=2) as pool:
        yield pool
        started = workers_of(os.getpid())
        assert len(started) == 2
    assert workers_of(os.getpid()) == []


def test_every_job_is_answered_by_its_site(pool: WorkerPool) -> None:
    for number in range(9):
        pool.submit(job(str(number), number % 3))
    answers = gather(pool, 9)
    assert sorted(answers) == [str(number) for number in range(9)]
    names = [DescribeReply.model_validate_json(answers[str(number)].document or "").site for number in range(9)]
    assert names == ["north", "south", "west"] * 3


def test_a_refusal_comes_back_as_an_error_and_the_worker_goes_on(pool: WorkerPool) -> None:
    pool.submit(job("bad", 0, "{}"))
    pool.submit(job("good", 0))
    answers = gather(pool, 2)
    assert answers["bad"].document is None
    assert answers["bad"].error is not None
    assert "EF-501" in answers["bad"].error[1]
    assert answers["good"].error is None


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_that_dies_answers_with_an_error_and_is_replaced(pool: WorkerPool, busy: bool) -> None:
    pool.submit(job("before", 0))
    assert gather(pool, 1)["before"].error is None
    before = workers_of(os.getpid())
    if busy:
        for number in range(2):
            pool.submit(job(f"lost {number}", number))
    for process in before:
        os.kill(process, signal.SIGKILL)
    if not busy:
        for number in range(2):
            pool.submit(job(f"lost {number}", number))
    lost = gather(pool, 2)
    # A job may have been answered before the signal came; none may be left without an answer.
    assert sorted(lost) == ["lost 0", "lost 1"]
    assert busy or all("exit status -9" in (answer.error or (0, ""))[1] for answer in lost.values())
    for number in range(4):
        pool.submit(job(f"after {number}", 1))
    after = gather(pool, 4)
    assert len(after) == 4
    assert sum(answer.error is None for answer in after.values()) >= 2
    assert not set(workers_of(os.getpid())) & set(before)


PARENT = """
import sys, time
from pathlib import Path
from echofed.simulations.pool import WorkerPool
pool = WorkerPool(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]], 0, 2)
print("started", flush=True)
time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(folder: tuple[Path, list[Path]]) -> None:
    path, sites = folder
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path), *map(str, sites)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        deadline = time.monotonic() + 30
        # A process that was just forked does not bear its worker's name yet.
        while len(orphans := workers_of(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(orphans) == 2
        parent.kill()
        _, errors = parent.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{one}").exists() for one in orphans) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [one for one in orphans if Path(f"/proc/{one}").exists()] == []
    assert errors == b""


def test_parameters_reach_every_worker_unchanged(pool: WorkerPool) -> None:
    # Another study's hash is refused before the parameters are looked at; these jobs only have to come back in full.
    document = Instruction(kind="train", study_hash="0" * 64, round_number=1).model_dump_json()
    for number, size in enumerate((10, 5_000_000, 0, 10)):
        pool.submit(replace(job(str(number), number % 3, document), kind="train", parameters=bytes([number]) * size))
    answers = gather(pool, 4)
    assert all("EF-500" in (answer.error or (0, ""))[1] for answer in answers.values())
    assert len(answers) == 4
