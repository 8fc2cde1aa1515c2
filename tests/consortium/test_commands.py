"""The whole life of a consortium by its commands, as people give them."""

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from echofed.simulations.local_consortium import LocalConsortium
from tests.gateways import free_port
from tests.local_consortia import ENVIRONMENT, NAMES, POLICY, audit, online, wait_for
from tests.small_simulations import ECHOFED, echofed, environment, small_study, write_study

WORDS = re.compile(r"^  ((?:[a-z]+ ){7}[a-z]+)$", re.MULTILINE)
REVOKED_SECONDS = 60.0


@dataclass
class Consortium:
    """Folders, as the commands know them."""

    folder: Path
    local: LocalConsortium

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.local.coordinator

    def at(self, *arguments: object, status: int = 0) -> str:
        """Give a command of the coordinator's and return what it said."""
        done = echofed(*arguments, "--state", self.coordinator, status=status)
        return done.stdout + done.stderr

    def site(self, name: str, *arguments: object, status: int = 0) -> str:
        """Give a command of a site's and return what it said."""
        done = echofed("site", *arguments, "--state", self.local.sites[name], status=status)
        return done.stdout + done.stderr


def hours_ago(hours: int, *arguments: object) -> str:
    """Give a command some hours ago."""
    command = ["faketime", "-f", f"-{hours}h", str(ECHOFED), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def consortium(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A running consortium whose certificates are valid for a day and were issued 17 hours ago."""
    folder = tmp_path_factory.mktemp("commands")
    sites = {name: folder / name for name in NAMES}
    local = LocalConsortium(folder, sites, f"127.0.0.1:{free_port()}", ENVIRONMENT)
    made = Consortium(folder, local)
    said = hours_ago(
        18, "consortium", "init", "Hospitals of the West", "--address", local.address, "--state", local.coordinator
    )
    fingerprint = WORDS.search(said)
    assert fingerprint is not None
    with (local.coordinator / "consortium.yaml").open("a") as settings:
        settings.write("bind_host: 127.0.0.1\ncertificate_days: 1\n")
    for name in NAMES:
        _enrol(made, name, fingerprint[1])
        said = made.site(name, "register", phantoms / name, "--column", "exam=exam_id", "--name", name)
        assert "patients" in said
        (sites[name] / "policy.yaml").write_text(POLICY)
        assert "without privacy" in made.site(name, "policy", "check").lower()
    with local.running():
        wait_for(lambda: online(local))
        yield made


def _enrol(made: Consortium, name: str, fingerprint: str) -> None:
    state, coordinator, folder = made.local.sites[name], made.coordinator, made.folder
    invitation, request = folder / f"{name}.invitation", folder / f"{name}.request"
    said = hours_ago(17, "consortium", "invite", name, "--state", coordinator, "--out", invitation)
    assert fingerprint in said
    said = hours_ago(17, "site", "init", invitation, "--state", state, "--out", request)
    read_out, own = WORDS.findall(said)
    assert read_out == fingerprint
    wrong = " ".join(reversed(own.split()))
    assert "EF-704" in made.at("consortium", "enrol", request, "--words", wrong, status=2)
    hours_ago(17, "consortium", "enrol", request, "--words", own, "--state", coordinator)
    said = hours_ago(17, "site", "join", folder / f"{name}.membership", "--state", state)
    assert f"{name} is a member of Hospitals of the West" in said


def new_study(made: Consortium, title: str, rounds: int = 3) -> str:
    """Write, initialise, sign and publish a study; return the first 12 digits of its hash."""
    path = write_study(made.folder / f"{title}.yaml", small_study(title=title, federation={"rounds": rounds}))
    echofed("study", "init", path)
    assert yaml.safe_load(path.read_text())["model"]["initial_parameters_sha256"]
    made.at("study", "sign", path)
    said = made.at("study", "publish", path.with_suffix(".signed.json"))
    found = re.search(r"^  ([0-9a-f]{64})$", said, re.MULTILINE)
    assert found is not None
    return found[1][:12]


def rounds_of(made: Consortium, study: str) -> tuple[str, int]:
    """Return state and last round of a study, from its status."""
    found = re.search(r"run      (\w+)(?:,| after) round (\d+) of", made.at("study", "status", study))
    return (found[1], int(found[2])) if found else ("", 0)


def test_certificates_are_renewed_before_they_expire(consortium: Consortium) -> None:
    for name in NAMES:
        wait_for(lambda name=name: bool(audit(consortium.local.sites[name], "renewed")))
    status = consortium.at("consortium", "status")
    assert "3 sites" in status
    assert status.count("online") == 3
    assert "should have been renewed" not in status


def test_from_publication_to_the_model(consortium: Consortium) -> None:
    study = new_study(consortium, "flow")
    assert "not begun" in consortium.at("study", "status", study)
    for name in NAMES:
        assert f"{study}  new" in consortium.site(name, "studies")
    page = consortium.site("north", "show", study)
    assert "flow" in page
    assert "EF-705" in consortium.site("north", "withdraw", study, "--by", "Dr A. Martin", status=2)
    consortium.site("west", "refuse", study, "--by", "Dr W. Ouest", "--reason", "Not now.")
    for name in ("north", "south"):
        assert "Approved" in consortium.site(name, "approve", study, "--by", "Dr A. Martin")
    status = consortium.at("study", "status", study)
    assert re.search(r"north +approved by Dr A. Martin", status)
    assert re.search(r"west +refused by Dr W. Ouest.*Not now\.", status)
    consortium.at("study", "run", study, "--rounds", 1)
    wait_for(lambda: rounds_of(consortium, study) == ("stopped", 1))
    consortium.at("study", "extend", study, "--rounds", 2)
    wait_for(lambda: rounds_of(consortium, study) == ("stopped", 2))
    assert "EF-6" in consortium.at("study", "extend", study, "--rounds", 4, status=2)
    consortium.site("west", "approve", study, "--by", "Dr W. Ouest", "--reason", "Now.")
    consortium.at("study", "extend", study, "--rounds", 3)
    wait_for(lambda: rounds_of(consortium, study) == ("finished", 3))
    lines = consortium.at("study", "log", study).splitlines()
    assert [line.split()[-2:] if number < 2 else line.split()[-3:] for number, line in enumerate(lines)] == [
        ["north,", "south"],
        ["north,", "south"],
        ["north,", "south,", "west"],
    ]
    folder = next((consortium.coordinator / "studies").glob(f"{study}*"))
    assert (folder / "model-last.safetensors").stat().st_size > 1000


def test_pause_resume_withdraw_and_stop(consortium: Consortium) -> None:
    study = new_study(consortium, "long", 200)
    for name in NAMES:
        consortium.site(name, "approve", study, "--by", "Dr A. Martin")
    consortium.at("study", "run", study)
    wait_for(lambda: rounds_of(consortium, study)[1] >= 1)
    consortium.at("study", "pause", study)
    wait_for(lambda: rounds_of(consortium, study)[0] == "paused")
    paused = rounds_of(consortium, study)[1]
    time.sleep(3)
    assert rounds_of(consortium, study) == ("paused", paused)
    consortium.at("study", "resume", study)
    wait_for(lambda: rounds_of(consortium, study)[1] > paused)
    consortium.site("south", "withdraw", study, "--by", "Dr A. Martin", "--reason", "Enough.")
    ledger_before = consortium.site("south", "budget")
    at_least = rounds_of(consortium, study)[1] + 2
    wait_for(lambda: rounds_of(consortium, study)[1] >= at_least)
    assert consortium.site("south", "budget") == ledger_before
    assert consortium.at("study", "log", study).splitlines()[-1].split()[-2:] in (
        ["north,", "west"],
        ["study.", "it."],
    ) or "EF-705" in consortium.at("study", "log", study)
    consortium.at("study", "stop", study)
    wait_for(lambda: rounds_of(consortium, study)[0] == "stopped")
    stopped = rounds_of(consortium, study)[1]
    assert "EF-6" in consortium.at("study", "resume", study, status=2)
    time.sleep(2)
    assert rounds_of(consortium, study) == ("stopped", stopped)


def test_a_study_that_is_taken_back_cannot_be_approved_any_more(consortium: Consortium) -> None:
    study = new_study(consortium, "mistaken")
    assert f"{study}  new" in consortium.site("north", "studies")
    consortium.at("study", "withdraw", study, "--reason", "A mistake.")
    assert f"{study}  withdrawn by the coordinator" in consortium.site("north", "studies")
    assert "EF-705" in consortium.site("north", "approve", study, "--by", "Dr A. Martin", status=2)
    assert "EF-6" in consortium.at("study", "run", study, status=2)


def test_zz_a_revoked_hospital_is_out_within_a_minute(consortium: Consortium) -> None:
    assert "EF-" not in consortium.site("south", "studies")
    consortium.at("consortium", "revoke", "south", "--reason", "It left.")
    start = time.monotonic()
    wait_for(lambda: re.search("EF-(702|803)", consortium.site("south", "studies")) is not None, REVOKED_SECONDS)
    assert time.monotonic() - start < REVOKED_SECONDS
    assert re.search(r"south .*revoked", consortium.at("consortium", "status"))
    wait_for(lambda: "revoked" in consortium.site("south", "doctor", status=1).lower())
    assert "EF-" not in consortium.site("north", "studies")
    for state in (consortium.coordinator, *consortium.local.sites.values()):
        assert "whole" in echofed("audit", "verify", "--state", state).stdout
        assert "started" in echofed("audit", "show", "--state", state, "--last", 0).stdout
