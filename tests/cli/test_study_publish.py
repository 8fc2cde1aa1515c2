"""`echofed study sign|publish|withdraw|run|...`, as a coordinator runs them."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from echofed.cli import consortium, study_publish
from echofed.client.identity_files import Identity
from echofed.protocol.errors import (
    EchoFedError,
    ParametersError,
    RunError,
    SignatureError,
    StateFolderError,
    UnknownNameError,
)
from echofed.protocol.publication import Answer
from echofed.protocol.signing import key_id, sign
from echofed.server.history import Round, SiteRound, append_round
from echofed.server.site_heads import HEADS_FILE
from echofed.server.studies import published_studies, read_control, receive_answer, study_folder, write_control
from echofed.server.study_status import StudyStatus, Waiting, write_status
from tests.consortia import enrolled, make_consortium
from tests.study_files import StudyFiles, write_study_files

APP = typer.Typer()
for name in ("sign", "publish", "withdraw", "run", "pause", "resume", "stop", "extend", "status", "log"):
    APP.command(name)(getattr(study_publish, name))
STATE = Path("consortium")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Identity]:
    folder = tmp_path_factory.mktemp("founded")
    make_consortium(folder)
    return folder / "C", enrolled(folder)


@pytest.fixture
def files(founded: tuple[Path, Identity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFiles:
    """Return a study that is not yet published; the coordinator's folder is ./consortium."""
    shutil.copytree(founded[0], tmp_path / STATE)
    monkeypatch.chdir(tmp_path)
    return write_study_files(tmp_path, title="Breast lesions")


@pytest.fixture
def study(files: StudyFiles) -> str:
    """Return the first digits of a published study's hash."""
    run("publish", files.study_path)
    return files.study.hash[:8]


