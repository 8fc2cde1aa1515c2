"""Gaussian noise on integers, exact but for a term smaller than anything accounted.

Adding floating-point noise to a floating-point number betrays the number: only some sums can be reached from it (Mironov
(2012)), and sums of floats are not associative, so that even their sensitivity is not what it seems (Casacuberta et al.
(2022)). Here everything before the release is an integer. What is drawn is a real Gaussian rounded to the nearest integer;
as the sum it is added to is an integer too, the outcome is the Gaussian mechanism of the textbook followed by rounding, and
rounding what has been released costs nothing. The accountants' numbers hold as they stand.
"""

import numpy as np
from numpy.typing import NDArray

from echofed.privacy.randomness import Words

RELATIVE_ERROR = 1e-13
"""Bound on the error of SciPy's `ndtri` and of what is computed around it, about 100 times what is seen (and tested)."""
DIGITS = 60
"""Decimal digits with which doubtful draws are worked out."""
DRAWN_AT_ONCE = 2**18


def gaussian_integers(words: Words, count: int, stddev: float) -> NDArray[np.float64]:
    """Draw integers, each a Gaussian of mean 0 rounded to the nearest.

    One 64-bit word fixes a sign and a tail probability to 2^-64, and so an interval the Gaussian lies in. Where rounding is the
    same over the interval, widened by the bound on all errors, it is done; else (a few in a million) 64 more bits are drawn
    and the quantile is worked out to 60 digits. What is left is a chance below 2^-60 that one of these few is off by one.

    Args:
        words: the source of randomness.
        count: number of draws, >= 0.
        stddev: standard deviation, in (0, 2^26]; no draw is more than 14 times as large.

    Returns:
        whole numbers, float64 [count].
    """
    parts = [_draw(words, min(DRAWN_AT_ONCE, count - start), stddev) for start in range(0, count, DRAWN_AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _draw(words: Words, count: int, stddev: float) -> NDArray[np.float64]:
    from scipy.special import ndtri

    drawn = words(count)
    cells = drawn >> np.uint64(1)
    # The middle of the cell [cell, cell + 1) of 2^63, halved: the probability of a larger draw on the same side.
    size = -ndtri((cells.astype(np.float64) + 0.5) * 2.0**-64)
    density = np.exp(-(size**2) / 2) / np.sqrt(2 * np.pi)
    error = stddev * (2.0**-64 / density + RELATIVE_ERROR * (1 + size))
    size *= stddev
    rounded = np.rint(size)
    for place in np.flatnonzero(0.5 - np.abs(size - rounded) <= error):
        rounded[place] = _rounded_quantile(int(cells[place]), int(words(1)[0]), stddev)
    signed: NDArray[np.float64] = np.where(drawn & np.uint64(1), -rounded, rounded)
    return signed


def _rounded_quantile(cell: int, more: int, stddev: float) -> float:
    """Round the quantile whose tail probability has the bits of `cell`, then those of `more`."""
    from mpmath import erfinv, mp, mpf, nint, sqrt

    with mp.workdps(DIGITS):
        tail = (mpf(cell) * 2**64 + more + mpf(0.5)) / mpf(2) ** 127
        return float(nint(mpf(stddev) * sqrt(2) * erfinv(1 - tail)))
