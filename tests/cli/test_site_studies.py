"""`echofed site studies|show|approve|refuse|withdraw` and `policy check`, as a hospital runs them, over a real gateway."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from echofed.cli import site_studies
from echofed.client.approvals import approved_folder
from echofed.client.identity import load_identity
from echofed.client.policy import FILE_NAME
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.errors import (
    EchoFedError,
    NotApprovedError,
    PolicyRefusalError,
    PrivacyParameterError,
    StateFolderError,
    UnknownNameError,
)
from echofed.server.publishing import publish_study, withdraw_study
from echofed.server.studies import answers
from tests.gateways import Door, embedded_door, free_port, make_consortium
from tests.small_simulations import environment
from tests.study_files import StudyFiles, write_study_files

APP = typer.Typer()
for command in (
    site_studies.studies,
    site_studies.show,
    site_studies.approve,
    site_studies.refuse,
    site_studies.withdraw,
):
    APP.command()(command)
APP.add_typer(site_studies.policy, name="policy")
BY = ("--by", "Dr A. Martin")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a coordinator and one site, enrolled."""
    folder = tmp_path_factory.mktemp("founded")
    make_consortium(folder, "north")
    return folder


@pytest.fixture
def place(founded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fresh copy of it, the site's state being ./site."""
    shutil.copytree(founded, tmp_path / "place")
    shutil.copytree(founded / "north", tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "place"


@pytest.fixture
def door(place: Path) -> Iterator[Door]:
    with embedded_door(place, free_port()) as opened:
        yield opened


@pytest.fixture
def files(place: Path) -> StudyFiles:
    """Return a published study."""
    written = write_study_files(place / "written", title="Breast lesions")
    publish_study(place / "C", written.study_path, written.parameters_path)
    return written


def site(*arguments: object) -> Result:
    result = CliRunner().invoke(APP, [str(one) for one in arguments])
    if isinstance(result.exception, EchoFedError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def decision(place: Path, files: StudyFiles) -> str:
    return answers(place / "C", files.study.hash)["north"].decision


def test_from_publication_to_withdrawal(door: Door, place: Path, files: StudyFiles) -> None:
    prefix = files.study.hash[:8]
    listed = site("studies").stdout
    assert f"{files.study.hash[:12]}  new\n" in listed
    assert "Breast lesions" in listed
    page = site("show", prefix).stdout
    assert "Approving this study approves exactly this hash" in page
    assert "not here yet" not in page  # the parameters came over the gateway
    assert "Approved" in site("approve", prefix, *BY).stdout
    assert decision(place, files) == "approved"
    assert approved_folder(Path("site"), files.study.hash, load_identity(Path("site"))).is_dir()
    assert "approved by Dr A. Martin" in site("studies").stdout
    said = site("withdraw", prefix, *BY, "--reason", "A new law.").stdout
    assert "what has left already cannot be called back" in said
    assert "still to be sent" not in said
    assert decision(place, files) == "withdrawn"
    site("approve", prefix, *BY)
    assert decision(place, files) == "approved"
    with open_existing_log(Path("site")) as log:
        assert [entry.event for entry in log.entries()][-4:] == ["study received", "approved", "withdrawn", "approved"]
        log.verify()


def test_refusing(door: Door, place: Path, files: StudyFiles) -> None:
    site("refuse", files.study.hash, *BY, "--reason", "Not before June.")
    answer = answers(place / "C", files.study.hash)["north"]
    assert (answer.decision, answer.reason) == ("refused", "Not before June.")


def test_what_the_coordinator_takes_back(door: Door, place: Path, files: StudyFiles) -> None:
    site("approve", files.study.hash, *BY)
    withdraw_study(place / "C", files.study.hash, "A fault.")
    assert "withdrawn by the coordinator" in site("studies").stdout
    with pytest.raises(NotApprovedError, match="A fault"):
        site("approve", files.study.hash, *BY)
    with pytest.raises(NotApprovedError):
        approved_folder(Path("site"), files.study.hash, load_identity(Path("site")))


def test_without_a_server_the_hospital_still_decides(
    place: Path, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_studies, "ASK_SECONDS", 0.3)
    with embedded_door(place, free_port()):
        site("studies")
    prefix = files.study.hash[:8]
    result = site("studies")
    assert "EF-801" in result.stderr
    assert "new" in result.stdout
    said = site("approve", prefix, *BY).stdout
    assert "One answer is still to be sent" in said
    assert "Withdrawn" in site("withdraw", prefix, *BY).stdout
    assert site("show", prefix, "--offline").stderr == ""
    with embedded_door(place, free_port()):
        site("approve", prefix, *BY)
    assert decision(place, files) == "approved"


def test_what_names_no_study(place: Path, files: StudyFiles) -> None:
    with pytest.raises(UnknownNameError, match="There is no study ffffffff"):
        site("show", "ffffffff", "--offline")
    with pytest.raises(UnknownNameError, match="8 or more"):
        site("approve", "ff", *BY, "--offline")
    assert "No study has been published." in site("studies", "--offline").stdout
    with pytest.raises(StateFolderError):
        site("studies", "--state", "nowhere")


def test_what_is_held_but_damaged_is_named(door: Door, place: Path, files: StudyFiles) -> None:
    site("studies")
    folder = Path("site", "studies", files.study.hash)
    (folder / "publication.json").write_text("{")
    assert "cannot be trusted: [EF-703]" in site("studies", "--offline").stdout
    assert "  new\n" in site("studies").stdout  # fetched again


def test_the_policy_is_asked(door: Door, place: Path, files: StudyFiles) -> None:
    Path("site", FILE_NAME).write_text("allowed_models: [unet]\n")
    assert "IT DOES NOT ALLOW THE STUDY" in site("show", files.study.hash).stdout
    with pytest.raises(PolicyRefusalError, match="allowed_models: unet"):
        site("approve", files.study.hash, *BY)
    assert answers(place / "C", files.study.hash) == {}


def test_policy_check(place: Path) -> None:
    said = site("policy", "check").stdout
    assert "(not written, these are the defaults)" in said
    assert "Studies without privacy are refused." in said
    Path("site", FILE_NAME).write_text("minimum_patients: 20\nallowed_task: [binary]\n")
    with pytest.raises(PrivacyParameterError, match="line 2: allowed_task: no such field; did you mean allowed_tasks"):
        site("policy", "check")
    Path("site", FILE_NAME).write_text('hours: "20:00-06:00"\n')
    assert "Training runs at 20:00-06:00, local time" in site("policy", "check").stdout
    with pytest.raises(StateFolderError, match="There is no folder"):
        site("policy", "check", "--state", "nowhere")


def test_help_needs_nothing_heavy() -> None:
    program = "import sys, json, echofed.cli.site_studies, echofed.cli.study_publish, echofed.cli.audit\n"
    program += "print(json.dumps(sorted(set(sys.modules) & {'pydantic', 'cryptography', 'numpy', 'flwr', 'torch'})))"
    done: Any = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr
