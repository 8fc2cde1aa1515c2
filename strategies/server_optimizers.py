"""Server optimisers: how the mean update moves the global parameters (Reddi et al. (2021), Alg. 2).

An optimiser is one pure function from (parameters, mean update, state) to (parameters, state); the state is
a dictionary of slots, each shaped like the parameters, so that a checkpoint needs to know nothing about it. All of it works on
each number alone, and so block by block: of a large model, only what is new is in memory as a whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.arrays import Parameters, encode_blocks
from echofed.protocol.mapped_files import release
from echofed.protocol.study import ServerOptimizer
from echofed.strategies.aggregation import Piece

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
    settings: ServerOptimizer, parameters: Parameters, update: Iterable[Piece], state: State
) -> tuple[bytes, State]:
    """Return new global parameters, as the safetensors buffer that will travel, and optimiser state.

    With `sgd` and learning rate 1 the result is the mean of the sites' models (FedAvg; McMahan et al. (2017), Alg. 1).

    Args:
        settings: the study's server optimiser.
        parameters: global parameters, float32 arrays by name; left as they are, and released where they are mapped.
        update: mean of local - global, of the same names and shapes, as `StreamingMean.take` gives it.
        state: what the previous call returned; empty before the first; left as it is and released, too.
    """
    new_state: State = {}

    def moved() -> Iterator[Array]:
        for name, part, mean in update:
            old = parameters[name].reshape(-1)
            slots = {slot: arrays[name].reshape(-1) for slot, arrays in state.items()}
            step, new_slots = _DIRECTIONS[settings.name](
                settings, mean, {slot: flat[part] for slot, flat in slots.items()}
            )
            yield (old[part] + np.float32(settings.learning_rate) * step).astype(np.float32)
            for slot, value in new_slots.items():
                if slot not in new_state:
                    new_state[slot] = _empty_like(parameters)
                new_state[slot][name].reshape(-1)[part] = value
            release(old, *slots.values())

    return encode_blocks(parameters, moved()), new_state


def _empty_like(parameters: Mapping[str, Array]) -> Parameters:
    """Return arrays of the same names and shapes, parts of one: memory that large goes back to the system when dropped."""
    flat, start = np.empty(sum(array.size for array in parameters.values()), np.float32), 0
    arrays: Parameters = {}
    for name, array in parameters.items():
        arrays[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    return arrays
