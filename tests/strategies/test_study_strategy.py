"""Which replies count: the good ones do, every bad one is refused, counted and named."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from echofed.protocol.errors import NonFiniteLossError
from echofed.protocol.flower_records import content, error_reply, parameters_record
from echofed.protocol.messages import (
    ARRAY_KEY,
    PARAMETERS_RECORD,
    EvaluateReply,
    Instruction,
    TrainReply,
)
from echofed.protocol.study import Study
from echofed.simulations.identity import declare_task
from echofed.strategies.study_strategy import StudyStrategy
from tests.studies import PRIVATE, make_study

SITES = {11: "north", 12: "south", 13: "east"}
GLOBAL = {"head.weight": np.zeros((1, 3), np.float32), "head.bias": np.zeros(1, np.float32)}


declare_task()


def strategy_for(study: Study) -> StudyStrategy:
    return StudyStrategy(study, SITES, {name: array.copy() for name, array in GLOBAL.items()})


def update(value: float) -> dict[str, np.ndarray]:
    return {name: np.full_like(array, value) for name, array in GLOBAL.items()}


def instruction_to(node: int, study: Study, round_number: int = 1) -> Message:
    document = Instruction(kind="train", study_hash=study.hash, round_number=round_number)
    message = Message(content(document, parameters_record(GLOBAL)), node, "train", group_id=str(round_number))
    message.metadata.__dict__["_message_id"] = f"to-{node}"
    return message


def reply_from(node: int, study: Study, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> Message:
    fields = {
        "site": SITES.get(node, "stranger"),
        "study_hash": study.hash,
        "round_number": 1,
        "patients": None,
        "training_loss": 0.5,
        "spent": None,
        "seconds": 0.1,
    }
    document = TrainReply.model_validate({**fields, **changes})
    record = parameters_record(update(1.0) if arrays is None else arrays)
    return Message(content(document, record), reply_to=instruction_to(node, study))


def test_the_mean_of_good_replies_is_published() -> None:
    study = make_study()
    strategy = strategy_for(study)
    arrays, _ = strategy.aggregate_train(1, [reply_from(11, study, update(1.0)), reply_from(12, study, update(3.0))])
    assert arrays is not None
    np.testing.assert_allclose(strategy.parameters["head.weight"], 2.0)
    assert strategy.outcome.refused == {"east": "The site did not answer in time."}


def test_patients_weight_the_mean_when_the_study_says_so() -> None:
    study = make_study(strategy={"weighting": "patients"})
    strategy = strategy_for(study)
    replies = [reply_from(11, study, update(1.0), patients=30), reply_from(12, study, update(4.0), patients=10)]
    strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(strategy.parameters["head.bias"], 1.75)


def _with_records(study: Study, records: RecordDict) -> Message:
    return Message(records, reply_to=instruction_to(11, study))


def bad_replies(study: Study) -> Iterator[tuple[str, Message]]:
    good = reply_from(11, study).content
    nan, wrong_shape = update(1.0), update(1.0)
    nan["head.bias"][0] = np.nan
    wrong_shape["head.bias"] = np.zeros(2, np.float32)
    integers = {**update(1.0), "head.bias": np.zeros(1, np.int64)}
    from safetensors.numpy import save

    yield "NaN", reply_from(11, study, nan)
    yield "infinite", reply_from(11, study, update(np.inf))
    yield "wrong shape", reply_from(11, study, wrong_shape)
    yield "extra key", reply_from(11, study, {**update(1.0), "extra": np.zeros(1, np.float32)})
    yield "missing key", reply_from(11, study, {"head.bias": np.zeros(1, np.float32)})
    yield "too large", reply_from(11, study, update(1e6))
    yield "another round", reply_from(11, study, round_number=2)
    yield "another site", reply_from(11, study, site="south")
    yield "another study", reply_from(11, study, study_hash="0" * 64)
    yield "patients unasked", reply_from(11, study, patients=5)
    yield "error", error_reply(NonFiniteLossError("The loss is NaN."), instruction_to(11, study))

    def with_buffer(data: bytes) -> Message:
        array = Array("uint8", (len(data),), "safetensors", data)
        return _with_records(study, RecordDict({**good, PARAMETERS_RECORD: ArrayRecord({ARRAY_KEY: array})}))

    yield "int64 buffers", with_buffer(save(integers))
    yield "garbage", with_buffer(b"\x08" + b"\x00" * 7 + b"notjson!")
    yield "empty", with_buffer(b"")
    yield "truncated", with_buffer(good.array_records[PARAMETERS_RECORD][ARRAY_KEY].data[:-3])
    yield "oversized", with_buffer(save({"head.bias": np.zeros(2**20, np.float32)}))
    plain = ArrayRecord({name: Array(array) for name, array in GLOBAL.items()})
    yield "Flower's own arrays", _with_records(study, RecordDict({**good, PARAMETERS_RECORD: plain}))
    yield "extra record", _with_records(study, RecordDict({**good, "more": ConfigRecord({"a": 1})}))
    yield "no document", _with_records(study, RecordDict({PARAMETERS_RECORD: good[PARAMETERS_RECORD]}))


KINDS = [kind for kind, _ in bad_replies(make_study())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_reply_is_refused_and_named_and_the_good_ones_count(kind: str) -> None:
    study = make_study()
    bad = dict(bad_replies(study))[kind]
    strategy = strategy_for(study)
    arrays, _ = strategy.aggregate_train(1, [bad, reply_from(12, study), reply_from(13, study)])
    assert arrays is not None
    np.testing.assert_allclose(strategy.parameters["head.weight"], 1.0)
    assert list(strategy.outcome.refused) == ["north"]
    assert len(strategy.outcome.refused["north"]) > 10


def test_too_few_good_replies_publish_nothing() -> None:
    study = make_study()
    strategy = strategy_for(study)
    arrays, _ = strategy.aggregate_train(1, [reply_from(11, study), reply_from(12, study, update(np.nan))])
    assert arrays is None
    np.testing.assert_array_equal(strategy.parameters["head.weight"], 0.0)


def test_strangers_and_second_replies_do_not_count() -> None:
    study = make_study()
    strategy = strategy_for(study)
    replies = [reply_from(11, study), reply_from(11, study, update(9.0)), reply_from(99, study), reply_from(12, study)]
    strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(strategy.parameters["head.weight"], 1.0)
    assert "node 99" in strategy.outcome.refused


def test_a_private_study_takes_no_reply_without_noise_nor_one_with_its_loss() -> None:
    study = make_study(privacy=PRIVATE)
    spent = {"noise_multiplier": 1.0, "sampling_probability": 0.5, "steps": 2, "delta": 1e-3}
    strategy = strategy_for(study)
    replies = [
        reply_from(11, study, spent=None, training_loss=None),
        reply_from(12, study, spent=spent, training_loss=0.3),
        reply_from(13, study, spent=spent, training_loss=None),
    ]
    strategy.aggregate_train(1, replies)
    assert list(strategy.outcome.trained) == ["east"]
    assert set(strategy.outcome.refused) == {"north", "south"}


SPENT = {"noise_multiplier": 3.0, "sampling_probability": 0.5, "steps": 2, "delta": 1 / 300}


@pytest.mark.parametrize(
    "changes",
    [
        {"spent": {**SPENT, "noise_multiplier": 1e200}},
        {"spent": {**SPENT, "noise_multiplier": 0.01}},
        {"spent": {**SPENT, "sampling_probability": 1e-300}},
        {"spent": {**SPENT, "steps": 3}},
        {"spent": {**SPENT, "delta": 0.5}},
        {"patients": 900, "spent": {**SPENT, "delta": 1 / 9000}},
        {"patients": 10**9, "spent": {**SPENT, "delta": 1e-10}},
    ],
)
def test_a_mechanism_or_a_number_of_patients_that_is_not_the_study_s_is_refused(changes: dict[str, Any]) -> None:
    study = make_study(privacy=PRIVATE, strategy={"weighting": "precision"})
    strategy = StudyStrategy(study, SITES, dict(GLOBAL), said_patients=dict.fromkeys(SITES.values(), 30))
    honest = {"patients": 30, "training_loss": None, "spent": SPENT}
    bad = reply_from(11, study, **honest)
    document = TrainReply.model_validate({**_said(study), **honest}).model_dump() | changes
    bad.content["document"] = ConfigRecord({"json": json.dumps(document)})
    arrays, _ = strategy.aggregate_train(
        1, [bad, reply_from(12, study, **honest), reply_from(13, study, update(3.0), **honest)]
    )
    assert arrays is not None
    assert list(strategy.outcome.refused) == ["north"]
    np.testing.assert_allclose(strategy.parameters["head.bias"], 2.0)


def _said(study: Study) -> dict[str, Any]:
    return {"site": "north", "study_hash": study.hash, "round_number": 1, "seconds": None}


def figures_from(node: int, study: Study, **figures: Any) -> Message:
    fields = {"site": SITES[node], "study_hash": study.hash, "round_number": 1, **figures}
    return Message(content(EvaluateReply.model_validate(fields)), reply_to=instruction_to(node, study))


@pytest.mark.parametrize(
    "bad", [{"loss": 1e308}, {"loss": -1e308}, {"metric": 1e308}, {"metric": -0.1}, {"metric": 1.5}]
)
def test_exact_figures_that_cannot_be_are_refused_and_the_others_count(bad: dict[str, float]) -> None:
    study = make_study()
    strategy = strategy_for(study)
    good = {"patients": 20, "loss": 0.5, "metric": 0.75}
    means = strategy.aggregate_evaluate(
        1, [figures_from(11, study, exact={**good, **bad}), figures_from(12, study, exact=good)]
    )
    assert means == {"loss": 0.5, "metric": 0.75}
    assert list(strategy.outcome.refused) == ["north"]


@pytest.mark.parametrize(
    "bad",
    [
        {"sums": (1.7e308,) * 24, "noise_stddev": 1.0},
        {"sums": (-1e200,) * 24, "noise_stddev": 1.0},
        {"sums": (1.0,) * 24, "noise_stddev": 1e308},
        {"sums": (1e-200,) * 24, "noise_stddev": 1e-300},
    ],
)
def test_noisy_figures_that_cannot_be_are_refused_and_the_others_count(bad: dict[str, Any]) -> None:
    study = make_study(privacy=PRIVATE)
    good = {"sums": (20.0,) * 24, "noise_stddev": 1.0}
    strategy = strategy_for(study)
    means = strategy.aggregate_evaluate(1, [figures_from(11, study, noisy=bad), figures_from(12, study, noisy=good)])
    assert means is not None
    assert means["metric"] == pytest.approx(0.5)
    assert list(strategy.outcome.refused) == ["north"]


def test_replies_are_consumed_one_at_a_time() -> None:
    study = make_study()
    strategy = strategy_for(study)
    alive: list[int] = []

    def replies() -> Iterator[Message]:
        for node in SITES:
            alive.append(len(strategy.outcome.trained))
            yield reply_from(node, study)

    strategy.aggregate_train(1, replies())
    assert alive == [0, 1, 2]
