"""The hospital's ClientApp, called as Flower calls it: what it answers, what it refuses, and what leaves."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from echofed.client.flower import make_client_app
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.arrays import Parameters
from echofed.protocol.document import Document
from echofed.protocol.figures import figure_count
from echofed.protocol.flower_records import content, parameters_record, read_document, read_parameters
from echofed.protocol.messages import DescribeReply, EvaluateReply, Instruction, TrainReply
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.simulations.identity import declare_task
from echofed.simulations.initial import write_initial_parameters
from tests.client.conftest import Hospital
from tests.small_simulations import write_study
from tests.studies import PRIVATE, make_study

MESSAGE_TYPES = {"train": "train", "evaluate": "evaluate", "describe": "query"}


@dataclass
class Node:
    """A hospital that holds a study, and a coordinator's way to it."""

    folder: Path
    hospital: Hospital
    study: Study
    shared: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        declare_task()
        write_study(self.folder / STUDY_FILE, self.study)
        write_initial_parameters(self.study, self.folder / PARAMETERS_FILE, 0)
        self.shared = shared_parameters(*read_study_folder(self.folder))
        self.app = make_client_app(self.folder, [self.hospital.state], 0)

    def ask(self, kind: Any, round_number: int = 1, shared: Parameters | None = None, **instruction: Any) -> Message:
        fields = {"kind": kind, "study_hash": self.study.hash, "round_number": round_number, **instruction}
        parameters = None if kind == "describe" else parameters_record(self.shared if shared is None else shared)
        return self.send(kind, content(Instruction.model_validate(fields), parameters))

    def send(self, kind: str, records: RecordDict) -> Message:
        message = Message(records, 1, MESSAGE_TYPES[kind], group_id="1")
        return self.app(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {}))


@pytest.fixture
def node(hospital: Hospital, tmp_path: Path) -> Any:
    hospital.fill(16, images=2)
    hospital.registered()

    def make(**parts: Any) -> Node:
        folder = tmp_path / "study"
        folder.mkdir()
        return Node(folder, hospital, make_study(**parts))

    return make


def said(message: Message, kind: type[Document]) -> dict[str, Any]:
    assert message.has_content(), message.error
    return read_document(message.content, kind).model_dump()


def test_describe_gives_counts_and_nothing_else(node: Any) -> None:
    one = node()
    reply = one.ask("describe", 0)
    document = said(reply, DescribeReply)
    counts = [document.pop(f"{split}_patients") for split in ("training", "validation", "test")]
    assert sum(counts) == 16
    assert document == {
        "site": "a",
        "study_hash": one.study.hash,
        "round_number": 0,
        "kind": "describe",
        "can_train": True,
    }
    assert list(reply.content) == ["document"]


@pytest.mark.parametrize("weighting", ["uniform", "patients"])
@pytest.mark.parametrize("private", [True, False])
def test_an_update_says_only_what_was_agreed(node: Any, private: bool, weighting: str) -> None:
    privacy = PRIVATE if private else {"unit": "none"}
    one = node(privacy=privacy, strategy={"weighting": weighting}, training={"sampling_probability": 1.0})
    reply = one.ask("train")
    document = said(reply, TrainReply)
    assert (document["training_loss"] is None) == private
    assert (document["spent"] is not None) == private
    assert (document["seconds"] is None) == private
    assert (document["patients"] is None) == (weighting == "uniform")
    update = read_parameters(reply.content, 10**8)
    assert {name: array.shape for name, array in update.items()} == {
        name: array.shape for name, array in one.shared.items()
    }
    assert any(array.any() for array in update.values())
    sent = json.dumps(document)
    assert not any(row["file"] in sent for row in one.hospital.rows)


def test_evaluation_gives_means_over_validation_patients(node: Any) -> None:
    one = node(evaluation={"validation_fraction": 0.4})
    document = said(one.ask("evaluate"), EvaluateReply)
    assert document["exact"]["patients"] == said(one.ask("describe", 0), DescribeReply)["validation_patients"] > 0
    assert 0 < document["exact"]["loss"] < 10
    assert document["noisy"] is None


def test_evaluation_in_a_private_study_gives_noisy_sums_only(node: Any) -> None:
    one = node(privacy=PRIVATE, evaluation={"validation_fraction": 0.4})
    document = said(one.ask("evaluate"), EvaluateReply)
    assert document["exact"] is None
    assert len(document["noisy"]["sums"]) == figure_count(one.study.task)
    assert document["noisy"]["noise_stddev"] > 0.1


def test_a_site_without_validation_patients_says_so(node: Any) -> None:
    one = node(evaluation={"validation_fraction": 0.0})
    document = said(one.ask("evaluate"), EvaluateReply)
    assert (document["exact"], document["noisy"]) == (None, None)


def test_the_same_round_asked_twice_gives_the_same_update(node: Any) -> None:
    one = node()
    updates = [read_parameters(one.ask("train").content, 10**8) for _ in range(2)]
    other = read_parameters(one.ask("train", 2).content, 10**8)
    for name, array in updates[0].items():
        np.testing.assert_array_equal(array, updates[1][name])
    assert any((other[name] != array).any() for name, array in updates[0].items())


