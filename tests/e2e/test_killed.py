"""Killed at any moment, and stopped by the user: the run goes on to the model of a run nobody disturbed."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from echofed.protocol.study import Study
from echofed.server.history import FILE_NAME, read_history
from echofed.simulations.run import Simulation, simulate_study
from tests.simulations.test_pool import workers_of
from tests.small_simulations import ECHOFED, environment, small_study, source, write_study

WAIT_SECONDS = 120.0
STUDIES = {
    "FedAdam": small_study(strategy={"preset": "FedAdam"}, federation={"rounds": 10}, training={"local_steps": 6}),
    "FedBN": small_study(strategy={"preset": "FedBN"}, federation={"rounds": 10}, training={"local_steps": 6}),
}


def command(study: Path, phantoms: Path, out: Path) -> list[str]:
    options = ["--column", "exam=exam_id", "--workers", "2", "--resume"]
    return [str(ECHOFED), "simulate", str(study), "--data", str(phantoms), "--out", str(out), *options]


def start(study: Path, phantoms: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(study, phantoms, out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def rounds_done(out: Path) -> int:
    """Return how many rounds are in the history, published or about to be; of a run at work or killed."""
    if not (out / FILE_NAME).exists():
        return 0
    with closing(sqlite3.connect(out / FILE_NAME, timeout=WAIT_SECONDS)) as history:
        tables = history.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        return int(history.execute("SELECT COUNT(*) FROM rounds").fetchone()[0]) if tables else 0


def wait_for_round(run: subprocess.Popen[str], out: Path, round_number: int) -> None:
    """Wait until a round is in the history, or the run has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while rounds_done(out) < round_number and run.poll() is None:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.005)


def undisturbed(study: Study, phantoms: Path, folder: Path) -> bytes:
    file = write_study(folder / "study.yaml", study)
    out = simulate_study(Simulation(file, source(phantoms), folder / "undisturbed", workers=2))
    return (out / "model-last.safetensors").read_bytes() + (out / "model-best.safetensors").read_bytes()


@pytest.mark.parametrize("preset", STUDIES)
def test_a_run_killed_again_and_again_ends_in_the_same_models(preset: str, phantoms: Path, tmp_path: Path) -> None:
    expected = undisturbed(STUDIES[preset], phantoms, tmp_path)
    rng, out, killed = random.Random(preset), tmp_path / "killed", 0
    # Once while sites are made or workers start, then in the middle of rounds.
    for after_round in (0, 1, 5):
        run = start(tmp_path / "study.yaml", phantoms, out)
        if after_round:
            wait_for_round(run, out, after_round)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(1, 6))
        killed += run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=WAIT_SECONDS)
    assert killed >= 2
    finish = subprocess.run(
        command(tmp_path / "study.yaml", phantoms, out), env=environment(), capture_output=True, text=True
    )
    assert finish.returncode == 0, finish.stderr
    assert (out / "model-last.safetensors").read_bytes() + (out / "model-best.safetensors").read_bytes() == expected
    assert finish.stderr.count("Traceback") == 0


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(phantoms: Path, tmp_path: Path) -> None:
    study = small_study(federation={"rounds": 400})
    out = tmp_path / "run"
    run = start(write_study(tmp_path / "study.yaml", study), phantoms, out)
    wait_for_round(run, out, 2)
    workers = workers_of(run.pid)
    assert len(workers) == 2
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 130, errors
    assert "--resume" in errors
    assert str(out) in errors.replace("\n", "")
    assert "Traceback" not in errors
    assert [process for process in workers if Path(f"/proc/{process}").exists()] == []
    assert 2 <= rounds_done(out) < 400
    assert not (out / "report.html").exists()


def test_a_worker_killed_in_a_round_costs_nothing_but_the_attempt(phantoms: Path, tmp_path: Path) -> None:
    study = small_study(
        federation={"rounds": 3, "minimum_sites": 3, "minimum_replies": 3, "retries": 3}, training={"local_steps": 60}
    )
    expected = undisturbed(study, phantoms, tmp_path)
    out = tmp_path / "killed"
    run = start(tmp_path / "study.yaml", phantoms, out)
    wait_for_round(run, out, 1)
    time.sleep(0.1)  # the round takes longer
    assert rounds_done(out) == 1
    os.kill(workers_of(run.pid)[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 0, errors
    assert (out / "model-last.safetensors").read_bytes() + (out / "model-best.safetensors").read_bytes() == expected
    assert 2 in [record.attempts for record in read_history(out, 3)]


def test_a_site_that_hangs_costs_the_attempt_and_not_the_run(phantoms: Path, tmp_path: Path) -> None:
    study = small_study(
        federation={"rounds": 4, "minimum_replies": 2, "retries": 1, "round_timeout_seconds": 15.0},
        training={"local_steps": 20},
    )
    write_study(tmp_path / "study.yaml", study)
    out = tmp_path / "hung"
    run = start(tmp_path / "study.yaml", phantoms, out)
    wait_for_round(run, out, 1)
    os.kill(workers_of(run.pid)[0], signal.SIGSTOP)
    _, errors = run.communicate(timeout=WAIT_SECONDS)
    assert run.returncode == 0, errors
    assert rounds_done(out) == 4