def run(*arguments: object) -> str:
    result: Result = CliRunner().invoke(APP, [str(one) for one in arguments])
    if isinstance(result.exception, EchoFedError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def answer(who: Identity, files: StudyFiles, decision: str) -> None:
    """Have north answer a study."""
    fields = {
        "consortium": who.consortium,
        "site": "north",
        "study_hash": files.study.hash,
        "parameters_sha256": files.publication().parameters_sha256,
        "number": 1,
        "decision": decision,
        "reason": "Not now.",
        "person": "Dr A. Martin",
        "decided_at": "2030-01-02T03:04:05+00:00",
    }
    receive_answer(STATE, "north", sign(who.signing_key, "answer", Answer.model_validate(fields)))


def test_publish(files: StudyFiles) -> None:
    said = run("publish", "study.yaml")
    assert f"Published Breast lesions\n  {files.study.hash}" in said
    assert f"echofed study run {files.study.hash[:12]}" in said
    assert published_studies(STATE) == [files.study.hash]
    assert run("publish", "study.yaml") == said


def test_sign_then_publish(files: StudyFiles) -> None:
    assert "Wrote study.signed.json" in run("sign", "study.yaml")
    assert published_studies(STATE) == []
    assert files.study.hash in run("publish", "study.signed.json")
    changed = Path("study.signed.json").read_text().replace("Breast", "Chest")
    Path("other.signed.json").write_text(changed)
    with pytest.raises(SignatureError):
        run("publish", "other.signed.json", "--parameters", "study.safetensors")


def test_what_cannot_be_published(files: StudyFiles) -> None:
    with pytest.raises(ParametersError, match="are not at missing"):
        run("publish", "study.yaml", "--parameters", "missing")
    with pytest.raises(StateFolderError, match="holds no consortium"):
        run("publish", "study.yaml", "--state", "nowhere")


def test_a_run_is_steered(study: str, files: StudyFiles) -> None:
    whole = files.study.hash
    with pytest.raises(RunError, match="does not run"):
        run("pause", study)
    run("run", study, "--rounds", 1)
    assert (read_control(STATE, whole).state, read_control(STATE, whole).rounds) == ("running", 1)
    run("pause", study)
    run("extend", study, "--rounds", 2)
    assert (read_control(STATE, whole).state, read_control(STATE, whole).rounds) == ("paused", 2)
    run("resume", study)
    assert read_control(STATE, whole).state == "running"
    with pytest.raises(RunError, match="asked for 2 rounds, not for 3"):
        run("extend", study, "--rounds", 3)
    run("stop", study)
    assert read_control(STATE, whole).state == "stopped"
    with pytest.raises(RunError, match="stopped for good"):
        run("run", study)


def test_withdraw(study: str, files: StudyFiles) -> None:
    run("run", study)
    run("withdraw", study, "--reason", "A fault.")
    assert published_studies(STATE) == []
    assert "TAKEN BACK" in run("status", study)
    with pytest.raises(RunError, match="taken back"):
        run("run", study)
    with pytest.raises(RunError, match="taken back"):
        run("publish", "study.yaml")


def test_status(founded: tuple[Path, Identity], files: StudyFiles) -> None:
    assert run("status") == "No study has been published.\n"
    run("publish", "study.yaml")
    assert "wanted   ready, up to round 2\n  run      not begun" in run("status")
    answer(founded[1], files, "refused")
    write_status(
        study_folder(STATE, files.study.hash),
        StudyStatus(
            state="waiting",
            round_number=1,
            rounds=2,
            offline=("south", "west"),
            waiting=Waiting(sites=("north",), since="2030-01-02T03:00:05+00:00", until="2030-01-02T03:10:05+00:00"),
            error="[EF-603] Too few.",
            updated_at="2030-01-02T03:04:05+00:00",
        ),
    )
    said = run("status", files.study.hash[:8])
    assert "run      waiting, round 1 of 2 (2030-01-02T03:04:05+00:00)" in said
    assert "waits    for north, since 2030-01-02T03:00:05+00:00, until 2030-01-02T03:10:05+00:00\n" in said
    assert "offline  south, west" in said
    assert "because  [EF-603] Too few." in said
    assert "north                 refused by Dr A. Martin, 2030-01-02T03:04:05+00:00: Not now." in said


def test_status_shows_the_others_beside_a_damaged_study(study: str, files: StudyFiles, tmp_path: Path) -> None:
    other = write_study_files(tmp_path / "other", title="Another")
    run("publish", other.study_path)
    path = study_folder(STATE, files.study.hash) / "publication.json"
    path.write_bytes(b"damaged")
    said = run("status")
    assert f"{files.study.hash[:12]}  DAMAGED\n  because  [EF-703] {path} is not what was signed there." in said
    assert "Restore it from a copy" in said
    assert f"{other.study.hash[:12]}  Another\n  wanted   ready" in said
    with pytest.raises(SignatureError):
        run("status", study)


@pytest.mark.parametrize(("south", "warns"), [(100, False), (99, True), (1, True), (None, False)])
def test_status_shows_how_many_patients_sites_claim_and_who_outweighs_the_others(
    founded: tuple[Path, Identity], study: str, files: StudyFiles, south: int | None, warns: bool
) -> None:
    answer(founded[1], files, "approved")
    sites = {"north": SiteRound(trained=True, patients=100), "south": SiteRound(trained=True, patients=south)}
    place = study_folder(STATE, files.study.hash)
    record = {"round_number": 1, "attempts": 1, "seconds": 1.0, "bytes_down": 0, "bytes_up": 0, "refused": {}}
    append_round(place, Round(**record, sites=sites, validation_loss=None, validation_metric=None))
    at = "2030-01-02T03:04:05+00:00"
    write_status(place, StudyStatus(state="running", round_number=1, rounds=2, updated_at=at))
    said = run("status", study)
    assert f"north                 approved by Dr A. Martin, {at}: Not now.; says 100 training patients\n" in said
    assert ("WARNING  north says it has" in said) == warns


def test_status_names_a_site_with_two_histories(founded: tuple[Path, Identity], study: str, files: StudyFiles) -> None:
    answer(founded[1], files, "approved")
    known = {
        "signer": key_id(founded[1].signing_key.public_key()),
        "heads": {"log": {"log_id": "1" * 32, "entries": 3, "hash": "2" * 64}, "ledger": None},
        "forked_at": "2030-01-02T03:04:05+00:00",
    }
    (STATE / HEADS_FILE).write_text(json.dumps({"north": known}))
    warning = "two machines use its identity, or its state folder was put back to a copy; noticed 2030-01-02T03:04:05"
    assert f"WARNING  north: {warning}" in run("status", study)
    members = CliRunner().invoke(consortium.app, ["status"]).stdout
    assert f"Warning: north: {warning}" in members
    (STATE / HEADS_FILE).write_text(json.dumps({"north": {**known, "signer": "0" * 64}}))  # before it was enrolled anew
    assert "WARNING" not in run("status", study)


def test_a_run_that_was_to_stop_early_says_how_to_go_on(study: str, files: StudyFiles) -> None:
    run("run", study, "--rounds", 1)
    place = study_folder(STATE, files.study.hash)
    at = "2030-01-02T03:04:05+00:00"
    write_status(place, StudyStatus(state="finished", round_number=1, rounds=1, updated_at=at))
    said = f"run      stopped after round 1 of 2; go on: echofed study extend {files.study.hash[:12]} ({at})"
    assert said in run("status", study)
    write_control(STATE, files.study.hash, "finished", rounds=2)
    write_status(place, StudyStatus(state="finished", round_number=2, rounds=2, updated_at=at))
    assert f"run      finished, round 2 of 2 ({at})" in run("status", study)


def test_text_of_others_cannot_steer_the_terminal(study: str, files: StudyFiles) -> None:
    place, at = study_folder(STATE, files.study.hash), "2030-01-02T03:04:05+00:00"
    write_status(
        place,
        StudyStatus(state="waiting", round_number=1, rounds=2, error="A\x1b[2J\n  run  \u202efinished", updated_at=at),
    )
    assert "  because  A?[2J?  run  ?finished\n" in run("status", study)
    record = Round(
        round_number=1,
        attempts=1,
        seconds=1.0,
        bytes_down=0,
        bytes_up=0,
        sites={},
        refused={"west": "[EF-406] A\x1b[2J\nnorth: \u202eok"},
        validation_loss=None,
        validation_metric=None,
    )
    append_round(place, record)
    assert run("log", study).endswith("west: [EF-406] A?[2J?north: ?ok\n")


def test_log(study: str, files: StudyFiles) -> None:
    assert run("log", study) == "No round has been published yet.\n"
    place = study_folder(STATE, files.study.hash)
    record = Round(
        round_number=1,
        attempts=2,
        seconds=3.25,
        bytes_down=10,
        bytes_up=10,
        sites={"north": SiteRound(trained=True), "south": SiteRound()},
        refused={"west": "EF-406"},
        validation_loss=0.5,
        validation_metric=0.75,
    )
    append_round(place, record)
    status = StudyStatus(state="running", round_number=1, rounds=2, updated_at="2030-01-02T03:04:05+00:00")
    write_status(place, status)
    assert run("log", study).split() == [
        "1",
        "3.2",
        "s",
        "(2",
        "attempts)",
        "metric",
        "0.7500",
        "north",
        "west:",
        "EF-406",
    ]


def test_what_names_no_study(study: str, tmp_path: Path) -> None:
    other = write_study_files(tmp_path / "other", title="Another")
    run("publish", other.study_path)
    with pytest.raises(UnknownNameError, match=f"Write one of: .*{study}"):
        run("status", "ffffffff")
    for wrong in ("", "f", study[:7], "xyzxyzxyz"):
        with pytest.raises(UnknownNameError, match="8 or more"):
            run("run", wrong)
    with pytest.raises(StateFolderError):
        run("status", "--state", "nowhere")
