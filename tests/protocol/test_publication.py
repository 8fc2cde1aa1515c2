"""Publications: the study a hospital reads is the study that is named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from echofed.protocol.errors import SignatureError, StudyError, UnknownNameError
from echofed.protocol.publication import Answer, Withdrawal, find_hash, study_of, utc_now
from tests.studies import make_study
from tests.study_files import CONSORTIUM, StudyFiles, write_study_files

HASHES = ["0123456789" + "a" * 54, "0123456789" + "b" * 54, "f" * 64]
ANSWER = {
    "consortium": CONSORTIUM,
    "site": "north",
    "study_hash": "a" * 64,
    "parameters_sha256": "b" * 64,
    "number": 1,
    "decision": "approved",
    "reason": None,
    "person": "Dr A. Martin",
    "decided_at": "2030-01-02T03:04:05+00:00",
}


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return write_study_files(tmp_path)


def test_a_publication_holds_its_study(files: StudyFiles) -> None:
    assert study_of(files.publication()) == files.study


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"study_hash": "d" * 64}, SignatureError, "is study .*: it was changed"),
        ({"parameters_sha256": "d" * 64}, SignatureError, "names other initial parameters"),
        ({"study_yaml": "title: x"}, StudyError, "to correct"),
        ({"study_yaml": ""}, StudyError, "is empty"),
        ({"study_yaml": "a: &x [*x, *x]"}, StudyError, "anchors"),
    ],
)
def test_what_is_not_the_study_named(files: StudyFiles, changes: dict[str, str], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        study_of(files.publication(**changes))


def test_a_byte_of_meaning_makes_another_study(files: StudyFiles) -> None:
    text = files.study_path.read_text()
    with pytest.raises(SignatureError, match="it was changed"):
        study_of(files.publication(study_yaml=text.replace("rounds: 2", "rounds: 3")))
    assert study_of(files.publication(study_yaml=f"# a comment\n{text}")) == files.study


def test_a_study_without_parameters_cannot_be_published(files: StudyFiles) -> None:
    text = "\n".join(line for line in files.study_path.read_text().splitlines() if "initial_parameters" not in line)
    bare = files.study.model_copy(
        update={"model": files.study.model.model_copy(update={"initial_parameters_sha256": None})}
    )
    with pytest.raises(SignatureError, match="other initial parameters than it is published with"):
        study_of(files.publication(study_yaml=text, study_hash=bare.hash))


@pytest.mark.parametrize(
    "changes",
    [
        {"person": ""},
        {"person": "x"},
        {"person": "Dr\x1b[2J Who"},
        {"person": "Dr Who\napproved"},
        {"person": "x" * 201},
        {"reason": "a\u2028b"},
        {"reason": ""},
        {"person": "Dr A. Martin\u202e"},
        {"person": "Dr\u200b A. Martin"},
        {"reason": "\ufeffNo."},
        {"reason": "No.\U000e0041"},
        {"reason": "x" * 2001},
        {"number": 0},
        {"number": 10_000},
        {"number": 1.0},
        {"decision": "maybe"},
        {"decided_at": "yesterday"},
        {"decided_at": "2030-01-02T03:04:05"},
        {"site": "../x"},
        {"study_hash": "A" * 64},
        {"more": 1},
    ],
)
def test_answers_that_cannot_be(changes: dict[str, object]) -> None:
    assert Answer.model_validate(ANSWER).person == "Dr A. Martin"
    with pytest.raises(ValidationError):
        Answer.model_validate(ANSWER | changes)


def test_a_withdrawal_has_a_reason_on_one_line() -> None:
    fields = {"consortium": CONSORTIUM, "study_hash": "a" * 64, "withdrawn_at": utc_now()}
    assert Withdrawal.model_validate(fields | {"reason": "A fault in it."})
    with pytest.raises(ValidationError):
        Withdrawal.model_validate(fields | {"reason": "A\nfault"})


def test_a_publication_is_not_larger_than_a_study_may_be(files: StudyFiles) -> None:
    with pytest.raises(ValidationError):
        files.publication(study_yaml="x" * (256 * 1024 + 1))
    with pytest.raises(ValidationError):
        files.publication(parameters_bytes=0)
    with pytest.raises(ValidationError):
        files.publication(parameters_bytes=2**36 + 1)


@pytest.mark.parametrize("name", ["Dr Élodie Lefèvre", "Dr Søren Ångström-O’Neill", "Dr\u00a0A. Martin", "Dr 李 明"])
def test_names_of_people_are_names(name: str) -> None:
    assert Answer.model_validate(ANSWER | {"person": name}).person == name


@pytest.mark.parametrize("letter", "\u061c\u200b\u200f\u2028\u202a\u202e\u2060\u2066\u2069\ufeff\U000e0000\U000e007f")
def test_no_letter_that_turns_the_text_or_cannot_be_seen(letter: str) -> None:
    with pytest.raises(ValidationError):
        make_study(title=f"Breast{letter} lesions")


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("ffffffff", HASHES[2]), ("FFFFFFFFFF", HASHES[2]), (HASHES[0], HASHES[0]), (" 0123456789a ", HASHES[0])],
)
def test_the_beginning_of_a_hash_names_a_study(prefix: str, found: str) -> None:
    assert find_hash(prefix, HASHES) == found


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("01234567", "2 studies begin with 01234567"),
        ("eeeeeeee", "There is no study eeeeeeee"),
        ("fffffff", "8 or more hexadecimal digits"),
        ("", "8 or more"),
        ("f" * 65, "8 or more"),
        ("../../../etc", "8 or more"),
        ("ffffffff\x1b[2J", r"'ffffffff\?\[2J' is not the beginning"),
    ],
)
def test_what_names_no_study(prefix: str, words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        find_hash(prefix, HASHES)
    with pytest.raises(UnknownNameError):
        find_hash(prefix, [])
