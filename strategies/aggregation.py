"""Means over updates, one update in memory at a time."""

import math
import mmap
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.arrays import parts
from echofed.protocol.messages import TrainReply
from echofed.protocol.study import Study

Piece = tuple[str, slice, NDArray[np.float32]]
"""Some numbers of one array: its name, where they stand in the flat array, and they themselves."""


class StreamingMean:
    """The weighted mean of updates, added one by one and then forgotten.

    Memory is one float64 copy of the parameters, whatever the number of sites. Summing in float64 makes the order of
    arrival irrelevant to about 1e-16, far below the float32 the result is rounded to.

    Args:
        template: arrays of the shapes to expect, by name.
    """

    def __init__(self, template: Mapping[str, NDArray[np.float32]]) -> None:
        numbers = sum(array.size for array in template.values())
        # A mapping of its own and not numpy's memory, for this can be given back piece by piece.
        self._memory = mmap.mmap(-1, max(8 * numbers, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        flat, start = np.frombuffer(self._memory, np.float64, numbers), 0
        self._total: dict[str, NDArray[np.float64]] = {}
        for name in sorted(template):
            self._total[name] = flat[start : start + template[name].size]
            start += template[name].size
        self._weight = 0.0

    def add(self, update: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Add one update, float32 arrays by name, with an aggregation weight above 0."""
        for name, total in self._total.items():
            flat = update[name].reshape(-1)
            for part in parts(flat.size):
                block = flat[part]
                total[part] += block if weight == 1 else np.multiply(block, weight, dtype=np.float64)
        self._weight += weight

    def take(self) -> Iterator[Piece]:
        """Yield the mean of what was added, zeros if the weights add up to nothing, and forget it on the way.

        Arrays come in the order of their names, each in the `parts` of its size.
        """
        scale = 1 / self._weight if self._weight > 0 else 0.0
        taken = 0
        for name, total in self._total.items():
            for part in parts(total.size):
                yield name, part, (total[part] * scale).astype(np.float32)
                taken += total[part].nbytes
                whole_pages = taken - taken % mmap.PAGESIZE
                if whole_pages:
                    self._memory.madvise(mmap.MADV_DONTNEED, 0, whole_pages)


def aggregation_weight(study: Study, reply: TrainReply, size: int) -> float:
    """Return how much a site's update counts, > 0 and finite.

    `precision` weighs by the inverse of the error of a site's mean gradient over the study: m patients that differ by about the
    clipping norm give it 1 / m of its square, privacy noise adds size x (sigma / (q m))^2 a step, and over all steps the mean
    of that. So a small site whose noise outweighs its patients does not spoil the model. Without privacy it is m.

    Args:
        study: names the weighting, and the number of steps.
        reply: the site's, with the number of patients it says unless the weighting is uniform.
        size: number of parameters that travel.

    Raises:
        ArithmeticError: what the site says gives no such weight.
    """
    patients = float(reply.patients or 1)
    if study.strategy.weighting != "precision" or reply.spent is None:
        return patients
    noise = size * (reply.spent.noise_multiplier / reply.spent.sampling_probability) ** 2 / study.steps
    weight = patients**2 / (patients + noise)
    if not 0 < weight < math.inf:
        raise ArithmeticError(f"The weight is {weight}.")
    return weight


def norm(update: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the Euclidean norm over all arrays of an update."""
    total = 0.0
    for array in update.values():
        flat = array.reshape(-1)
        for part in parts(flat.size):
            block = flat[part].astype(np.float64)
            # Not np.dot, which wakes a thread on every core: simulated sites are at work there.
            total += float(np.einsum("i,i->", block, block))
    return math.sqrt(total)
