"""The conductor with a real SuperLink and gateway, and no hospital: what it waits for, and that nothing stops it."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from echofed.protocol.durable import replace_file
from echofed.protocol.errors import RunError
from echofed.server.conductor import Conductor
from echofed.server.publishing import withdraw_study
from echofed.server.studies import CONTROL_FILE, read_control, study_folder, write_control
from echofed.server.study_status import StudyStatus, Waiting, read_status
from echofed.simulations.local_consortium import LocalConsortium
from tests.gateways import free_port, wait_for
from tests.local_consortia import ENVIRONMENT, audit, pid_of, published
from tests.small_simulations import small_study


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    folder = tmp_path_factory.mktemp("conductor")
    made = LocalConsortium(folder, {}, f"127.0.0.1:{free_port()}", ENVIRONMENT)
    made.enrol()
    with made.running():
        yield made


def fares(consortium: LocalConsortium, study_hash: str) -> StudyStatus | None:
    return read_status(study_folder(consortium.coordinator, study_hash))


def is_said(consortium: LocalConsortium, study_hash: str, state: str) -> bool:
    status = fares(consortium, study_hash)
    return status is not None and status.state == state


def test_a_study_waits_for_its_sites_pauses_goes_on_and_stops(consortium: LocalConsortium) -> None:
    study_hash = published(consortium, small_study(title="Waits"), "waits")
    assert fares(consortium, study_hash) is None
    consortium.run(study_hash)
    wait_for(lambda: is_said(consortium, study_hash, "waiting"), 60)
    status = fares(consortium, study_hash)
    assert status is not None
    assert "EF-603" in (status.error or "")
    assert "needs 2 sites; 0 have approved it and are online" in (status.error or "")
    assert (status.round_number, status.rounds) == (0, 2)
    for state in ("paused", "running", "stopped"):
        write_control(consortium.coordinator, study_hash, state)  # type: ignore[arg-type]
        wait_for(lambda said=state: is_said(consortium, study_hash, "waiting" if said == "running" else said))
    with pytest.raises(RunError):
        consortium.run(study_hash)


def test_one_study_s_unexpected_fault_is_said_and_ends_nothing(
    consortium: LocalConsortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_hash = published(consortium, small_study(title="Faulty"), "faulty")
    conductor = Conductor(consortium.coordinator, "127.0.0.1:1", b"unused")

    def fault(*_: object, **__: object) -> None:
        raise OverflowError("Numerical result out of range")

    monkeypatch.setattr(conductor, "_leg", fault)
    conductor._conduct(study_hash, alone=True)
    status = fares(consortium, study_hash)
    assert status is not None
    assert (status.state, "OverflowError" in (status.error or "")) == ("failed", True)
    errors = [entry for entry in audit(consortium.coordinator, "error") if entry.facts["study"] == study_hash]
    assert [entry.facts["code"] for entry in errors] == ["EF-605"]
    assert conductor._study(study_hash).next_try > time.monotonic()


def test_whom_a_round_waits_for_stands_in_the_status(consortium: LocalConsortium) -> None:
    study_hash = published(consortium, small_study(title="Silent"), "silent")
    conductor = Conductor(consortium.coordinator, "127.0.0.1:1", b"unused")
    grid = conductor._grid(conductor._study(study_hash), ["north", "south"])
    waiting = Waiting(sites=("south",), since="2030-01-02T03:04:05+00:00", until="2030-01-02T03:09:05+00:00")
    for told in (waiting, None):
        grid._waiting(told)
        status = fares(consortium, study_hash)
        assert status is not None
        assert (status.state, status.waiting) == ("running", told)


def test_a_study_that_is_taken_back_stops(consortium: LocalConsortium) -> None:
    study_hash = published(consortium, small_study(title="Taken back"), "taken")
    consortium.run(study_hash)
    wait_for(lambda: is_said(consortium, study_hash, "waiting"), 60)
    withdraw_study(consortium.coordinator, study_hash, "A fault.")
    wait_for(lambda: is_said(consortium, study_hash, "stopped"))


@pytest.mark.parametrize("file", [CONTROL_FILE, "study.yaml", "initial.safetensors"])
def test_a_damaged_study_is_logged_once_and_holds_up_no_other(consortium: LocalConsortium, file: str) -> None:
    damaged = published(consortium, small_study(title=f"Damaged {file}"), "damaged")
    other = published(consortium, small_study(title=f"Beside {file}"), "beside")
    conductor = pid_of(consortium.coordinator, "conductor")
    path = study_folder(consortium.coordinator, damaged) / file
    content = b'{"state": "running"}' if file == CONTROL_FILE else path.read_bytes()
    replace_file(path, b"damaged")
    if file != CONTROL_FILE:
        replace_file(path.with_name(CONTROL_FILE), b'{"state": "running"}')
    consortium.run(other)
    wait_for(lambda: is_said(consortium, other, "waiting"), 60)
    wait_for(lambda: any(entry.facts["study"] == damaged for entry in audit(consortium.coordinator, "error")))
    replace_file(path, content)
    wait_for(lambda: is_said(consortium, damaged, "waiting"), 60)
    errors = [entry for entry in audit(consortium.coordinator, "error") if entry.facts["study"] == damaged]
    assert len(errors) == 1
    assert pid_of(consortium.coordinator, "conductor") == conductor


def test_conductor_and_superlink_are_killed_and_it_goes_on(consortium: LocalConsortium) -> None:
    study_hash = published(consortium, small_study(title="Killed"), "killed")
    consortium.run(study_hash)
    for program in ("conductor", "superlink"):
        wait_for(lambda: is_said(consortium, study_hash, "waiting"), 60)
        before = pid_of(consortium.coordinator, program)
        os.kill(before, signal.SIGKILL)
        (study_folder(consortium.coordinator, study_hash) / "status.json").unlink()
        wait_for(partial(_restarted, consortium.coordinator, program, before), 60)
    wait_for(lambda: is_said(consortium, study_hash, "waiting"), 60)
    assert read_control(consortium.coordinator, study_hash).state == "running"


def _restarted(coordinator: Path, program: str, before: int) -> bool:
    lines = (coordinator / "run" / "processes").read_text().splitlines()
    now = dict(line.split() for line in lines)
    return program in now and int(now[program]) != before
