"""The least noise with which a site can possibly keep a study's epsilon, without an accountant."""

import math
from functools import lru_cache

from echofed.protocol.messages import LEAST_NOISE, MOST_NOISE
from echofed.protocol.study import Study

_BINS = 64
_THRESHOLDS = tuple(step / 4 for step in range(148))
"""In standard deviations; the tail beyond 37 of them is no double any more."""
_LARGEST_EPSILON = 700.0
"""exp overflows beyond it."""


def least_noise(study: Study, delta: float) -> float:
    """Return a noise multiplier below which the study's steps cannot be (epsilon, delta)-private, 0 if none is known.

    An attacker who sees the sum of all noisy steps and asks whether it exceeds a threshold is right more often than epsilon and
    delta allow (Dwork and Roth (2014), Def. 2.4), so no honest calibration goes below it; how far one lies above depends on
    the study. Less noise never protects better.

    Args:
        study: private.
        delta: of the site, in (0, 1).
    """
    assert study.privacy.epsilon is not None, "only a private study has noise"
    return _least_noise(study.privacy.epsilon, delta, study.training.sampling_probability, study.steps)


@lru_cache(maxsize=1024)
def _least_noise(epsilon: float, delta: float, probability: float, steps: int) -> float:
    times = _times_drawn(probability, steps)
    if epsilon > _LARGEST_EPSILON or not _tells(times, LEAST_NOISE * math.sqrt(steps), epsilon, delta):
        return 0.0
    low, high = LEAST_NOISE, MOST_NOISE
    while high > low * 1.002:
        middle = math.sqrt(low * high)
        if _tells(times, middle * math.sqrt(steps), epsilon, delta):
            low = middle
        else:
            high = middle
    return low


def _tells(times: list[tuple[int, float]], stddev: float, epsilon: float, delta: float) -> bool:
    """Return whether some threshold on the sum tells a patient's presence better than epsilon and delta allow."""
    for threshold in _THRESHOLDS:
        present = sum(chance * _above(threshold - drawn / stddev) for drawn, chance in times)
        if present > math.exp(epsilon) * _above(threshold) + 1.001 * delta:
            return True
    return False


def _above(deviations: float) -> float:
    return math.erfc(deviations / math.sqrt(2)) / 2


def _times_drawn(probability: float, steps: int) -> list[tuple[int, float]]:
    """Return how often a patient is drawn, a binomial number rounded down to at most 64 values, and with what chance."""
    if probability == 1:
        return [(steps, 1.0)]
    mean, spread = steps * probability, 6 * math.sqrt(steps * probability * (1 - probability)) + 1
    first, last = max(0, math.floor(mean - spread)), min(steps, math.ceil(mean + spread))
    width = (last - first) // _BINS + 1
    return [
        (start, sum(_chance(k, probability, steps) for k in range(start, min(start + width, last + 1))))
        for start in range(first, last + 1, width)
    ]


def _chance(drawn: int, probability: float, steps: int) -> float:
    ways = math.lgamma(steps + 1) - math.lgamma(drawn + 1) - math.lgamma(steps - drawn + 1)
    return math.exp(ways + drawn * math.log(probability) + (steps - drawn) * math.log1p(-probability))
