"""Server optimisers against their definitions, written out for one number."""

import math

import numpy as np
import pytest

from echofed.protocol.arrays import BLOCK, Parameters, decode_parameters, parts
from echofed.protocol.study import ServerOptimizer
from echofed.strategies.server_optimizers import State, apply_update

UPDATES = [0.5, -0.25, 0.125, 1.0]
NAMES = ("sgd", "momentum", "adam", "yogi", "adagrad")


def _apply(
    settings: ServerOptimizer, parameters: Parameters, update: Parameters, state: State
) -> tuple[Parameters, State]:
    pieces = (
        (name, part, update[name].reshape(-1)[part]) for name in sorted(update) for part in parts(update[name].size)
    )
    buffer, state = apply_update(settings, parameters, pieces, state)
    return decode_parameters(buffer, len(buffer)), state


def _run(settings: ServerOptimizer) -> float:
    parameters, state = {"x": np.array([1.0], np.float32)}, {}
    for update in UPDATES:
        parameters, state = _apply(settings, parameters, {"x": np.array([update], np.float32)}, state)
    return float(parameters["x"][0])


def test_sgd_with_rate_one_is_the_mean_of_models() -> None:
    assert _run(ServerOptimizer(name="sgd")) == pytest.approx(1 + sum(UPDATES))


def test_momentum() -> None:
    x, m = 1.0, 0.0
    for update in UPDATES:
        m = 0.9 * m + update
        x += 0.5 * m
    assert _run(ServerOptimizer(name="momentum", learning_rate=0.5)) == pytest.approx(x, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_adaptive_optimisers_follow_reddi(name: str) -> None:
    settings = ServerOptimizer(name=name, learning_rate=0.1, momentum=0.8, second_momentum=0.9, adaptivity=0.01)
    x, m, v = 1.0, 0.0, 0.01**2
    for update in UPDATES:
        square = update * update
        m = (0.0 if name == "adagrad" else 0.8) * m + (1.0 if name == "adagrad" else 0.2) * update
        v = {
            "adagrad": v + square,
            "adam": 0.9 * v + 0.1 * square,
            "yogi": v - 0.1 * square * math.copysign(1, v - square),
        }[name]
        x += 0.1 * m / (math.sqrt(v) + 0.01)
    assert _run(settings) == pytest.approx(x, rel=1e-5)


def test_zero_update_moves_nothing_at_the_start() -> None:
    for name in NAMES:
        parameters = {"x": np.array([1.0, -2.0], np.float32)}
        moved, _ = _apply(ServerOptimizer(name=name), parameters, {"x": np.zeros(2, np.float32)}, {})
        np.testing.assert_array_equal(moved["x"], parameters["x"])


@pytest.mark.parametrize("name", NAMES)
def test_each_number_moves_alone_whatever_its_place(name: str) -> None:
    rng, settings = np.random.default_rng(0), ServerOptimizer(name=name, learning_rate=0.3)
    shapes = {"small": (), "large": (2, BLOCK + 3)}
    parameters = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    before = {key: array.copy() for key, array in parameters.items()}
    one, last = {"x": parameters["large"][-1:, -1].copy()}, np.index_exp[-1, -1]
    state: State = {}
    one_state: State = {}
    moved = parameters
    for _ in range(3):
        update = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
        moved, state = _apply(settings, moved, update, state)
        one, one_state = _apply(settings, one, {"x": update["large"][-1:, -1]}, one_state)
        assert moved["large"][last] == one["x"][0]
    assert {key: array.shape for key, array in moved.items()} == shapes
    assert state.keys() == one_state.keys()
    assert all(state[slot]["large"][last] == one_state[slot]["x"][0] for slot in state)
    np.testing.assert_array_equal(parameters["large"], before["large"])
