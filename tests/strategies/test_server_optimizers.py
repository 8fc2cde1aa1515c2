"""Server optimisers against their definitions, written out for one number."""

import math

import numpy as np
import pytest

from echofed.protocol.study import ServerOptimizer
from echofed.strategies.server_optimizers import apply_update

UPDATES = [0.5, -0.25, 0.125, 1.0]


def _run(settings: ServerOptimizer) -> float:
    parameters, state = {"x": np.array([1.0], np.float32)}, {}
    for update in UPDATES:
        parameters, state = apply_update(settings, parameters, {"x": np.array([update], np.float32)}, state)
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
    for name in ("sgd", "momentum", "adam", "yogi", "adagrad"):
        parameters = {"x": np.array([1.0, -2.0], np.float32)}
        moved, _ = apply_update(ServerOptimizer(name=name), parameters, {"x": np.zeros(2, np.float32)}, {})
        np.testing.assert_array_equal(moved["x"], parameters["x"])
