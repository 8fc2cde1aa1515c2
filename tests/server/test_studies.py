"""The coordinator's studies: published whole, answered by their sites, taken back for good."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from echofed.client.identity_files import Identity
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.errors import (
    CertificateError,
    NotBuiltError,
    ParametersError,
    ReplayError,
    RunError,
    SignatureError,
    StateFolderError,
    StudyInvalidError,
)
from echofed.protocol.publication import Answer, Publication, Withdrawal
from echofed.protocol.signing import Signed, sign, verify
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.server.authority import load_signing_key, read_consortium
from echofed.server.members import revoke
from echofed.server.publishing import publish_signed, publish_study, sign_study, withdraw_study
from echofed.server.studies import (
    all_studies,
    answers,
    published,
    published_and_damaged,
    published_studies,
    read_control,
    read_study,
    receive_answer,
    study_folder,
    write_control,
)
from echofed.server.study_status import StudyStatus, read_status, write_status
from tests.consortia import Killed, enrolled, killed_at, make_consortium
from tests.study_files import StudyFiles, write_study_files


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Identity]]:
    """Return a folder with a consortium of two sites, and who they are."""
    folder = tmp_path_factory.mktemp("founded")
    make_consortium(folder)
    return folder / "C", {site: enrolled(folder, site) for site in ("north", "south")}


@pytest.fixture
def sites(founded: tuple[Path, dict[str, Identity]]) -> dict[str, Identity]:
    return founded[1]


@pytest.fixture
def folder(founded: tuple[Path, dict[str, Identity]], tmp_path: Path) -> Path:
    """Return a coordinator's folder, fresh."""
    return shutil.copytree(founded[0], tmp_path / "C")


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return write_study_files(tmp_path / "written")


@pytest.fixture
def study(folder: Path, files: StudyFiles) -> str:
    """Return the hash of a published study."""
    return publish_study(folder, files.study_path, files.parameters_path).hash


def events(folder: Path) -> list[str]:
    with open_existing_log(folder) as log:
        return [entry.event for entry in log.entries()]


def answer(files: StudyFiles, who: Identity, number: int = 1, decision: str = "approved", **changes: Any) -> Signed:
    fields = {
        "consortium": who.consortium,
        "site": who.site,
        "study_hash": files.study.hash,
        "parameters_sha256": files.publication().parameters_sha256,
        "number": number,
        "decision": decision,
        "reason": None,
        "person": "Dr A. Martin",
        "decided_at": "2030-01-02T03:04:05+00:00",
    }
    return sign(who.signing_key, "answer", Answer.model_validate(fields | changes))


def test_a_published_study_is_all_there(folder: Path, files: StudyFiles) -> None:
    one = publish_study(folder, files.study_path, files.parameters_path)
    assert (one.hash, one.study, one.withdrawal) == (files.study.hash, files.study, None)
    assert one.folder == study_folder(folder, one.hash)
    assert (one.folder / STUDY_FILE).read_bytes() == files.study_path.read_bytes()
    assert read_study_folder(one.folder)[0] == files.study
    name = one.publication.parameters_sha256
    assert (folder / "blobs" / "published" / name).read_bytes() == files.parameters_path.read_bytes()
    consortium = read_consortium(folder)
    shown = verify(published(folder)[0], consortium.signing_key, "publication", Publication)
    assert shown == one.publication
    assert (shown.consortium, shown.parameters_bytes) == (consortium.id, files.parameters_path.stat().st_size)
    assert all_studies(folder) == published_studies(folder) == [one.hash]
    assert read_control(folder, one.hash).state == "ready"
    assert events(folder)[-1] == "published"


def test_publishing_again_changes_nothing(folder: Path, files: StudyFiles, study: str) -> None:
    before = (study_folder(folder, study) / "publication.json").read_bytes()
    write_control(folder, study, "running")
    publish_study(folder, files.study_path, files.parameters_path)
    assert (study_folder(folder, study) / "publication.json").read_bytes() == before
    assert read_control(folder, study).state == "running"
    assert events(folder).count("published") == 1
    shutil.rmtree(folder / "blobs" / "published")  # and puts back what is missing
    publish_study(folder, files.study_path, files.parameters_path)
    assert len(list((folder / "blobs" / "published").iterdir())) == 1


