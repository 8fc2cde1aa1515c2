"""Poisson sampling of patients: the sampling the accountants assume."""

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.errors import PrivacyParameterError


def poisson_sample(patients: int, probability: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw each patient independently with the same probability.

    The batch's size is random and may be 0; fixing it would void the accounting. Which patients were drawn must stay
    secret, as privacy amplification rests on it.

    Args:
        patients: number of patients, >= 0.
        probability: in (0, 1]; 1 draws all.
        rng: source of randomness; seeded from the operating system in deployment.

    Returns:
        Positions of the patients drawn, int64, ascending.

    Raises:
        PrivacyParameterError: the probability is outside (0, 1].
    """
    if not 0 < probability <= 1:
        raise PrivacyParameterError(
            f"The sampling probability is {probability}.", "Use a probability above 0 and up to 1."
        )
    return np.flatnonzero(rng.random(patients) < probability).astype(np.int64)
