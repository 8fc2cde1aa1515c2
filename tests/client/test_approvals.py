"""Approvals: only what a named person approved, byte for byte, can run, and only until someone takes it back."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import echofed.client.held_studies as held_module
from echofed.client.approvals import (
    Received,
    approve,
    approved_folder,
    mark_sent,
    receive,
    refuse,
    unsent_answers,
    withdraw,
)
from echofed.client.held_studies import damaged_studies, fetch_parameters, held_studies, read_held_study, study_hashes
from echofed.client.policy import FILE_NAME
from echofed.protocol.audit_log import AuditLog, open_audit_log
from echofed.protocol.errors import (
    EchoFedError,
    NotApprovedError,
    NotBuiltError,
    PolicyRefusalError,
    SignatureError,
    StateFolderError,
    StudyVersionError,
)
from echofed.protocol.publication import Answer, Withdrawal
from echofed.protocol.signing import Signed, digest, read_signed, sign, verify
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE
from tests.consortia import Killed, killed_at
from tests.study_files import CONSORTIUM, COORDINATOR, Hospital, StudyFiles, write_study_files

DOCTOR = "Dr A. Martin"
NORTH = Hospital()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def log(state: Path) -> Iterator[AuditLog]:
    with open_audit_log(state, owner="north") as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return write_study_files(tmp_path / "offered")


@pytest.fixture
def held(state: Path, log: AuditLog, files: StudyFiles) -> StudyFiles:
    """Return a study the hospital holds with its parameters, unanswered."""
    take(state, log, files)
    return files


def take(state: Path, log: AuditLog, files: StudyFiles, **changes: Any) -> Received:
    received = receive(state, [files.signed(**changes)], member=NORTH, log=log)
    for study in received.new:
        shutil.copy(files.parameters_path, state / "studies" / study / PARAMETERS_FILE)
    return received


def yes(state: Path, log: AuditLog, files: StudyFiles, person: str = DOCTOR, **more: Any) -> Signed:
    return approve(state, files.study.hash, person, member=NORTH, log=log, **more)


def no_more(state: Path, log: AuditLog, files: StudyFiles) -> Signed:
    return withdraw(state, files.study.hash, "Dr B. Petit", "Changed our mind.", member=NORTH, log=log)


def taken_back(files: StudyFiles, key: Ed25519PrivateKey = COORDINATOR, **changes: Any) -> Signed:
    fields = {
        "consortium": CONSORTIUM,
        "study_hash": files.study.hash,
        "withdrawn_at": "2030-02-02T00:00:00+00:00",
        "reason": "A fault.",
    }
    return sign(key, "withdrawn publication", Withdrawal.model_validate(fields | changes))


def state_of(state: Path, files: StudyFiles) -> str:
    return read_held_study(state, files.study.hash, NORTH).state


def events(log: AuditLog) -> list[str]:
    return [entry.event for entry in log.entries()]


def may_not_run(state: Path, files: StudyFiles, error: type[EchoFedError] = NotApprovedError, words: str = "") -> None:
    with pytest.raises(error, match=words):
        approved_folder(state, files.study.hash, NORTH)


def test_from_publication_to_approval(state: Path, log: AuditLog, files: StudyFiles) -> None:
    may_not_run(state, files, words="holds no study")
    assert take(state, log, files).new == [files.study.hash]
    (one,) = held_studies(state, NORTH)
    assert (one.hash, one.study, one.state) == (files.study.hash, files.study, "new")
    assert (one.folder / STUDY_FILE).read_text() == files.study_path.read_text()
    may_not_run(state, files, words="has not been approved at north")
    signed = yes(state, log, files, reason="The board agreed.")
    answer = verify(signed, NORTH.signing_key.public_key(), "answer", Answer)
    assert (answer.site, answer.consortium, answer.study_hash) == ("north", CONSORTIUM, files.study.hash)
    assert (answer.decision, answer.person, answer.reason, answer.number) == (
        "approved",
        DOCTOR,
        "The board agreed.",
        1,
    )
    assert answer.parameters_sha256 == files.publication().parameters_sha256
    assert approved_folder(state, files.study.hash, NORTH) == one.folder
    assert events(log) == ["study received", "approved"]
    entry = list(log.entries())[-1]
    assert (entry.facts["person"], entry.facts["digest"]) == (DOCTOR, digest(signed))


def test_every_answer_is_kept(state: Path, log: AuditLog, held: StudyFiles) -> None:
    answers = [
        refuse(state, held.study.hash, DOCTOR, "Not now.", member=NORTH, log=log),
        yes(state, log, held),
        no_more(state, log, held),
        yes(state, log, held, "Dr C. Roux"),
    ]
    folder = state / "studies" / held.study.hash / "answers"
    assert [read_signed((folder / f"{number:04d}.json").read_bytes()) for number in range(1, 5)] == answers
    assert events(log)[1:] == ["refused", "approved", "withdrawn", "approved"]
    assert [answer.person for answer in read_held_study(state, held.study.hash, NORTH).answers][-1] == "Dr C. Roux"
    assert approved_folder(state, held.study.hash, NORTH) == folder.parent
    log.verify()


def test_a_withdrawal_counts_at_once(state: Path, log: AuditLog, held: StudyFiles) -> None:
    yes(state, log, held)
    approved_folder(state, held.study.hash, NORTH)
    no_more(state, log, held)
    may_not_run(state, held, words="was withdrawn at north")
    with pytest.raises(NotApprovedError, match="is not approved"):
        no_more(state, log, held)
    yes(state, log, held)
    approved_folder(state, held.study.hash, NORTH)


def test_what_does_not_follow(state: Path, log: AuditLog, held: StudyFiles) -> None:
    with pytest.raises(NotApprovedError, match="is not approved"):
        no_more(state, log, held)
    yes(state, log, held)
    with pytest.raises(NotApprovedError, match="is approved") as raised:
        refuse(state, held.study.hash, DOCTOR, "No.", member=NORTH, log=log)
    assert "withdraw" in raised.value.remedy
    for study in ("f" * 64, "", "../../etc", held.study.hash[:12], "F" * 64):
        with pytest.raises(NotApprovedError):
            approve(state, study, DOCTOR, member=NORTH, log=log)
        with pytest.raises(NotApprovedError):
            approved_folder(state, study, NORTH)
    assert events(log) == ["study received", "approved"]


@pytest.mark.parametrize("person", ["", " ", "x", "Dr\x1b[2J", "Dr A\nDr B", "\u2028ab", "x" * 201])
def test_a_person_without_a_name_cannot_answer(state: Path, log: AuditLog, held: StudyFiles, person: str) -> None:
    with pytest.raises(NotApprovedError, match="The person cannot be signed") as raised:
        yes(state, log, held, person)
    assert "\x1b" not in str(raised.value)
    assert state_of(state, held) == "new"
    assert events(log) == ["study received"]


@pytest.mark.parametrize("reason", ["", "a\nb", "a\x07", "x" * 2001])
def test_a_reason_is_one_printable_line(state: Path, log: AuditLog, held: StudyFiles, reason: str) -> None:
    with pytest.raises(NotApprovedError, match="The reason cannot be signed"):
        refuse(state, held.study.hash, DOCTOR, reason, member=NORTH, log=log)
    assert state_of(state, held) == "new"


def test_the_policy_is_asked(state: Path, log: AuditLog, held: StudyFiles) -> None:
    (state / FILE_NAME).write_text("epsilon_per_study: 2\n")
    with pytest.raises(PolicyRefusalError, match="epsilon_per_study: 2"):
        yes(state, log, held)
    assert state_of(state, held) == "new"
    (state / FILE_NAME).write_text("maximum_message_mb: 0.00001\n")
    with pytest.raises(PolicyRefusalError, match="maximum_message_mb"):
        yes(state, log, held)
    (state / FILE_NAME).write_text("hours: 20:00-20:01\n")  # of runs, not of approvals
    yes(state, log, held)


def test_a_study_this_version_cannot_run_is_not_approved(state: Path, log: AuditLog, tmp_path: Path) -> None:
    secure = write_study_files(tmp_path / "secure", secure_aggregation={"mode": "required"})
    take(state, log, secure)
    with pytest.raises(NotBuiltError):
        yes(state, log, secure)
    assert state_of(state, secure) == "new"


def test_a_study_without_its_parameters_is_not_approved(state: Path, log: AuditLog, held: StudyFiles) -> None:
    path = state / "studies" / held.study.hash / PARAMETERS_FILE
    path.unlink()
    with pytest.raises(NotApprovedError, match="are not here yet"):
        yes(state, log, held)
    path.write_bytes(b"others")
    with pytest.raises(NotApprovedError, match="is not the file"):
        yes(state, log, held)
    assert state_of(state, held) == "new"


def test_parameters_are_fetched_and_checked(state: Path, log: AuditLog, held: StudyFiles) -> None:
    path = state / "studies" / held.study.hash / PARAMETERS_FILE
    path.unlink()
    one = read_held_study(state, held.study.hash, NORTH)
    with pytest.raises(SignatureError, match="is not the initial parameters"):
        fetch_parameters(one, lambda name, to, limit: to.write_bytes(b"others"))
    assert not path.exists()
    asked = []

    def get_blob(name: str, to: Path, limit: int) -> None:
        asked.append((name, limit))
        shutil.copy(held.parameters_path, to)

    fetch_parameters(one, get_blob)
    fetch_parameters(one, get_blob)
    assert asked == [(one.publication.parameters_sha256, held.parameters_path.stat().st_size)]
    yes(state, log, held)


@pytest.mark.parametrize("name", [STUDY_FILE, PARAMETERS_FILE, "publication.json", "answers/0001.json"])
@pytest.mark.parametrize("change", ["a byte", "gone", "empty", "huge"])
def test_a_changed_file_does_not_run(state: Path, log: AuditLog, held: StudyFiles, name: str, change: str) -> None:
    yes(state, log, held)
    path = approved_folder(state, held.study.hash, NORTH) / name
    content = path.read_bytes()
    middle = len(content) // 2
    if change == "gone":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"a byte": flipped, "empty": b"", "huge": content + b" " * 3 * 2**20}[change])
    with pytest.raises((NotApprovedError, SignatureError, StateFolderError)):
        approved_folder(state, held.study.hash, NORTH)
    path.write_bytes(content)
    approved_folder(state, held.study.hash, NORTH)


def test_a_comment_more_is_another_text(state: Path, log: AuditLog, held: StudyFiles) -> None:
    yes(state, log, held)
    path = approved_folder(state, held.study.hash, NORTH) / STUDY_FILE
    path.write_text(path.read_text() + "# meant the same\n")
    may_not_run(state, held, SignatureError, "is not the text that was published")


def test_a_site_enrolled_anew_with_another_key_decides_anew(state: Path, log: AuditLog, held: StudyFiles) -> None:
    yes(state, log, held)
    anew = Hospital()
    assert read_held_study(state, held.study.hash, anew).state == "new"
    approve(state, held.study.hash, "Dr A. Martin", member=anew, log=log)
    assert approved_folder(state, held.study.hash, anew).name == held.study.hash
    answers = read_held_study(state, held.study.hash, anew).answers
    assert [answer.number for answer in answers] == [2]


def test_an_approval_of_another_is_none(state: Path, log: AuditLog, held: StudyFiles, tmp_path: Path) -> None:
    other = write_study_files(tmp_path / "other", "other")
    take(state, log, other)
    yes(state, log, held)
    answers = state / "studies" / held.study.hash / "answers"
    target = state / "studies" / other.study.hash / "answers" / "0001.json"
    shutil.copy(answers / "0001.json", target)
    may_not_run(state, other, SignatureError, "for another study")
    target.unlink()
    shutil.copy(answers / "0001.json", answers / "0002.json")  # an old approval under a new number
    may_not_run(state, held, SignatureError, "another of its answers")
    (answers / "0002.json").unlink()
    approved_folder(state, held.study.hash, NORTH)
    with pytest.raises(NotApprovedError):  # another site's keys
        approved_folder(state, held.study.hash, Hospital())
    with pytest.raises(SignatureError, match="another consortium"):
        approved_folder(state, held.study.hash, Hospital(consortium="d" * 64, signing_key=NORTH.signing_key))


def test_approved_folder_is_cheap_after_the_first_time(
    state: Path, log: AuditLog, held: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    yes(state, log, held)
    approved_folder(state, held.study.hash, NORTH)

    def forbidden(*_: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(held_module, "read_limited", forbidden)
    monkeypatch.setattr(held_module, "sha256_of_file", forbidden)
    start = time.process_time()
    for _ in range(100):
        approved_folder(state, held.study.hash, NORTH)
    assert (time.process_time() - start) / 100 < 5e-3


@pytest.mark.parametrize(
    ("signed", "words"),
    [
        (lambda files: files.signed(Ed25519PrivateKey.generate()), "signed by another key"),
        (lambda files: files.signed(consortium="d" * 64), "of another consortium"),
        (lambda files: files.signed(study_hash="d" * 64), "it was changed"),
        (lambda files: files.signed(parameters_sha256="d" * 64), "other initial parameters"),
        (lambda files: files.signed(study_yaml="title: x"), "to correct"),
        (lambda files: sign(COORDINATOR, "instruction", files.publication()), "signed as 'instruction'"),
        (lambda files: files.signed().model_copy(update={"payload": "{}"}), "was changed after signing"),
        (lambda files: taken_back(files, Ed25519PrivateKey.generate()), "signed by another key"),
        (lambda files: taken_back(files, consortium="d" * 64), "of another consortium"),
    ],
)
def test_what_is_not_the_coordinators_is_refused_once(
    state: Path, log: AuditLog, files: StudyFiles, signed: Any, words: str, tmp_path: Path
) -> None:
    bad, good = signed(files), write_study_files(tmp_path / "good", "good")
    for _ in range(3):  # asked again and again
        received = receive(state, [bad, good.signed()], member=NORTH, log=log)
        ((what, error),) = received.refused
        assert what == digest(bad)
        assert words in error.what
    assert study_hashes(state) == [good.study.hash]
    assert sorted(events(log)) == ["refused request", "study received"]


def test_a_study_of_a_newer_version_is_refused_alone(state: Path, log: AuditLog, files: StudyFiles) -> None:
    text = files.study_path.read_text().replace("schema_version: 1", "schema_version: 99")
    received = receive(state, [files.signed(study_yaml=text)], member=NORTH, log=log)
    assert isinstance(received.refused[0][1], StudyVersionError)


def test_published_again(state: Path, log: AuditLog, held: StudyFiles) -> None:
    yes(state, log, held)
    assert take(state, log, held) == Received()
    assert take(state, log, held, published_at="2031-01-01T00:00:00+00:00") == Received()
    other_text = f"# hello\n{held.study_path.read_text()}"
    ((_, error),) = take(state, log, held, study_yaml=other_text).refused
    assert "published again with another text" in error.what
    approved_folder(state, held.study.hash, NORTH)


def test_a_study_the_coordinator_takes_back_runs_no_more(state: Path, log: AuditLog, held: StudyFiles) -> None:
    yes(state, log, held)
    approved_folder(state, held.study.hash, NORTH)
    assert receive(state, [taken_back(held)], member=NORTH, log=log).withdrawn == [held.study.hash]
    may_not_run(state, held, words="was withdrawn by the coordinator")
    with pytest.raises(NotApprovedError, match=r"took study .* back on 2030-02-02T00:00:00\+00:00: A fault\."):
        yes(state, log, held)
    no_more(state, log, held)  # the hospital's own word still counts
    take(state, log, held)  # shown again, it stays taken back
    assert receive(state, [taken_back(held)], member=NORTH, log=log) == Received()
    assert state_of(state, held) == "withdrawn by the coordinator"
    assert events(log) == ["study received", "approved", "withdrawn publication", "withdrawn"]


def test_a_withdrawal_for_another_study_does_not_count(
    state: Path, log: AuditLog, held: StudyFiles, tmp_path: Path
) -> None:
    yes(state, log, held)
    other = write_study_files(tmp_path / "other", "other")
    assert receive(state, [taken_back(other)], member=NORTH, log=log) == Received()
    approved_folder(state, held.study.hash, NORTH)
    path = state / "studies" / held.study.hash / "withdrawal.json"
    path.write_text(taken_back(other).model_dump_json())
    may_not_run(state, held, SignatureError, "for another study")


def test_one_damaged_study_does_not_hide_the_others(
    state: Path, log: AuditLog, held: StudyFiles, tmp_path: Path
) -> None:
    other = write_study_files(tmp_path / "other", "other")
    take(state, log, other)
    folder = state / "studies" / held.study.hash
    (folder / "publication.json").write_text('{"half')
    (state / "studies" / ("a" * 64)).mkdir()
    (state / "studies" / "notes.txt").write_text("mine")
    assert [one.hash for one in held_studies(state, NORTH)] == [other.study.hash]
    assert set(damaged_studies(state, NORTH)) == {held.study.hash, "a" * 64}
    may_not_run(state, held, SignatureError, "or it is damaged")
    take(state, log, held)  # the coordinator shows it again
    assert state_of(state, held) == "new"
    assert set(damaged_studies(state, NORTH)) == {"a" * 64}


def test_a_study_is_received_whole_or_not_at_all(
    tmp_path: Path, files: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 20):
        state = tmp_path / f"killed{step}"
        state.mkdir()
        with open_audit_log(state, owner="north") as log:
            try:
                with killed_at(step, monkeypatch) as count:
                    take(state, log, files)
            except Killed:
                pass
            whole = [one.hash for one in held_studies(state, NORTH)]
            assert damaged_studies(state, NORTH) == {}
            take(state, log, files)
            assert state_of(state, files) == "new"
            assert "study received" in events(log)
            if count[0] < step:
                assert whole == [files.study.hash]
                return
    raise AssertionError("receiving never ended")


def test_an_answer_is_given_whole_or_not_at_all(
    state: Path, log: AuditLog, held: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, 20):
        before = len(read_held_study(state, held.study.hash, NORTH).answers)
        logged = events(log).count("approved")
        try:
            with killed_at(step, monkeypatch) as count:
                yes(state, log, held)
        except Killed:
            pass
        given = len(read_held_study(state, held.study.hash, NORTH).answers) - before
        assert given <= events(log).count("approved") - logged  # nothing takes effect unlogged
        assert damaged_studies(state, NORTH) == {}
        if count[0] < step:
            assert given == 1
            return
    raise AssertionError("answering never ended")


def test_people_who_answer_at_once_get_a_number_each(state: Path, log: AuditLog, held: StudyFiles) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: yes(state, log, held, f"Dr {number}"), range(12)))
    answers = read_held_study(state, held.study.hash, NORTH).answers
    assert [answer.number for answer in answers] == list(range(1, 13))
    assert {answer.person for answer in answers} == {f"Dr {number}" for number in range(12)}


def test_answers_wait_until_they_are_sent(state: Path, log: AuditLog, held: StudyFiles) -> None:
    assert unsent_answers(state) == []
    yes(state, log, held)
    signed = no_more(state, log, held)
    ((path, waiting),) = unsent_answers(state)
    assert waiting == signed
    mark_sent(path)
    assert unsent_answers(state) == []
    again = yes(state, log, held)
    assert [one for _, one in unsent_answers(state)] == [again]
    assert state_of(state, held) == "approved"


def test_a_folder_that_cannot_be_written(state: Path, log: AuditLog, files: StudyFiles) -> None:
    (state / "studies").write_text("a file")
    with pytest.raises(StateFolderError, match="cannot be changed"):
        receive(state, [files.signed()], member=NORTH, log=log)


def test_no_more_studies_than_a_hospital_keeps(
    state: Path, log: AuditLog, held: StudyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echofed.client.approvals.MAX_STUDIES", 1)
    received = take(state, log, write_study_files(tmp_path / "other", "other"))
    assert "holds 1 studies already" in received.refused[0][1].what
    assert study_hashes(state) == [held.study.hash]
