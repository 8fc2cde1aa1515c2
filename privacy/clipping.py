"""Sums over patients to which nobody contributes more than agreed, released with noise."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echofed.privacy.noise import gaussian_integers
from echofed.privacy.randomness import Words
from echofed.protocol.errors import PrivacyParameterError

Float = NDArray[np.float32] | NDArray[np.float64]

NOISE_UNITS = 2.0**24
"""Standard deviation of the noise, in the units all is rounded to: rounding adds 3e-16 of its variance."""
MARGIN = 1 - 2.0**-20
"""A contribution is scaled to this much of the bound, so that no error of arithmetic takes it beyond."""
SMALLEST_NORM = 2.0**-100
"""Below about 2^-500 squares vanish in float64, and with them what makes a contribution too long."""
LARGEST_SUM = 2.0**53
"""Up to here float64 holds every integer, so sums are exact and their order does not matter."""
BLOCK = 2**15
"""Numbers worked on at once, so that they stay in the processor's cache."""


class NoisySum:
    """The Gaussian mechanism: a sum of patients' contributions, each clipped, released once with noise.

    Guarantee: one patient added or removed, whatever the contribution, changes the sum by at most the clipping norm C in L2
    norm, exactly: a contribution is scaled to norm C or less, then cut towards 0 to whole units, which cannot lengthen it. The
    noise is a Gaussian of standard deviation noise_multiplier x C rounded to whole units (`noise.gaussian_integers`), so the
    release is Mechanism(noise_multiplier, q, 1) of `accounting`, q being the probability with which patients were drawn.
    (Replacing one patient by another changes the sum by up to 2 C.) Dwork and Roth (2014), App. A; Abadi et al. (2016), Alg. 1.

    Edge cases: a contribution of zero stays zero. One that holds NaN or infinity, or whose norm overflows float64, counts as
    zero: an error in its place would tell that the patient took part. Without any contribution the release is noise.

    Args:
        sizes: numbers in each part of a contribution.
        clipping_norm: C >= 2^-100.
        noise_multiplier: standard deviation of the noise over C, >= 2^-16.

    Raises:
        PrivacyParameterError: the clipping norm or the noise is out of range.
    """

    def __init__(self, sizes: Sequence[int], clipping_norm: float, noise_multiplier: float) -> None:
        if not (math.isfinite(clipping_norm) and clipping_norm >= SMALLEST_NORM):
            raise PrivacyParameterError(
                f"The clipping norm is {clipping_norm}.", "Use a finite norm of 2^-100 or more."
            )
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 2.0**-16):
            raise PrivacyParameterError(f"The noise multiplier is {noise_multiplier}.", "Use 2^-16 or more.")
        self._unit = clipping_norm * noise_multiplier / NOISE_UNITS
        self._largest = MARGIN * clipping_norm
        self._at_most = int(LARGEST_SUM * noise_multiplier / NOISE_UNITS)
        self._sums = [np.zeros(size) for size in sizes]
        self._patients = 0
        self.left_out = 0
        """Contributions that were not finite; for the site's own log."""

    def add(self, contributions: Sequence[Float]) -> None:
        """Add some patients' contributions.

        Args:
            contributions: for each part, float [patients, size].

        Raises:
            PrivacyParameterError: so many patients that the sum would not be exact, or a part of another size.
        """
        patients = len(contributions[0])
        if [part.shape for part in contributions] != [(patients, len(total)) for total in self._sums]:
            raise PrivacyParameterError("The contributions do not have the sizes agreed, or were already released.")
        self._patients += patients
        if self._patients > self._at_most:
            raise PrivacyParameterError(f"{self._patients} patients are too many for so little noise.")
        scales = self._scales(contributions)
        for total, part in zip(self._sums, contributions, strict=True):
            block = max(1, BLOCK // max(1, patients))
            for start in range(0, len(total), block):
                with np.errstate(invalid="ignore"):
                    units = part[:, start : start + block] * scales
                # Infinity times zero is NaN: whoever is left out is written as zero.
                units[scales[:, 0] == 0] = 0
                total[start : start + block] += np.trunc(units, out=units).sum(axis=0)

    def release(self, words: Words) -> list[NDArray[np.float64]]:
        """Return the noisy sum of each part, float64 [size]; to be called once, as a second release would cost as much again.

        Args:
            words: where the noise comes from.
        """
        sums, self._sums = self._sums, []
        return [(total + gaussian_integers(words, len(total), NOISE_UNITS)) * self._unit for total in sums]

    def _scales(self, contributions: Sequence[Float]) -> NDArray[np.float64]:
        """Return what each patient's numbers are multiplied by, float64 [patients, 1]; 0 if they are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(sum(_squared_norms(part) for part in contributions))
        finite = np.isfinite(norms)
        self.left_out += int((~finite).sum())
        lengths = np.maximum(np.where(finite, norms, 1.0), self._largest)
        scales: NDArray[np.float64] = np.where(finite, self._largest / lengths / self._unit, 0.0)
        return scales[:, None]


def _squared_norms(part: Float) -> NDArray[np.float64]:
    """Return the squared norm of each row, summed in float64: relative error below size x 2^-53."""
    block = max(1, BLOCK // max(1, len(part)))
    total = np.zeros(len(part))
    for start in range(0, part.shape[1], block):
        numbers = part[:, start : start + block].astype(np.float64)
        total += np.einsum("ij,ij->i", numbers, numbers)
    return total
