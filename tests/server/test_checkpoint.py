"""Checkpoints: whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from echofed.protocol.errors import CheckpointError
from echofed.server.checkpoint import FILE_NAME, Checkpoint, read_checkpoint, read_facts, write_checkpoint

STUDY = "ab" * 32


def checkpoint(round_number: int = 3, size: int = 10) -> Checkpoint:
    arrays = {"head.weight": np.full((2, size), round_number, np.float32), "b": np.ones(1, np.float32)}
    best = {name: array + 1 for name, array in arrays.items()}
    return Checkpoint(STUDY, round_number, arrays, {"first": arrays, "second": best}, 2, 0.75, best, ("a", "b"))


def test_round_trip(tmp_path: Path) -> None:
    before = checkpoint()
    for after in (write_checkpoint(tmp_path, before), read_checkpoint(tmp_path, STUDY)):
        assert after is not None
        assert (after.round_number, after.best_round, after.best_metric) == (3, 2, 0.75)
        assert after.replied == ("a", "b")
        for part in ("parameters", "best_parameters"):
            for name, array in getattr(before, part).items():
                np.testing.assert_array_equal(getattr(after, part)[name], array)
                assert getattr(after, part)[name].flags.aligned
        assert after.optimizer_state.keys() == {"first", "second"}
        for name, array in before.optimizer_state["second"].items():
            np.testing.assert_array_equal(after.optimizer_state["second"][name], array)
    facts = read_facts(tmp_path)
    assert facts is not None
    assert (facts.round_number, facts.replied, facts.best_round) == (3, ("a", "b"), 2)


def test_a_checkpoint_stays_as_it_was_when_the_next_replaces_it(tmp_path: Path) -> None:
    old = write_checkpoint(tmp_path, checkpoint(3))
    write_checkpoint(tmp_path, checkpoint(4))
    np.testing.assert_array_equal(old.parameters["head.weight"], checkpoint(3).parameters["head.weight"])


def test_the_last_round_that_is_the_best_stands_there_once(tmp_path: Path) -> None:
    arrays = {"w": np.ones(50_000, np.float32)}
    write_checkpoint(tmp_path, Checkpoint(STUDY, 4, arrays, {}, 4, 0.5, arrays))
    assert (tmp_path / FILE_NAME).stat().st_size < 1.1 * arrays["w"].nbytes
    kept = read_checkpoint(tmp_path, STUDY)
    assert kept is not None
    np.testing.assert_array_equal(kept.best_parameters["w"], arrays["w"])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, STUDY) is None
    assert read_facts(tmp_path) is None


@pytest.mark.parametrize("position", [0, 30, 90, 200, -40, -1])
def test_one_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    write_checkpoint(tmp_path, checkpoint())
    raw = bytearray((tmp_path / FILE_NAME).read_bytes())
    raw[position] ^= 1
    (tmp_path / FILE_NAME).write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path, STUDY)


@pytest.mark.parametrize("length", [0, 10, 100, 300])
def test_a_cut_file_is_noticed(tmp_path: Path, length: int) -> None:
    write_checkpoint(tmp_path, checkpoint())
    (tmp_path / FILE_NAME).write_bytes((tmp_path / FILE_NAME).read_bytes()[:length])
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path, STUDY)


def test_another_study_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint())
    with pytest.raises(CheckpointError, match="another study"):
        read_checkpoint(tmp_path, "cd" * 32)


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from echofed.protocol.errors import CheckpointError
from echofed.server.checkpoint import Checkpoint, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
big = {"w": np.zeros(50_000, np.float32)}
try:
    write_checkpoint(Path(sys.argv[1]), Checkpoint("ab" * 32, 4, big, {}, 0, None, big))
except CheckpointError as error:
    print(error.code)
"""


def test_disk_full_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(3))
    done = subprocess.run([sys.executable, "-c", DISK_FULL, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "EF-602"
    kept = read_checkpoint(tmp_path, STUDY)
    assert kept is not None
    assert kept.round_number == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from echofed.server.checkpoint import Checkpoint, write_checkpoint
for number in range(1, 100_000):
    arrays = {"w": np.full(200_000, number, np.float32)}
    write_checkpoint(Path(sys.argv[1]), Checkpoint("ab" * 32, number, arrays, {}, 0, None, arrays))
    print(number, flush=True)
"""


def test_kill_at_any_instant_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, tmp_path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            seen = [int(line) for line in process.stdout.read().split()]
        kept = read_checkpoint(tmp_path, STUDY)
        assert kept is not None
        assert kept.round_number >= max(seen, default=1)
        np.testing.assert_array_equal(kept.parameters["w"], np.full(200_000, kept.round_number, np.float32))
