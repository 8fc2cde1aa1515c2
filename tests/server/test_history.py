"""The history: every round that was published, once, whatever is killed and whoever reads meanwhile."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.errors import CheckpointError
from echofed.server.history import FILE_NAME, Round, SiteRound, append_round, read_history


def record(round_number: int, attempts: int = 1) -> Round:
    return Round(
        round_number=round_number,
        attempts=attempts,
        seconds=1.5,
        bytes_down=10,
        bytes_up=20,
        sites={"north": SiteRound(trained=True, training_loss=0.25)},
        refused={"south": "It did not answer in time."},
        validation_loss=None,
        validation_metric=0.75,
    )


def test_rounds_come_back_as_they_were_and_the_last_of_a_number_counts(tmp_path: Path) -> None:
    for one in (record(1), record(2), record(3), record(2, attempts=4)):
        append_round(tmp_path, one)
    assert read_history(tmp_path, 3) == [record(1), record(2, attempts=4), record(3)]


def test_a_round_that_was_not_published_is_left_out(tmp_path: Path) -> None:
    append_round(tmp_path, record(1))
    append_round(tmp_path, record(2))
    assert read_history(tmp_path, 1) == [record(1)]
    assert read_history(tmp_path, 0) == []


def test_a_published_round_that_is_missing_is_named(tmp_path: Path) -> None:
    assert read_history(tmp_path, 0) == []
    with pytest.raises(CheckpointError, match="lacks round 1"):
        read_history(tmp_path, 1)
    append_round(tmp_path, record(1))
    append_round(tmp_path, record(3))
    with pytest.raises(CheckpointError, match="lacks round 2"):
        read_history(tmp_path, 3)


def test_a_damaged_or_newer_file_is_refused(tmp_path: Path) -> None:
    append_round(tmp_path, record(1))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 2")
    for use in (lambda: append_round(tmp_path, record(2)), lambda: read_history(tmp_path, 1)):
        with pytest.raises(CheckpointError, match="of version 2"):
            use()
    (tmp_path / FILE_NAME).write_bytes(b"something else, longer than a header of SQLite" * 10)
    with pytest.raises(CheckpointError, match="not a database"):
        append_round(tmp_path, record(2))
    with pytest.raises(CheckpointError, match="not a database"):
        read_history(tmp_path, 1)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unable to open"):
        append_round(tmp_path / "absent", record(1))


WRITE_FOREVER = """
import sys
from pathlib import Path
from echofed.server.history import append_round, read_history
from tests.server.test_history import record
folder = Path(sys.argv[1])
for number in range(int(sys.argv[2]), 100_000):
    append_round(folder, record(number))
    print(number, flush=True)
"""


def test_killed_at_any_instant_while_another_reads_no_round_is_lost(tmp_path: Path) -> None:
    rng, written = np.random.default_rng(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITE_FOREVER, tmp_path, str(written + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            written = int(process.stdout.readline())
            end = time.monotonic() + rng.uniform(0, 0.05)
            while time.monotonic() < end:
                assert len(read_history(tmp_path, written)) == written
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            written = max([written, *map(int, process.stdout.read().split())])
        assert read_history(tmp_path, written) == [record(number) for number in range(1, written + 1)]