def test_normalisation_never_leaves_under_fedbn(node: Any) -> None:
    one = node(strategy={"preset": "FedBN"})
    _, initial, metadata = read_study_folder(one.folder)
    normalisation = set(json.loads(metadata["normalisation"]))
    assert normalisation
    update = read_parameters(one.ask("train").content, 10**8)
    assert update.keys() == initial.keys() & set(json.loads(metadata["trainable"])) - normalisation
    kept = list(one.hospital.state.glob("personal/*/*.safetensors"))
    assert [path.name for path in kept] == ["00001.safetensors"]
    # What stays at the site has been trained, and takes part in the next round.
    before = read_parameters(one.ask("train", 2).content, 10**8)
    kept[0].unlink()
    after = read_parameters(one.ask("train", 2).content, 10**8)
    assert any((before[name] != after[name]).any() for name in before)


def with_nan(shared: Parameters) -> Parameters:
    name = next(iter(shared))
    return {**shared, name: np.full_like(shared[name], np.nan)}


def without_one(shared: Parameters) -> Parameters:
    return dict(list(shared.items())[1:])


def with_one_more(shared: Parameters) -> Parameters:
    return {**shared, "secret_p7_scan.png": np.zeros(3, np.float32)}


def reshaped(shared: Parameters) -> Parameters:
    return {name: array.reshape(-1) for name, array in shared.items()}


def check_refused(message: Message, code: str, hospital: Hospital) -> None:
    assert message.has_error()
    reason = message.error.reason or ""
    assert reason.startswith(f"[{code}] ")
    # Codes and fixed sentences only: no path, no file name, no parameter's name, no number of patients.
    for told in (str(hospital.folder), str(hospital.state), ".png", "p7", "secret", "00001", "/"):
        assert told not in reason


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("change", [with_nan, without_one, with_one_more, reshaped])
def test_parameters_of_another_form_are_refused(node: Any, kind: str, change: Any) -> None:
    one = node(evaluation={"validation_fraction": 0.4})
    check_refused(one.ask(kind, shared=change(one.shared)), "EF-502", one.hospital)


def test_instructions_that_were_not_agreed_are_refused(node: Any) -> None:
    one = node()
    for kind in ("train", "evaluate", "describe"):
        check_refused(one.ask(kind, study_hash="0" * 64), "EF-500", one.hospital)
    for round_number in (0, one.study.federation.rounds + 1):
        check_refused(one.ask("train", round_number), "EF-500", one.hospital)
    instruction = Instruction(kind="evaluate", study_hash=one.study.hash, round_number=1)
    check_refused(one.send("train", content(instruction, parameters_record(one.shared))), "EF-500", one.hospital)


@pytest.mark.parametrize(
    "damaged",
    [
        RecordDict(),
        RecordDict({"document": ConfigRecord({"json": "{"})}),
        RecordDict({"document": ConfigRecord({"json": "{}", "code": "import os"})}),
        RecordDict({"document": ConfigRecord({"json": 1})}),
        RecordDict({"more": ConfigRecord({"json": "{}"})}),
    ],
)
def test_messages_of_another_form_are_refused(node: Any, damaged: RecordDict) -> None:
    one = node()
    check_refused(one.send("train", damaged), "EF-501", one.hospital)


def test_parameters_in_another_encoding_are_refused(node: Any) -> None:
    one = node()
    instruction = Instruction(kind="train", study_hash=one.study.hash, round_number=1)
    for array, code in (
        (Array("float32", (1,), "numpy.ndarray", b"\x80\x04."), "EF-501"),
        (Array("uint8", (3,), "safetensors", b"abc"), "EF-502"),
    ):
        check_refused(one.send("train", content(instruction, ArrayRecord({"safetensors": array}))), code, one.hospital)
    check_refused(one.send("train", content(instruction)), "EF-501", one.hospital)


def test_an_error_nobody_expected_tells_the_coordinator_nothing(node: Any) -> None:
    one = node()
    (one.hospital.state / "registry.sqlite").write_bytes(b"not a database")
    check_refused(one.ask("describe", 0), "EF-201", one.hospital)
    (one.folder / STUDY_FILE).unlink()
    (one.folder / STUDY_FILE).mkdir()
    fresh = make_client_app(one.folder / "..", [one.hospital.state], 0)
    one.app = fresh
    assert one.ask("describe", 0).has_error()


def test_images_that_vanished_are_refused_without_their_names(node: Any) -> None:
    one = node()
    for row in one.hospital.rows:
        (one.hospital.folder / row["file"]).unlink()
    check_refused(one.ask("train"), "EF-201", one.hospital)


def test_a_site_too_small_for_the_study_says_so_before_the_first_round(node: Any) -> None:
    one = node(privacy={**PRIVATE, "delta": 0.9})
    check_refused(one.ask("describe", 0), "EF-401", one.hospital)
    check_refused(one.ask("train"), "EF-401", one.hospital)


def test_a_node_is_the_site_of_its_partition(node: Any, tmp_path: Path) -> None:
    one = node()
    other = Hospital(tmp_path / "other", tmp_path / "other-state")
    other.folder.mkdir()
    other.fill(3)
    other.write_index()
    create_site(other.state, SiteSettings(name="b", data_folder=other.folder)).register()
    app = make_client_app(one.folder, [one.hospital.state, other.state], 0)
    instruction = content(Instruction(kind="describe", study_hash=one.study.hash, round_number=0))
    names = []
    for partition in (0, 1):
        context = Context(1, 1, {"partition-id": partition}, RecordDict(), {})
        names.append(said(app(Message(instruction, 1, "query", group_id="0"), context), DescribeReply)["site"])
    assert names == ["a", "b"]