def test_a_study_signed_elsewhere(folder: Path, files: StudyFiles) -> None:
    consortium = read_consortium(folder)
    signed = sign_study(files.study_path, files.parameters_path, load_signing_key(folder), consortium.id)
    assert all_studies(folder) == []
    assert publish_signed(folder, signed, files.parameters_path).hash == files.study.hash


@pytest.mark.parametrize("case", ["another key", "another consortium", "changed", "not a publication"])
def test_what_the_coordinator_did_not_sign(folder: Path, files: StudyFiles, case: str) -> None:
    key, consortium = load_signing_key(folder), read_consortium(folder).id
    signed = {
        "another key": files.signed(Ed25519PrivateKey.generate(), consortium=consortium),
        "another consortium": files.signed(key),
        "changed": files.signed(key, consortium=consortium).model_copy(update={"payload": "{}"}),
        "not a publication": sign(key, "instruction", files.publication(consortium=consortium)),
    }[case]
    with pytest.raises(SignatureError):
        publish_signed(folder, signed, files.parameters_path)
    assert all_studies(folder) == []
    assert "published" not in events(folder)


def test_what_cannot_be_published(folder: Path, files: StudyFiles, tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    lines = files.study_path.read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if "initial_parameters" not in line))
    with pytest.raises(StudyInvalidError, match="names no initial parameters"):
        publish_study(folder, bare, files.parameters_path)
    with pytest.raises(ParametersError, match="are not at"):
        publish_study(folder, files.study_path, tmp_path / "missing")
    other = write_study_files(tmp_path / "other")
    other.parameters_path.write_bytes(other.parameters_path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ParametersError, match="is not the file the study names"):
        publish_study(folder, files.study_path, other.parameters_path)
    secure = write_study_files(tmp_path / "secure", secure_aggregation={"mode": "required"})
    with pytest.raises(NotBuiltError):
        publish_study(folder, secure.study_path, secure.parameters_path)
    assert all_studies(folder) == []


def test_publishing_is_whole_or_not_at_all(folder: Path, files: StudyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 40):
        shutil.rmtree(folder / "studies", ignore_errors=True)
        shutil.rmtree(folder / "blobs", ignore_errors=True)
        (folder / "blobs").mkdir()
        try:
            with killed_at(step, monkeypatch) as count:
                publish_study(folder, files.study_path, files.parameters_path)
        except Killed:
            pass
        for one in all_studies(folder):  # whatever is seen is sound
            assert read_study(folder, one).study == files.study
            assert (study_folder(folder, one) / PARAMETERS_FILE).read_bytes() == files.parameters_path.read_bytes()
        publish_study(folder, files.study_path, files.parameters_path)
        assert published_studies(folder) == [files.study.hash]
        assert [path.name for path in (folder / "blobs" / "published").iterdir() if path.suffix != ".part"] == [
            files.publication().parameters_sha256
        ]
        if count[0] < step:
            return
    raise AssertionError("publishing never ended")


def test_a_study_taken_back(folder: Path, files: StudyFiles, study: str) -> None:
    write_control(folder, study, "running")
    signed = withdraw_study(folder, study, "A fault in the labels.")
    assert withdraw_study(folder, study, "Once more.") == signed
    key = read_consortium(folder).signing_key
    said = verify(published(folder)[0], key, "withdrawn publication", Withdrawal)
    assert (said.study_hash, said.reason) == (study, "A fault in the labels.")
    assert (all_studies(folder), published_studies(folder)) == ([study], [])
    assert read_control(folder, study).state == "stopped"
    withdrawal = read_study(folder, study).withdrawal
    assert withdrawal is not None
    assert withdrawal[0] == said
    with pytest.raises(RunError, match="was taken back; it cannot be published again"):
        publish_study(folder, files.study_path, files.parameters_path)
    with pytest.raises(RunError, match="taken back"):
        write_control(folder, study, "running")
    assert events(folder).count("withdrawn publication") == 1


