"""Plain YAML in, a checked document or an error that says what to write."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echofed.protocol.document import Document
from echofed.protocol.errors import (
    NotBuiltError,
    StudyError,
    StudyInvalidError,
    StudySyntaxError,
    StudyVersionError,
    UnknownNameError,
)
from echofed.protocol.study import Study
from echofed.protocol.study_file import load_study, study_json_schema
from echofed.protocol.yaml_text import MAX_DEPTH, MAX_FILE_BYTES, load_document

STUDY = """\
schema_version: 1
title: Benign or malignant
purpose: Learn which lesions need a biopsy.
contact: A. Person, person@example.org
task:
  kind: binary
  labels: [benign, malignant]
model:
  name: small_resnet
training:
  learning_rate: 1e-3
  local_steps: 4
  sampling_probability: 0.1
privacy:
  unit: patient
  epsilon: 8
  clipping_norm: 1.0
federation:
  rounds: 20
"""


class Anything(Document):
    value: Any


class Texts(Document):
    words: tuple[str, ...]


def refusal(text: str, error: type[StudyError], model: type[Document] = Study) -> str:
    """Return what the refusal of a text says."""
    with pytest.raises(error) as caught:
        load_document(text, model, "study.yaml")
    assert type(caught.value) is error
    return caught.value.what


def changed(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new)


def test_a_sound_study_is_read() -> None:
    study = load_document(STUDY, Study, "study.yaml")
    assert study.task.labels == ("benign", "malignant")
    assert study.training.learning_rate == 1e-3
    assert study.privacy.epsilon == 8.0


def test_comments_key_order_and_spelled_out_defaults_do_not_change_the_hash() -> None:
    study = load_document(STUDY, Study, "study.yaml")
    again = "# reviewed\n" + STUDY.replace("  unit: patient\n  epsilon: 8", "  epsilon: 8.0 # tight\n  unit: patient")
    assert load_document(again, Study, "again.yaml").hash == study.hash
    assert load_document(study.model_dump_json(), Study, "json").hash == study.hash


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2024-01-31", "2024-01-31"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("-7", -7),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("'1'", "1"),
        ('"true"', "true"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_words_mean_what_yaml_1_2_says(written: str, meant: object) -> None:
    value = load_document(f"value: {written}", Anything, "a.yaml").value
    assert value == meant
    assert type(value) is type(meant)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1))
def test_any_text_quoted_as_json_comes_back(words: list[str]) -> None:
    text = f"words: {json.dumps(words)}"
    assert load_document(text, Texts, "a.yaml").words == tuple(words)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_is_read_or_refused_as_a_study_error(text: str) -> None:
    refused = False
    try:
        load_document(text, Anything, "a.yaml")
    except StudyError:
        refused = True
    assert refused or "value" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("  labels:", "\tlabels:"), "line 7: a tab; indent with spaces"),
        (changed("title: ", "title:\t"), "line 2: a tab"),
        (STUDY + "title: again\n", "line 20: title is written twice, first in line 2"),
        (changed("  epsilon: 8", "  epsilon: 8\n  epsilon: 80"), "line 17: epsilon is written twice"),
        (STUDY + "---\ntitle: x\n", "line 20: a second document begins"),
        (changed("purpose: L", "purpose: &why L"), "line 3: anchors"),
        (changed("title: Benign or malignant", "title: *why"), "line 2: anchors"),
        (changed("title: B", "title: !!python/object/apply:os.system B"), "line 2: the tag"),
        (changed("title: B", "title: !!str B"), "line 2: the tag"),
        (changed("rounds: 20", "rounds: .inf"), "line 19: .inf is not a number"),
        (changed("rounds: 20", "rounds: 1e999"), "line 19: 1e999 is too large"),
        (changed("rounds: 20", "rounds: " + "9" * 5000), "line 19: a number of 5000 characters"),
        (STUDY + "7: seven\n", "line 20: a field's name must be text; put 7 in quotes"),
        (STUDY + "[a]: b\n", "line 20: a field's name must be text"),
        (changed("Learn which", "Learn: which"), "line 3: a second colon"),
        (changed("title: B", "title: @B"), "line 2: text that begins with @"),
        (changed("[benign, malignant]", "[benign, malignant"), "it began in line 7"),
        (changed("Benign or", "Benign \x07 or"), "line 2: a character that is not text"),
        ("", "is empty"),
        ("# nothing but a comment\n", "is empty"),
        ("- a\n- b\n", "is a list"),
        ("just text", "is a single value"),
        ("value: " + "[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("value: " + "{a: " * 50_000, f"nested more than {MAX_DEPTH} deep"),
        ("a: b # " + "x" * MAX_FILE_BYTES, "more than 256 KiB"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_by_line(text: str, said: str) -> None:
    assert said in refusal(text, StudySyntaxError)


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    assert "line 1: anchors" in refusal(bomb, StudySyntaxError)


def test_a_newer_schema_is_said_before_anything_else() -> None:
    text = changed("schema_version: 1", "schema_version: 2") + "new_field: 1\n"
    assert refusal(text, StudyVersionError) == (
        "study.yaml is written for schema version 2; this EchoFed knows version 1."
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("small_resnet", "resnet_50"), 'line 8: model: "resnet_50" is not known; write one of: scattering,'),
        (changed("kind: binary", "kind: binry"), 'line 6: task.kind: "binry" is not known; write one of: binary,'),
        (STUDY + "strategy: {preset: FedSGD}\n", "line 20: strategy.preset: "),
    ],
)
def test_unknown_names_are_listed(text: str, said: str) -> None:
    assert said in refusal(text, UnknownNameError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed("learning_rate:", "learning_rte:"), "line 11: training.learning_rte: no such field; did you mean"),
        (changed("learning_rate:", "learning_rte:"), "line 10: training: add `learning_rate:`"),
        (changed("rounds: 20", "rounds: 20\n  epsilon: 1"), "no such field here; it belongs in privacy.epsilon"),
        (changed("rounds: 20", "rounds: 20\n  zzz: 1"), "line 20: federation.zzz: no such field; there are: rounds,"),
        (changed("small_resnet", "small_resnet\n  angles: 4"), "line 10: model.angles: no such field; there are: "),
        (changed("  name: small_resnet", "  width: 8"), "line 8: model: add `name:`, one of: scattering,"),
        (changed("  unit: patient\n", ""), "line 14: privacy: add `unit:` (one of patient, none)"),
        (changed("  local_steps: 4\n", ""), "(steps a site takes each round)"),
        (changed("1e-3", '"1e-3"'), 'training.learning_rate: "1e-3" is not a number, without quotes'),
        (changed("rounds: 20", "rounds: 2.5"), "line 19: federation.rounds: 2.5 is not a whole number"),
        (changed("rounds: 20", "rounds: true"), "line 19: federation.rounds: true is not a whole number"),
        (changed("rounds: 20", "rounds:"), "line 19: federation.rounds: an empty field is not a whole number"),
        (changed("title: Benign or malignant", "title: 2024"), "line 2: title: 2024 is not text, in quotes"),
        (changed("[benign, malignant]", "benign"), 'line 7: task.labels: "benign" is not a list'),
        (changed("[benign, malignant]", "[benign, 1]"), "line 7: task.labels.2: 1 is not text"),
        (changed("probability: 0.1", "probability: 3"), "training.sampling_probability: 3 must be at most 1"),
        (changed("probability: 0.1", "probability: 0"), "training.sampling_probability: 0 must be more than 0"),
        (changed("kind: binary", "kind: multiclass"), "line 5: task: a multiclass task has at least 3 labels"),
        (changed("training:", "training: fast\nstrategy:"), 'line 10: training: "fast" is not a group of fields'),
        (changed("name: small_resnet", "name: small_resnet\n  encoder: thawed"), '"thawed" is not known'),
        (changed("title: Benign or malignant", r'title: "\ud800"'), "line 1"),
    ],
)
def test_what_does_not_make_a_study_is_said_with_what_to_write(text: str, said: str) -> None:
    if "thawed" in said:
        assert said in refusal(text, UnknownNameError)
    else:
        assert said in refusal(text, StudyInvalidError)


def test_everything_wrong_is_said_at_once_sorted_by_line() -> None:
    text = (
        changed("  epsilon: 8", "  epsilon: -8").replace("kind: binary", "kind: b").replace("rounds: 20", "rouds: 20")
    )
    lines = refusal(text, StudyInvalidError).splitlines()
    numbers = [int(line.split(":")[0].split()[-1]) for line in lines[1:]]
    assert lines[0] == "study.yaml: 4 things to correct."
    assert numbers == [6, 16, 18, 19]


def test_a_study_file_is_read_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    assert load_study(path).hash == load_document(STUDY, Study, "study.yaml").hash


def test_files_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: x\npurpose: Prüfung\n".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a" * (MAX_FILE_BYTES + 1))
    cases = {
        tmp_path / "none.yaml": "There is no file",
        tmp_path: "is a folder",
        latin: "latin.yaml, line 2: not UTF-8",
        large: "more than 256 KiB",
        latin / "below.yaml": "cannot be read",
    }
    for path, said in cases.items():
        with pytest.raises(StudySyntaxError, match=said):
            load_study(path)


def test_a_protection_that_is_not_built_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + "secure_aggregation: {mode: required}\n")
    with pytest.raises(NotBuiltError, match=r"study\.yaml requires secure aggregation"):
        load_study(path)


def test_the_json_schema_describes_the_study() -> None:
    schema = study_json_schema()
    assert schema["title"] == "Study"
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema
