"""Means over updates, one update in memory at a time."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.arrays import Parameters
from echofed.protocol.messages import TrainReply
from echofed.protocol.study import Study


class StreamingMean:
    """The weighted mean of updates, added one by one and then forgotten.

    Memory is one float64 copy of the parameters, whatever the number of sites. Summing in float64 makes the order of
    arrival irrelevant to about 1e-16, far below the float32 the result is rounded to.

    Args:
        template: arrays of the shapes to expect, by name.
    """

    def __init__(self, template: Mapping[str, NDArray[np.float32]]) -> None:
        self._total = {name: np.zeros(array.shape, np.float64) for name, array in template.items()}
        self._weight = 0.0

    def add(self, update: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Add one update, float32 arrays by name, with an aggregation weight above 0."""
        for name, total in self._total.items():
            total += update[name] if weight == 1 else np.multiply(update[name], weight, dtype=np.float64)
        self._weight += weight

    def mean(self) -> Parameters:
        """Return the mean of what was added; zeros if the weights add up to nothing."""
        scale = 1 / self._weight if self._weight > 0 else 0.0
        return {name: (total * scale).astype(np.float32) for name, total in self._total.items()}


def aggregation_weight(study: Study, reply: TrainReply, size: int) -> float:
    """Return how much a site's update counts, > 0.

    `precision` weighs by the inverse of the error of a site's mean gradient over the study: m patients that differ by about the
    clipping norm give it 1 / m of its square, privacy noise adds size x (sigma / (q m))^2 a step, and over all steps the mean
    of that. So a small site whose noise outweighs its patients does not spoil the model. Without privacy it is m.

    Args:
        study: names the weighting, and the number of steps.
        reply: the site's, with the number of patients it says unless the weighting is uniform.
        size: number of parameters that travel.
    """
    patients = float(reply.patients or 1)
    if study.strategy.weighting != "precision" or reply.spent is None:
        return patients
    noise = size * (reply.spent.noise_multiplier / reply.spent.sampling_probability) ** 2 / study.steps
    return patients**2 / (patients + noise)


def norm(update: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the Euclidean norm over all arrays of an update."""
    flat = np.concatenate([array.ravel() for array in update.values()], dtype=np.float64)
    # Not np.dot, which wakes a thread on every core: simulated sites are at work there.
    return math.sqrt(float(np.einsum("i,i->", flat, flat)))