@pytest.mark.parametrize("reason", ["", "a\nb", "\x1b[2J", "x" * 2001])
def test_a_reason_that_cannot_be_signed(folder: Path, study: str, reason: str) -> None:
    with pytest.raises(RunError, match="cannot be signed"):
        withdraw_study(folder, study, reason)
    assert published_studies(folder) == [study]


def test_taking_back_is_whole_or_not_at_all(folder: Path, study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_control(folder, study, "running")
    for step in range(1, 20):
        try:
            with killed_at(step, monkeypatch) as count:
                withdraw_study(folder, study, "A fault.")
        except Killed:
            assert len(published(folder)) == 1
            continue
        assert read_control(folder, study).state == "stopped"
        assert published_studies(folder) == []
        assert step > 1
        assert count[0] < step
        return
    raise AssertionError("taking back never ended")


@pytest.mark.parametrize("name", ["publication.json", "withdrawal.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 3 * 2**20, b"another"])
def test_a_damaged_study_is_left_out_and_holds_up_no_other(
    folder: Path, study: str, tmp_path: Path, name: str, content: bytes
) -> None:
    whole = write_study_files(tmp_path / "whole", title="Whole")
    publish_study(folder, whole.study_path, whole.parameters_path)
    other = (study_folder(folder, whole.study.hash) / "publication.json").read_bytes()
    path = study_folder(folder, study) / name
    path.write_bytes(other if content == b"another" else content)
    signed, damaged = published_and_damaged(folder)
    key = read_consortium(folder).signing_key
    assert [verify(one, key, "publication", Publication).study_hash for one in signed] == [whole.study.hash]
    assert published(folder) == signed
    assert list(damaged) == [study]
    assert str(path) in damaged[study].what
    path.unlink()
    assert published_and_damaged(folder)[1].keys() == ({study} if name == "publication.json" else set())


@pytest.mark.parametrize("name", [STUDY_FILE, "publication.json", "withdrawal.json"])
def test_a_changed_file_is_noticed(folder: Path, study: str, name: str) -> None:
    withdraw_study(folder, study, "A fault.")
    path = study_folder(folder, study) / name
    content = path.read_bytes()
    for damaged in (b"", content[:-20], content.replace(b"study", b"Study", 1), b"x" * 3 * 2**20):
        path.write_bytes(damaged)
        with pytest.raises((SignatureError, StateFolderError)):
            read_study(folder, study)
    path.write_bytes(content)
    read_study(folder, study)


def test_a_withdrawal_of_another_study_does_not_count(folder: Path, study: str, tmp_path: Path) -> None:
    other = write_study_files(tmp_path / "other", "other")
    other_hash = publish_study(folder, other.study_path, other.parameters_path).hash
    withdraw_study(folder, other_hash, "A fault.")
    shutil.copy(study_folder(folder, other_hash) / "withdrawal.json", study_folder(folder, study))
    with pytest.raises(SignatureError, match="is for another study"):
        read_study(folder, study)


@pytest.mark.parametrize("name", ["", "..", "../..", "f" * 64, "F" * 64, "x"])
def test_what_is_no_study(folder: Path, name: str) -> None:
    for action in (study_folder, read_study, answers, read_control):
        with pytest.raises(RunError, match="no such study"):
            action(folder, name)


def test_answers_are_kept(folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]) -> None:
    assert answers(folder, study) == {}
    receive_answer(folder, "north", answer(files, sites["north"]))
    receive_answer(folder, "south", answer(files, sites["south"], decision="refused", reason="No."))
    said = answers(folder, study)
    assert {site: one.decision for site, one in said.items()} == {"north": "approved", "south": "refused"}
    receive_answer(folder, "north", answer(files, sites["north"], 2, "withdrawn"))
    assert answers(folder, study)["north"].decision == "withdrawn"
    receive_answer(folder, "north", answer(files, sites["north"], 3))
    receive_answer(folder, "north", answer(files, sites["north"], 3))  # sent again
    assert answers(folder, study)["north"].number == 3
    assert events(folder).count("answer received") == 4


def test_an_old_approval_cannot_be_brought_back(
    folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]
) -> None:
    first = answer(files, sites["north"])
    receive_answer(folder, "north", first)
    receive_answer(folder, "north", answer(files, sites["north"], 2, "withdrawn"))
    with pytest.raises(ReplayError, match="has answered since"):
        receive_answer(folder, "north", first)
    with pytest.raises(ReplayError):
        receive_answer(folder, "north", answer(files, sites["north"], 2))
    assert answers(folder, study)["north"].decision == "withdrawn"


def test_a_withdrawal_is_heeded_whatever_its_number(
    folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]
) -> None:
    receive_answer(folder, "north", answer(files, sites["north"], 5))
    receive_answer(folder, "north", answer(files, sites["north"], 2, "withdrawn"))  # its state came from an old copy
    assert answers(folder, study)["north"].decision == "withdrawn"


