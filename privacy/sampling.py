"""Poisson sampling of patients: the sampling the accountants assume."""

import numpy as np
from numpy.typing import NDArray

from echofed.privacy.randomness import Words
from echofed.protocol.errors import PrivacyParameterError


def poisson_sample(patients: int, probability: float, words: Words) -> NDArray[np.int64]:
    """Draw each patient independently with the same probability.

    The batch's size is random and may be 0; fixing it would void the accounting. Which patients were drawn must stay
    secret, as privacy amplification rests on it. The probability used is `probability` rounded down to a multiple of 2^-64,
    so never above what is accounted.

    Args:
        patients: number of patients, >= 0.
        probability: in (0, 1]; 1 draws all.
        words: one is taken for each patient, unless all are drawn.

    Returns:
        Positions of the patients drawn, int64, ascending.

    Raises:
        PrivacyParameterError: the probability is outside (0, 1].
    """
    if not 0 < probability <= 1:
        raise PrivacyParameterError(
            f"The sampling probability is {probability}.", "Use a probability above 0 and up to 1."
        )
    if probability == 1:
        return np.arange(patients, dtype=np.int64)
    return np.flatnonzero(words(patients) < np.uint64(int(probability * 2.0**64)))
