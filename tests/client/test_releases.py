"""What leaves a hospital: charged first, once, and the same bytes when asked again. A real ClientApp, without a seed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from echofed.client.flower import make_client_app
from echofed.client.ledger import Ledger
from echofed.client.ledger_chain import Entry
from echofed.client.policy import load_policy
from echofed.client.releases import close_ledgers, site_ledger
from echofed.privacy.budget import delta_for
from echofed.privacy.spends import composed_epsilon
from echofed.protocol.arrays import Parameters
from echofed.protocol.errors import LedgerError
from echofed.protocol.flower_records import content, content_bytes, parameters_record, read_parameters
from echofed.protocol.messages import Instruction
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.protocol.study_folder import PARAMETERS_FILE, STUDY_FILE, read_study_folder
from echofed.simulations.identity import declare_task
from echofed.simulations.initial import write_initial_parameters
from tests.client.conftest import Hospital
from tests.small_simulations import write_study
from tests.studies import PRIVATE, make_study

STUDY: dict[str, Any] = {
    "privacy": {**PRIVATE, "epsilon": 4.0},
    "training": {"local_steps": 1, "sampling_probability": 1.0},
    "federation": {"rounds": 6},
    "evaluation": {"validation_fraction": 0.45, "test_fraction": 0.0, "every_rounds": 3, "minimum_patients": 10},
    "strategy": {"weighting": "patients"},
}


@dataclass
class Node:
    """A hospital without a seed, and a coordinator's way to it."""

    folder: Path
    hospital: Hospital
    study: Study
    shared: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        declare_task()
        self.folder.mkdir()
        write_study(self.folder / STUDY_FILE, self.study)
        write_initial_parameters(self.study, self.folder / PARAMETERS_FILE, 0)
        self.shared = shared_parameters(*read_study_folder(self.folder))
        self.app = make_client_app(self.folder, [self.hospital.state], None)

    def ask(self, kind: Any, round_number: int, change: float = 0.0) -> Message:
        document = Instruction(kind=kind, study_hash=self.study.hash, round_number=round_number)
        arrays = {name: np.asarray(array + change, np.float32) for name, array in self.shared.items()}
        records = content(document, None if kind == "describe" else parameters_record(arrays))
        message = Message(records, 1, "query" if kind == "describe" else kind, group_id="1")
        return self.app(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {}))

    def answer(self, kind: Any, round_number: int, change: float = 0.0) -> bytes:
        reply = self.ask(kind, round_number, change)
        assert not reply.has_error(), reply.error
        return content_bytes(reply.content)

    def refusal(self, kind: Any, round_number: int, change: float = 0.0) -> str:
        reply = self.ask(kind, round_number, change)
        assert reply.has_error()
        return (reply.error.reason or "")[1:7]

    @property
    def entries(self) -> list[tuple[str, int]]:
        return [(entry.purpose, entry.round_number) for entry in site_ledger(self.hospital.state).entries()]


@pytest.fixture
def node(hospital: Hospital, tmp_path: Path) -> Iterator[Any]:
    hospital.fill(60)
    hospital.registered()

    def make(name: str = "study", **parts: Any) -> Node:
        return Node(tmp_path / name, hospital, make_study(**{**STUDY, **parts}))

    yield make
    close_ledgers()


def write_policy(hospital: Hospital, text: str) -> None:
    (hospital.state / "policy.yaml").write_text(text)


def test_a_whole_study_is_charged_once_and_stays_within_its_epsilon(node: Any) -> None:
    one = node()
    one.answer("describe", 0)
    for round_number in range(1, 7):
        one.answer("train", round_number)
        if round_number % 3 == 0:
            one.answer("evaluate", round_number)
    trained = [("training", number) for number in range(1, 7)]
    assert sorted(one.entries) == sorted([("count", 0), *trained, ("figures", 3), ("figures", 6)])
    spends = [entry.spend for entry in site_ledger(one.hospital.state).entries()]
    said = int((one.hospital.state / "counts" / one.study.hash).read_text())
    assert 3.9 < composed_epsilon(spends, delta_for(said)) <= 4.0


