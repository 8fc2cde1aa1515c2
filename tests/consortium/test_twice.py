"""Two nodes with the same identity, supervisors killed outright, and stopping: on a consortium that works meanwhile."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from echofed.client.identity import init_site, join
from echofed.protocol.arrays import decode_parameters
from echofed.server.history import read_history
from echofed.server.members import enrol, invite
from echofed.simulations.local_consortium import LocalConsortium
from tests.local_consortia import (
    ENVIRONMENT,
    NAMES,
    audit,
    enrolled_consortium,
    ledger,
    online,
    published,
    run_to_end,
    wait_for,
)
from tests.small_simulations import echofed, environment, small_study

EVERYONE = {"minimum_sites": 3, "minimum_replies": 3, "rounds": 4}


@pytest.fixture(scope="module")
def consortium(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    made = enrolled_consortium(tmp_path_factory.mktemp("twice"), phantoms)
    with made.running():
        wait_for(lambda: online(made))
        yield made


def processes(state: Path) -> dict[str, int]:
    lines = (state / "run" / "processes").read_text().splitlines()
    return {name: int(pid) for name, pid in (line.split() for line in lines)}


def lives(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("name", ["coordinator", "north"])
def test_killed_outright_a_supervisor_leaves_nothing_behind_and_starts_again(
    consortium: LocalConsortium, name: str
) -> None:
    state = consortium.coordinator if name == "coordinator" else consortium.sites[name]
    wait_for(lambda: len(processes(state)) == 3)
    pids = processes(state).values()
    consortium.stop(name, signal.SIGKILL)
    wait_for(lambda: not any(map(lives, pids)), 30)
    consortium.start(name)
    wait_for(lambda: (state / "run" / "processes").exists() and len(processes(state)) == 3, 60)
    study_hash = published(consortium, small_study(title=f"After {name}", federation={**EVERYONE, "rounds": 1}), name)
    wait_for(lambda: _approved(consortium, study_hash))
    run_to_end(consortium, study_hash)


def _approved(consortium: LocalConsortium, study_hash: str) -> bool:
    with contextlib.suppress(Exception):
        consortium.approve(study_hash)
        return True
    return False


def test_two_nodes_with_one_identity_are_said_and_the_rounds_stay_right(
    consortium: LocalConsortium, tmp_path: Path
) -> None:
    study = small_study(
        title="Two", federation={**EVERYONE, "round_timeout_seconds": 90.0}, training={"sampling_probability": 1.0}
    )
    alone = published(consortium, study, "two")
    consortium.approve(alone)
    copy = tmp_path / "copy"
    shutil.copytree(consortium.sites["north"], copy, ignore=shutil.ignore_patterns("run"))
    log = tmp_path / "copy.log"
    with log.open("wb") as output:
        second = subprocess.Popen(
            [sys.executable, "-m", "echofed.cli", "site", "start", "--state", str(copy)],
            env=environment() | ENVIRONMENT,
            stdout=output,
            stderr=output,
        )
    try:
        original = consortium.folder / "logs" / "north.log"
        wait_for(lambda: "runs on two machines" in original.read_text(), 90)
        doctor = echofed("site", "doctor", "--state", consortium.sites["north"]).stdout
        assert "two machines" in " ".join(doctor.split())
        folder = run_to_end(consortium, alone, 240)
    finally:
        second.terminate()
        second.wait(30)
    # The copy has answered for north: what is left of north has another log and ledger, and answers nothing.
    consortium.stop("north")
    consortium.start("north")
    again = published(consortium, small_study(title="Again", federation={**EVERYONE, "rounds": 1}), "again")
    wait_for(lambda: _approved(consortium, again))
    before = [ledger(consortium.sites["north"]), ledger(copy)]
    consortium.run(again)
    consortium.wait(again, lambda status: "EF-708" in (status.error or ""), 120)
    for command in (("study", "status"), ("consortium", "status")):
        assert "north: two machines use its identity" in echofed(*command, "--state", consortium.coordinator).stdout
    forked = [one.facts for one in audit(consortium.coordinator, "reply refused") if one.facts["code"] == "EF-708"]
    assert {one["site"] for one in forked} == {"north"}
    own = [one.facts for one in audit(consortium.sites["north"], "refused request")]
    assert "two machines use this identity" in str(own[-1]["what"])
    assert [ledger(consortium.sites["north"]), ledger(copy)] == before
    _enrol_north_anew(consortium)
    wait_for(lambda: _approved(consortium, again))
    run_to_end(consortium, again)
    rounds = read_history(folder, 4)
    assert [sorted(one.sites) for one in rounds] == [sorted(NAMES)] * 4
    refused = [str(one.facts) for one in audit(consortium.coordinator, "refused request")]
    assert any("north" in one for one in refused)
    model = decode_parameters((folder / "model-last.safetensors").read_bytes(), 10**9)
    assert model


def _enrol_north_anew(consortium: LocalConsortium) -> None:
    """As the coordinator and the hospital are told to."""
    papers, state = consortium.folder / "papers", consortium.sites["north"]
    consortium.stop("north")
    echofed("consortium", "revoke", "north", "--reason", "Two machines.", "--state", consortium.coordinator)
    invitation = invite(consortium.coordinator, "north", papers / "again.invitation", readmit=True)
    request = init_site(state, invitation, "north", papers / "again.request")
    join(state, enrol(consortium.coordinator, request.path, request.words))
    consortium.start("north")


def test_all_stop_within_seconds(consortium: LocalConsortium) -> None:
    for name in (*NAMES, "coordinator"):
        state = consortium.coordinator if name == "coordinator" else consortium.sites[name]
        pids = processes(state).values()
        start = time.monotonic()
        process = consortium.processes[name]
        consortium.stop(name)
        assert time.monotonic() - start < 12
        assert process.returncode == 0
        assert not any(map(lives, pids))
        assert audit(state)[-1].event == "stopped"
    for name in NAMES:
        assert "EF-801" in echofed("site", "studies", "--state", consortium.sites[name]).stderr
