"""What a hospital fetches of published studies: no more than its policy lets in and its disk has room for."""

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echofed.client import studies_sync
from echofed.client.approvals import approve, refuse
from echofed.client.held_studies import read_held_study
from echofed.client.policy import FILE_NAME
from echofed.client.studies_sync import fetch_studies
from echofed.protocol.audit_log import AuditLog, open_audit_log
from echofed.protocol.errors import EchoFedError, PolicyRefusalError, PrivacyParameterError, TooLargeError
from echofed.protocol.signing import Signed
from tests.study_files import Hospital, StudyFiles, write_study_files

NORTH = Hospital()
Usage = namedtuple("Usage", ["total", "used", "free"])


class Published:
    """A coordinator's server that has published some studies; notes which parameters were fetched."""

    def __init__(self) -> None:
        self.signed: list[Signed] = []
        self.paths: dict[str, Path] = {}
        self.fetched: list[str] = []

    def add(self, files: StudyFiles, **changes: Any) -> None:
        publication = files.publication()
        self.signed.append(files.signed(**changes))
        self.paths[publication.parameters_sha256] = files.parameters_path

    def get_studies(self, *, deadline_seconds: float) -> list[Signed]:
        return self.signed

    def get_blob(self, name: str, path: Path, max_bytes: int) -> None:
        self.fetched.append(path.parent.name)
        shutil.copy(self.paths[name], path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def log(state: Path) -> Iterator[AuditLog]:
    with open_audit_log(state, owner="north") as opened:
        yield opened


@pytest.fixture
def studies(tmp_path: Path) -> list[StudyFiles]:
    """Return three studies; the parameters of each have a little more than a hundred bytes."""
    return [write_study_files(tmp_path / name, name) for name in ("first", "second", "third")]


def fetch(state: Path, log: AuditLog, server: Published) -> list[EchoFedError]:
    return fetch_studies(state, NORTH, log, server)  # type: ignore[arg-type]


def refusals(log: AuditLog) -> list[str]:
    return [str(entry.facts["code"]) for entry in log.entries() if entry.event == "refused request"]


def test_what_is_larger_than_the_policy_allows_is_not_fetched(
    state: Path, log: AuditLog, studies: list[StudyFiles]
) -> None:
    server = Published()
    server.add(studies[0], parameters_bytes=3 * 2**20)
    server.add(studies[1])
    (state / FILE_NAME).write_text("maximum_message_mb: 2\n")
    for _ in range(3):
        (error,) = fetch(state, log, server)
        assert isinstance(error, PolicyRefusalError)
        assert "(3.0 MiB) are larger than maximum_message_mb allows: 2." in error.what
    assert server.fetched == [studies[1].study.hash]
    assert refusals(log) == ["EF-706"]
    assert read_held_study(state, studies[0].study.hash, NORTH).state == "new"  # to be seen, and refused
    (state / FILE_NAME).write_text("maximum_message_mb: 4\n")
    assert fetch(state, log, server) == []
    assert server.fetched == [studies[1].study.hash, studies[0].study.hash]


def test_studies_nobody_approved_share_a_bounded_room(
    state: Path, log: AuditLog, studies: list[StudyFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = studies[0].parameters_path.stat().st_size
    monkeypatch.setattr(studies_sync, "UNAPPROVED_BYTES", size * 3 // 2)
    (state / FILE_NAME).write_text("maximum_message_mb: 0.00015\n")  # 157 bytes
    server = Published()
    for files in studies:
        server.add(files)
    first, second = fetch(state, log, server)
    assert isinstance(first, TooLargeError)
    assert "one file too many of studies nobody here has approved" in second.what
    assert len(server.fetched) == 1
    approve(state, server.fetched[0], "Dr A. Martin", member=NORTH, log=log)
    assert len(fetch(state, log, server)) == 1
    refuse(state, server.fetched[1], "Dr A. Martin", "No.", member=NORTH, log=log)
    assert len(fetch(state, log, server)) == 1
    assert len(server.fetched) == 2
    (state / "studies" / server.fetched[1] / "initial.safetensors").unlink()
    assert len(fetch(state, log, server)) == 1  # what is new comes first
    assert len(set(server.fetched)) == 3
    assert refusals(log) == ["EF-805", "EF-805"]  # each study once


def test_a_full_disk_stays_as_it_is(
    state: Path, log: AuditLog, studies: list[StudyFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, size = Published(), studies[0].parameters_path.stat().st_size
    server.add(studies[0])
    monkeypatch.setattr(studies_sync.shutil, "disk_usage", lambda _: Usage(0, 0, 2**30 + size - 1))
    (error,) = fetch(state, log, server)
    assert "the hospital's disk is nearly full" in error.what
    monkeypatch.setattr(studies_sync.shutil, "disk_usage", lambda _: Usage(0, 0, 2**30 + size))
    assert fetch(state, log, server) == []
    assert server.fetched == [studies[0].study.hash]


def test_a_policy_that_cannot_be_read_lets_nothing_in(state: Path, log: AuditLog, studies: list[StudyFiles]) -> None:
    server = Published()
    server.add(studies[0])
    (state / FILE_NAME).write_text("maximum_message_mb: much\n")
    (error,) = fetch(state, log, server)
    assert isinstance(error, PrivacyParameterError)
    assert server.fetched == []