def test_a_repeated_instruction_gets_the_very_same_bytes_and_costs_nothing(node: Any) -> None:
    one = node()
    first = one.answer("train", 1), one.answer("evaluate", 3), one.answer("describe", 0)
    entries = one.entries
    assert (one.answer("train", 1), one.answer("evaluate", 3), one.answer("describe", 0)) == first
    # Also from a new process, which knows only what is on disk.
    close_ledgers()
    again = make_client_app(one.folder, [one.hospital.state], None)
    one.app = again
    assert one.answer("train", 1) == first[0]
    assert one.entries == entries


def test_another_instruction_for_an_answered_round_is_refused(node: Any) -> None:
    one = node()
    one.answer("train", 1)
    one.answer("evaluate", 3)
    entries = one.entries
    assert one.refusal("train", 1, change=0.5) == "EF-403"
    assert one.refusal("evaluate", 3, change=0.5) == "EF-403"
    assert one.entries == entries


def test_two_instructions_for_one_round_at_once_give_one_answer(node: Any) -> None:
    one = node()
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda change: one.ask("train", 1, change), (0.0, 0.1, 0.2, 0.3)))
    assert [reply.has_error() for reply in replies].count(False) == 1
    assert one.entries.count(("training", 1)) == 1


def test_a_lost_count_is_not_drawn_again(node: Any) -> None:
    one = node()
    one.answer("describe", 0)
    (one.hospital.state / "counts" / one.study.hash).unlink()
    assert one.refusal("describe", 0) == one.refusal("train", 1) == "EF-405"
    assert not (one.hospital.state / "counts" / one.study.hash).exists()


def test_a_later_round_acknowledges_the_earlier_ones(node: Any) -> None:
    one = node()
    one.answer("train", 1)
    one.answer("train", 2)
    assert one.refusal("train", 1) == "EF-403"
    assert one.answer("train", 2)