def test_answers_that_are_not_the_sites(
    folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]
) -> None:
    north, south = sites["north"], sites["south"]
    for signed in (
        answer(files, south),
        answer(files, north, site="south"),
        answer(files, north, consortium="d" * 64),
        answer(files, north, parameters_sha256="d" * 64),
        sign(north.signing_key, "reply", files.publication()),
    ):
        with pytest.raises(SignatureError):
            receive_answer(folder, "north", signed)
    with pytest.raises(RunError, match="no such study"):
        receive_answer(folder, "north", answer(files, north, study_hash="f" * 64))
    assert answers(folder, study) == {}
    assert "answer received" not in events(folder)


def test_an_answer_changed_on_disk_does_not_count(
    folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]
) -> None:
    receive_answer(folder, "north", answer(files, sites["north"]))
    assert answers(folder, study)["north"].decision == "approved"
    place = study_folder(folder, study) / "answers"
    (place / "south.json").write_bytes((place / "north.json").read_bytes())
    assert list(answers(folder, study)) == ["north"]
    (place / "north.json").write_text("{}")
    assert answers(folder, study) == {}


def test_a_revoked_sites_answer_does_not_count(
    folder: Path, files: StudyFiles, study: str, sites: dict[str, Identity]
) -> None:
    receive_answer(folder, "north", answer(files, sites["north"]))
    assert set(answers(folder, study)) == {"north"}
    revoke(folder, "north", "Left.")
    assert answers(folder, study) == {}
    with pytest.raises(CertificateError):
        receive_answer(folder, "north", answer(files, sites["north"], 2))


def test_what_is_wanted_of_a_run(folder: Path, study: str) -> None:
    with pytest.raises(RunError, match="does not run"):
        write_control(folder, study, "paused")
    assert write_control(folder, study, "running", rounds=1).rounds == 1
    write_control(folder, study, "paused")
    write_control(folder, study, "running")
    assert read_control(folder, study).rounds == 1
    write_control(folder, study, "finished")
    assert write_control(folder, study, "running", rounds=2) == read_control(folder, study)
    with pytest.raises(RunError, match="asked for 2 rounds, not for 3"):
        write_control(folder, study, rounds=3)
    logged = len(events(folder))
    write_control(folder, study, "running")  # as it is
    assert len(events(folder)) == logged
    write_control(folder, study, "stopped")
    with pytest.raises(RunError, match="stopped for good"):
        write_control(folder, study, "running")
    assert read_control(folder, study).state == "stopped"


@pytest.mark.parametrize("damage", ["", "{", '{"state": "flying"}', '{"more": 1}'])
def test_a_damaged_control_file_stops_everything(folder: Path, study: str, damage: str) -> None:
    (study_folder(folder, study) / "control.json").write_text(damage)
    with pytest.raises(StateFolderError, match="says what is wanted"):
        read_control(folder, study)
    with pytest.raises(StateFolderError):
        write_control(folder, study, "running")


def test_how_a_run_fares(folder: Path, study: str) -> None:
    place = study_folder(folder, study)
    assert read_status(place) is None
    status = StudyStatus(state="running", round_number=1, rounds=2, updated_at="2030-01-02T03:04:05+00:00")
    write_status(place, status)
    assert read_status(place) == status
    (place / "status.json").write_text("{}")
    with pytest.raises(StateFolderError, match="is damaged"):
        read_status(place)
