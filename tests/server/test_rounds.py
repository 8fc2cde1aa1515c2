"""Rounds: published with enough replies, tried again without, the best kept, resumed after any interruption."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from echofed.protocol.errors import NonFiniteLossError, SitesError, TooFewRepliesError
from echofed.protocol.flower_records import content, error_reply, parameters_record, read_document, read_parameters
from echofed.protocol.messages import EvaluateReply, ExactFigures, Instruction, TrainReply
from echofed.protocol.study import Study
from echofed.server.checkpoint import read_checkpoint
from echofed.server.history import append_round, read_history
from echofed.server.rounds import RunFolder, run_study
from echofed.simulations.identity import declare_task
from tests.studies import make_study

SITES = {1: "north", 2: "south"}
INITIAL = {"w": np.zeros(3, np.float32)}
Site = Callable[[Instruction, np.ndarray], tuple[float, float | None]]


class FunctionGrid(Grid):
    """A grid whose sites are functions from (instruction, parameters) to (update or loss, metric)."""

    def __init__(self, study: Study, sites: dict[int, Site]) -> None:
        declare_task()
        self.study, self.sites, self.replies, self.asked = study, sites, {}, []
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: Any = None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        keys = []
        for message in messages:
            key = str(len(self.asked))
            message.metadata.__dict__["_message_id"] = key
            instruction = read_document(message.content, Instruction)
            self.asked.append((message.metadata.dst_node_id, instruction.kind, instruction.round_number))
            self.replies[key] = self._answer(message, instruction)
            keys.append(key)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(key) for key in sorted(message_ids) if key in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message, instruction: Instruction) -> Message:
        node = message.metadata.dst_node_id
        addressed = {"site": SITES[node], "study_hash": self.study.hash, "round_number": instruction.round_number}
        try:
            value, metric = self.sites[node](instruction, read_parameters(message.content, 10_000)["w"])
        except NonFiniteLossError as error:
            return error_reply(error, message)
        if instruction.kind == "evaluate":
            figures = ExactFigures(patients=4, loss=value, metric=metric)
            return Message(content(EvaluateReply(**addressed, exact=figures)), reply_to=message)
        patients = None if self.study.strategy.weighting == "uniform" else 10 * node
        reply = TrainReply(**addressed, patients=patients, training_loss=value, spent=None, seconds=0.0)
        return Message(content(reply, parameters_record({"w": np.full(3, value, np.float32)})), reply_to=message)


def adds(step: float) -> Site:
    return lambda instruction, w: (step, None) if instruction.kind == "train" else (1.0, float(w[0]) % 5 / 5)


def failing(instruction: Instruction, w: np.ndarray) -> tuple[float, float | None]:
    raise NonFiniteLossError("The loss is NaN.")


def test_rounds_add_up_and_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 6})
    grid = FunctionGrid(study, {1: adds(1.0), 2: adds(1.0)})
    checkpoint = run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, False))
    np.testing.assert_allclose(checkpoint.parameters["w"], 6.0)
    assert (checkpoint.best_round, checkpoint.best_metric) == (4, 0.8)
    np.testing.assert_allclose(checkpoint.best_parameters["w"], 4.0)
    history = read_history(tmp_path, 6)
    assert [record.round_number for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[0].sites["north"].training_loss == 1.0
    assert history[0].bytes_down > 0
    assert history[0].bytes_up > 0


@pytest.mark.parametrize(("weighting", "said"), [("patients", [10, 20]), ("uniform", [None, None])])
def test_the_patients_that_weigh_stand_in_the_history(tmp_path: Path, weighting: str, said: list[int | None]) -> None:
    study = make_study(strategy={"weighting": weighting})
    grid = FunctionGrid(study, {1: adds(1.0), 2: adds(1.0)})
    run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, resume=False))
    (first, *_) = read_history(tmp_path, 1)
    assert [first.sites[site].patients for site in ("north", "south")] == said


def test_lower_is_better_for_an_error(tmp_path: Path) -> None:
    study = make_study(
        task={"kind": "regression", "labels": ("size",), "value_range": (0.0, 9.0)}, federation={"rounds": 6}
    )
    grid = FunctionGrid(study, {1: adds(1.0), 2: adds(1.0)})
    assert run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, False)).best_round == 5


def test_too_few_replies_are_retried_then_stop_with_the_last_good_model(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 3, "retries": 2})

    def fails_from_round_two(instruction: Instruction, w: np.ndarray) -> tuple[float, float | None]:
        return adds(1.0)(instruction, w) if instruction.round_number < 2 else failing(instruction, w)

    grid = FunctionGrid(study, {1: adds(1.0), 2: fails_from_round_two})
    with pytest.raises(
        TooFewRepliesError, match=r"Round 2 had 1 good replies of the 2 it needs, 3 times. south: .*NaN"
    ):
        run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, False))
    kept = read_checkpoint(tmp_path, study.hash)
    assert kept is not None
    assert kept.round_number == 1
    np.testing.assert_allclose(kept.parameters["w"], 1.0)
    assert sum(asked == (1, "train", 2) for asked in grid.asked) == 3


def test_a_site_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 1, "retries": 1})
    calls: list[int] = []

    def fails_first(instruction: Instruction, w: np.ndarray) -> tuple[float, float | None]:
        calls.append(1)
        return failing(instruction, w) if len(calls) == 1 else adds(1.0)(instruction, w)

    run_study(study, FunctionGrid(study, {1: adds(1.0), 2: fails_first}), SITES, INITIAL, RunFolder(tmp_path, False))
    assert read_history(tmp_path, 1)[0].attempts == 2


def test_a_site_with_nan_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 2, "minimum_replies": 1})
    grid = FunctionGrid(study, {1: adds(1.0), 2: failing})
    checkpoint = run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, False))
    np.testing.assert_allclose(checkpoint.parameters["w"], 2.0)
    assert "NaN" in read_history(tmp_path, 2)[1].refused["south"]


def test_a_figure_that_cannot_be_ends_no_round(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 2})

    def lies(instruction: Instruction, w: np.ndarray) -> tuple[float, float | None]:
        return (1.0, None) if instruction.kind == "train" else (1e308, 0.5)

    checkpoint = run_study(
        study, FunctionGrid(study, {1: adds(1.0), 2: lies}), SITES, INITIAL, RunFolder(tmp_path, False)
    )
    assert checkpoint.round_number == 2
    last = read_history(tmp_path, 2)[1]
    assert last.validation_loss == 1.0
    assert "loss" in last.refused["south"]


def test_fewer_sites_than_required_do_not_start(tmp_path: Path) -> None:
    study = make_study(federation={"minimum_sites": 3})
    with pytest.raises(SitesError):
        run_study(study, FunctionGrid(study, {}), SITES, INITIAL, RunFolder(tmp_path, False))


@pytest.mark.parametrize("preset", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_resuming_gives_the_model_of_an_uninterrupted_run(tmp_path: Path, preset: str) -> None:
    study = make_study(federation={"rounds": 5}, strategy={"preset": preset})
    sites = {1: lambda i, w: (0.1 + float(w.mean()) / 3, 0.5), 2: adds(0.3)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = run_study(study, FunctionGrid(study, sites), SITES, INITIAL, RunFolder(tmp_path / "a", False))

    class KilledError(Exception):
        pass

    def kill_after_two(record: Any) -> None:
        if record.round_number == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_study(study, FunctionGrid(study, sites), SITES, INITIAL, RunFolder(tmp_path / "b", False), kill_after_two)
    # A crash may also come between the history and the checkpoint.
    append_round(
        tmp_path / "b", read_history(tmp_path / "b", 2)[1].model_copy(update={"round_number": 3, "attempts": 9})
    )
    resumed = run_study(study, FunctionGrid(study, sites), SITES, INITIAL, RunFolder(tmp_path / "b", True))
    np.testing.assert_array_equal(resumed.parameters["w"], whole.parameters["w"])
    assert [record.attempts for record in read_history(tmp_path / "b", 5)] == [1] * 5
    assert resumed.replied == whole.replied == ("north", "south")


def test_it_stops_when_told_to_and_goes_on_from_there(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 5}, strategy={"preset": "FedAvgM"})
    asked: list[int] = []

    def two_more() -> bool:
        asked.append(1)
        return len(asked) % 3 != 0

    grid = FunctionGrid(study, {1: adds(1.0), 2: adds(2.0)})
    reached = [
        run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, True), go_on=two_more).round_number for _ in range(3)
    ]
    assert reached == [2, 4, 5]
    (tmp_path / "whole").mkdir()
    whole = run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path / "whole", False))
    kept = read_checkpoint(tmp_path, study.hash)
    assert kept is not None
    np.testing.assert_array_equal(kept.parameters["w"], whole.parameters["w"])


class RepeatingGrid(FunctionGrid):
    """A grid that gives every reply twice, and again those of earlier exchanges."""

    def __init__(self, study: Study, sites: dict[int, Site]) -> None:
        super().__init__(study, sites)
        self.given: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        new = list(super().pull_messages(message_ids))
        old, self.given = self.given, [*self.given, *new]
        return [*old, *new, *new]


def test_late_and_repeated_replies_do_not_count(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 3, "retries": 1})
    calls: list[int] = []

    def fails_first(instruction: Instruction, w: np.ndarray) -> tuple[float, float | None]:
        calls.append(1)
        return failing(instruction, w) if len(calls) == 1 else adds(2.0)(instruction, w)

    grid = RepeatingGrid(study, {1: lambda i, w: (1.0 + len(calls), 0.5), 2: fails_first})
    checkpoint = run_study(study, grid, SITES, INITIAL, RunFolder(tmp_path, False))
    history = read_history(tmp_path, 3)
    assert [record.attempts for record in history] == [2, 1, 1]
    # What north says grows with each exchange, so an answer to an earlier one would show.
    assert [record.sites["north"].training_loss for record in history] == [2.0, 4.0, 6.0]
    np.testing.assert_allclose(checkpoint.parameters["w"], (2 + 2) / 2 + (4 + 2) / 2 + (6 + 2) / 2)