def test_a_crash_before_the_charge_costs_nothing_and_after_it_counts(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    true_spend = Ledger.spend

    def power_cut(self: Ledger, study: Study, round_number: int, purpose: str, *rest: Any) -> Entry:
        if purpose == "training":
            raise LedgerError("The power is cut.")
        return true_spend(self, study, round_number, purpose, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "spend", power_cut)
        assert one.refusal("train", 1) == "EF-405"
    assert ("training", 1) not in one.entries
    # The reply had been made and kept, but told nobody anything: it is charged and sent now.
    kept = next((one.hospital.state / "replies" / one.study.hash).glob("00001-train")).read_bytes()
    assert one.answer("train", 1) == kept[-len(one.answer("train", 1)) :]
    assert one.entries.count(("training", 1)) == 1
    # Charged, and the reply then lost with the disk: what was paid for cannot be made again.
    for path in (one.hospital.state / "replies").rglob("00001-train"):
        path.unlink()
    assert one.refusal("train", 1) == "EF-403"


def test_a_budget_that_ends_in_the_middle_of_a_study_stops_it_there(node: Any) -> None:
    one = node()
    one.answer("describe", 0)
    one.answer("train", 1)
    write_policy(one.hospital, "epsilon_per_cohort: 3.5\n")
    answered = 1
    while not (reply := one.ask("train", answered + 1)).has_error():
        answered += 1
    assert (reply.error.reason or "").startswith("[EF-404]")
    assert 1 < answered < 6
    assert one.entries.count(("training", answered + 1)) == 0
    write_policy(one.hospital, "epsilon_per_cohort: 10.0\n")
    assert one.answer("train", answered + 1)


def test_a_study_that_does_not_fit_is_refused_before_anything_is_told(node: Any) -> None:
    one = node()
    write_policy(one.hospital, "epsilon_per_study: 3.0\n")
    assert one.refusal("describe", 0) == "EF-404"
    assert one.entries == []


def test_a_study_never_spends_more_than_its_own_epsilon(node: Any) -> None:
    """Whatever else fails, and however much the hospital would allow: here the noise of a smaller number of patients."""
    one = node()
    one.answer("describe", 0)
    write_policy(one.hospital, "epsilon_per_cohort: 50.0\nepsilon_per_study: 50.0\n")
    calibrations = one.hospital.state / "calibrations.json"
    halved = {key: sigma / 2 for key, sigma in json.loads(calibrations.read_text()).items()}
    calibrations.write_text(json.dumps(halved))
    answers = [not one.ask("train", round_number).has_error() for round_number in range(1, 7)]
    assert answers == sorted(answers, reverse=True)
    assert True in answers
    assert False in answers


def test_an_update_that_is_not_finite_is_charged_and_sent_as_zero(node: Any) -> None:
    """An error in its place would tell of noise that nobody has paid for, and could be asked for again."""
    one = node(
        training={"local_steps": 200, "sampling_probability": 1.0, "learning_rate": 100.0, "weight_decay": 1.0},
        strategy={"weighting": "patients", "maximum_update_norm": 1e9},
    )
    reply = one.ask("train", 1)
    assert not reply.has_error()
    assert one.entries == [("count", 0), ("training", 1)]
    update = read_parameters(reply.content, 10**8)
    assert all(np.isfinite(array).all() for array in update.values())
    assert one.answer("train", 1) == content_bytes(reply.content)


def test_what_is_wrong_with_data_is_not_said(node: Any) -> None:
    one = node()
    next(one.hospital.folder.glob("*.png")).unlink()
    assert one.refusal("describe", 0) == one.refusal("train", 1) == "EF-605"


def test_studies_on_the_same_patients_share_one_budget(node: Any) -> None:
    first, second = node(), node("second", title="Another study")
    write_policy(first.hospital, "epsilon_per_cohort: 5.0\n")
    first.answer("describe", 0)
    for round_number in range(1, 7):
        first.answer("train", round_number)
    assert second.refusal("describe", 0) == "EF-404"


def test_a_study_without_privacy_is_refused_unless_the_policy_allows_it(node: Any) -> None:
    one = node(privacy={"unit": "none"})
    for kind, round_number in (("describe", 0), ("train", 1), ("evaluate", 3)):
        assert one.refusal(kind, round_number) == "EF-404"
    assert one.entries == []
    write_policy(one.hospital, "allow_without_privacy: true\n")
    for kind, round_number in (("describe", 0), ("train", 1), ("train", 1), ("evaluate", 3)):
        assert one.answer(kind, round_number)
    assert one.entries == [("count", 0), ("training", 1), ("figures", 3)]
    assert all(entry.mechanism is None for entry in site_ledger(one.hospital.state).entries())


def test_a_site_of_eight_patients_takes_no_part_in_a_private_study(hospital: Hospital, tmp_path: Path) -> None:
    hospital.fill(8)
    hospital.registered()
    one = Node(tmp_path / "study", hospital, make_study(**{**STUDY, "evaluation": {"minimum_patients": 1}}))
    assert load_policy(hospital.state).minimum_patients == 10
    assert b'"can_train":false' in one.answer("describe", 0)
    assert one.refusal("train", 1) == "EF-406"
    assert b'"exact":null,"noisy":null' in one.answer("evaluate", 6)
    assert one.entries == []
    close_ledgers()


def test_rounds_that_are_not_due_are_not_evaluated(node: Any) -> None:
    one = node()
    for round_number in (0, 1, 2, 4, 7, 9):
        assert one.refusal("evaluate", round_number) == "EF-500"
    assert one.entries == []


def test_a_ledger_that_cannot_be_trusted_lets_nothing_out(node: Any) -> None:
    one = node()
    one.answer("train", 1)
    close_ledgers()
    (one.hospital.state / "ledger" / "ledger.sqlite").unlink()
    for kind, round_number in (("train", 1), ("train", 2), ("evaluate", 3), ("describe", 0)):
        assert one.refusal(kind, round_number) == "EF-405"
