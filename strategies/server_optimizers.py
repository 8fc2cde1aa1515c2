"""Server optimisers: how the mean update moves the global parameters (Reddi et al. (2021), Alg. 2).

An optimiser is one pure function from (parameters, mean update, state) to (parameters, state); the state is
a dictionary of slots, each shaped like the parameters, so that a checkpoint needs to know nothing about it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.arrays import Parameters
from echofed.protocol.study import ServerOptimizer

Array = NDArray[np.float32]
State = dict[str, Parameters]
"""Slots by name ("first", "second"), each with one array a parameter; empty before the first round."""
Slots = dict[str, Array]


def _sgd(settings: ServerOptimizer, update: Array, slots: Slots) -> tuple[Array, Slots]:
    return update, {}


def _momentum(settings: ServerOptimizer, update: Array, slots: Slots) -> tuple[Array, Slots]:
    first: Array = update + np.float32(settings.momentum) * slots.get("first", np.zeros_like(update))
    return first, {"first": first}


def _adaptive(
    second_moment: Callable[[ServerOptimizer, Array, Array], Array],
    settings: ServerOptimizer,
    update: Array,
    slots: Slots,
    momentum: float,
) -> tuple[Array, Slots]:
    # Both moments start as in the paper: the first at zero, the second at tau squared.
    first: Array = np.float32(momentum) * slots.get("first", np.zeros_like(update)) + np.float32(1 - momentum) * update
    second = second_moment(settings, update * update, slots.get("second", np.full_like(update, settings.adaptivity**2)))
    step: Array = np.divide(first, np.sqrt(second) + np.float32(settings.adaptivity), dtype=np.float32)
    return step, {"first": first, "second": second}


def _adam(settings: ServerOptimizer, update: Array, slots: Slots) -> tuple[Array, Slots]:
    def second(s: ServerOptimizer, square: Array, v: Array) -> Array:
        return s.second_momentum * v + (1 - s.second_momentum) * square

    return _adaptive(second, settings, update, slots, settings.momentum)


def _yogi(settings: ServerOptimizer, update: Array, slots: Slots) -> tuple[Array, Slots]:
    def second(s: ServerOptimizer, square: Array, v: Array) -> Array:
        result: Array = v - (1 - s.second_momentum) * square * np.sign(v - square)
        return result

    return _adaptive(second, settings, update, slots, settings.momentum)


def _adagrad(settings: ServerOptimizer, update: Array, slots: Slots) -> tuple[Array, Slots]:
    return _adaptive(lambda s, square, v: v + square, settings, update, slots, 0.0)


_DIRECTIONS: dict[str, Callable[[ServerOptimizer, Array, Slots], tuple[Array, Slots]]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "yogi": _yogi,
    "adagrad": _adagrad,
}


def apply_update(
    settings: ServerOptimizer, parameters: Parameters, update: Parameters, state: State
) -> tuple[Parameters, State]:
    """Return new global parameters and optimiser state.

    With `sgd` and learning rate 1 the result is the mean of the sites' models (FedAvg; McMahan et al. (2017), Alg. 1).

    Args:
        settings: the study's server optimiser.
        parameters: global parameters, float32 arrays by name.
        update: mean of local - global, same names and shapes.
        state: what the previous call returned; empty before the first.
    """
    direction = _DIRECTIONS[settings.name]
    moved: Parameters = {}
    new_state: State = {}
    for name, array in parameters.items():
        slots = {slot: arrays[name] for slot, arrays in state.items()}
        step, new_slots = direction(settings, update[name], slots)
        moved[name] = (array + np.float32(settings.learning_rate) * step).astype(np.float32)
        for slot, value in new_slots.items():
            new_state.setdefault(slot, {})[name] = value.astype(np.float32)
    return moved, new_state
