"""How much privacy mechanisms spend together, and the noise a budget needs.

A mechanism is the Poisson-subsampled Gaussian: each step draws every patient with the same probability, clips what each
patient contributes and adds Gaussian noise. Neighbouring data sets differ by one patient, with all exams, added or removed.
The accountants are Opacus'. Nothing else in `privacy` needs Opacus, and neither it nor SciPy is imported before a number is
asked for.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from echofed.privacy.budget import check_delta, check_epsilon
from echofed.protocol.errors import CalibrationError, PrivacyParameterError

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(float(order) for order in (64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024)),
)
"""Renyi orders: Opacus' own, and larger ones that small epsilons need."""
SEARCH_ORDERS: tuple[float, ...] = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Integer orders are 100 times faster than fractional ones; enough to know where to start searching."""

MAX_GRID_POINTS = 2**21
"""Points the PRV accountant may spread privacy loss over; 2 million take about 2 s and 300 MB."""
MAX_PRIVACY_LOSS = 700.0
"""exp overflows beyond it, and with it the PRV accountant."""
TIGHTNESS = 0.005
"""A calibrated noise spends between (1 - TIGHTNESS) epsilon and epsilon."""
MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 0.01, 1e6


@dataclass(frozen=True)
class Mechanism:
    """Some steps of one Poisson-subsampled Gaussian mechanism.

    Args:
        noise_multiplier: standard deviation of the noise over the most one patient can change the sum by, > 0, finite.
        sampling_probability: in (0, 1]; 1 draws every patient.
        steps: >= 0.

    Raises:
        PrivacyParameterError: an argument is outside its range.
    """

    noise_multiplier: float
    sampling_probability: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyParameterError(
                f"The noise multiplier is {self.noise_multiplier}.", "Use a finite noise multiplier above 0."
            )
        if not 0 < self.sampling_probability <= 1:
            raise PrivacyParameterError(
                f"The sampling probability is {self.sampling_probability}.", "Use a probability above 0 and up to 1."
            )
        if self.steps < 0:
            raise PrivacyParameterError(f"The number of steps is {self.steps}.", "Use a number of steps of 0 or more.")


def epsilon_spent(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return an upper bound on the epsilon that mechanisms on the same patients spend together.

    Where every step draws every patient it is the exact curve of one Gaussian mechanism (Balle and Wang (2018), Th. 8).
    Else it is the smaller of two valid bounds: `prv_epsilon` and `rdp_epsilon`. Mechanisms may have been chosen one after
    the other, each in sight of what the earlier ones gave, as long as their number and noise were fixed beforehand.
    No step spends nothing. The order does not matter.

    Args:
        mechanisms: all that touched the patients.
        delta: in (0, 1).

    Raises:
        PrivacyParameterError: delta is outside its range.
    """
    check_delta(delta)
    merged = _merged(mechanisms)
    if not merged:
        return 0.0
    if len(merged) == 1 and merged[0].sampling_probability == 1:
        return _gaussian_epsilon(math.sqrt(merged[0].steps) / merged[0].noise_multiplier, delta)
    return _subsampled_epsilon(merged, delta)


def rdp_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return the bound of Renyi differential privacy (Mironov et al. (2019)); never far off, and always to be had.

    Args:
        mechanisms: as for `epsilon_spent`.
        delta: in (0, 1).
    """
    return _rdp_epsilon(_merged(mechanisms), delta, ORDERS)


def prv_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float | None:
    """Return the bound of numerical composition (Gopi et al. (2021)), about 0.01 above the truth (0.25% below epsilon 4).

    None where its grid would exceed MAX_GRID_POINTS or its exponentials overflow.

    Args:
        mechanisms: as for `epsilon_spent`.
        delta: in (0, 1).
    """
    return _prv_epsilon(_merged(mechanisms), delta)


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_probability: float, steps: int, beside: Sequence[Mechanism] = ()
) -> float:
    """Return the least noise multiplier, to 4 digits, with which `steps` steps spend at most epsilon.

    The value returned has itself been passed through `epsilon_spent`: it spends no more than epsilon, and no less than
    (1 - TIGHTNESS) epsilon unless the accountant jumps there or MIN_NOISE_MULTIPLIER already does.

    Args:
        epsilon: finite, > 0.
        delta: in (0, 1).
        sampling_probability: in (0, 1].
        steps: steps of the whole study, rounds x local steps, >= 1.
        beside: other mechanisms on the same patients that the same epsilon must cover.

    Raises:
        PrivacyParameterError: an argument is outside its range.
        CalibrationError: even MAX_NOISE_MULTIPLIER spends more than epsilon.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if steps == 0:
        raise PrivacyParameterError("There is no step to add noise to.", "Calibrate for at least one step.")
    return _noise_multiplier_for(epsilon, delta, sampling_probability, steps, tuple(beside))


@lru_cache(maxsize=256)
def _noise_multiplier_for(
    epsilon: float, delta: float, sampling_probability: float, steps: int, beside: tuple[Mechanism, ...]
) -> float:
    def together(noise_multiplier: float) -> list[Mechanism]:
        return [*beside, Mechanism(noise_multiplier, sampling_probability, steps)]

    def spent(noise_multiplier: float) -> float:
        return epsilon_spent(together(noise_multiplier), delta)

    def roughly_spent(noise_multiplier: float) -> float:
        return _rdp_epsilon(_merged(together(noise_multiplier)), delta, SEARCH_ORDERS)

    return _least_noise(spent, epsilon, _bisect(roughly_spent, epsilon))


def _merged(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Return the same mechanisms with equal steps counted together, and all that draw every patient as one Gaussian."""
    # fsum rounds once, so that the order does not show in the last digit.
    gaussian = math.fsum(one.steps / one.noise_multiplier**2 for one in mechanisms if one.sampling_probability == 1)
    steps: Counter[tuple[float, float]] = Counter()
    for one in mechanisms:
        if one.sampling_probability < 1 and one.steps:
            steps[one.noise_multiplier, one.sampling_probability] += one.steps
    merged = [Mechanism(*of, count) for of, count in sorted(steps.items())]
    if gaussian:
        merged.append(Mechanism(1 / math.sqrt(gaussian), 1.0, 1))
    return tuple(merged)


@lru_cache(maxsize=1024)
def _subsampled_epsilon(merged: tuple[Mechanism, ...], delta: float) -> float:
    rdp, prv = _rdp_epsilon(merged, delta, ORDERS), _prv_epsilon(merged, delta)
    return rdp if prv is None else min(rdp, prv)


def _gaussian_epsilon(sensitivity_over_noise: float, delta: float) -> float:
    """Solve the exact privacy curve of a Gaussian mechanism for epsilon, rounded up."""
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    mu = sensitivity_over_noise

    def excess(epsilon: float) -> float:
        above = ndtr(mu / 2 - epsilon / mu)
        return float(above - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    high = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # zero-concentrated privacy, always enough
    tolerance = 1e-9 * max(high, 1.0)
    return float(brentq(excess, 0.0, high, xtol=tolerance)) + 2 * tolerance


def _rdp_epsilon(merged: Sequence[Mechanism], delta: float, orders: Sequence[float]) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _history(merged)
    with warnings.catch_warnings():
        # At the first or last order the bound is looser than it could be, and no less valid.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(orders))))


def _prv_epsilon(merged: Sequence[Mechanism], delta: float) -> float | None:
    import numpy as np
    from opacus.accountants import PRVAccountant

    if not merged:
        return 0.0
    steps = sum(one.steps for one in merged)
    rough = _rdp_epsilon(merged, delta, SEARCH_ORDERS)
    error, delta_error = min(max(rough / 400, 1e-3), 1e-2), delta / 1000
    largest_loss = 3 + max(
        _rdp_epsilon(merged, delta_error / 4, SEARCH_ORDERS),
        *(_rdp_epsilon([replace(one, steps=1)], delta_error / (8 * steps), SEARCH_ORDERS) for one in merged),
    )
    mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
    if largest_loss > MAX_PRIVACY_LOSS or 2 * largest_loss / mesh > MAX_GRID_POINTS:
        return None
    accountant = PRVAccountant()
    accountant.history = _history(merged)
    # Its formula takes log(1 - q), which is -infinity, rightly, for a mechanism that draws every patient.
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # The orders only bound the grid here.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return max(0.0, float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error)))


def _history(merged: Sequence[Mechanism]) -> list[tuple[float, float, int]]:
    return [(one.noise_multiplier, one.sampling_probability, one.steps) for one in merged]


def _bisect(spent: Callable[[float], float], epsilon: float) -> float:
    """Return the noise multiplier at which a decreasing curve crosses epsilon, within 1%."""
    low, high = math.log(MIN_NOISE_MULTIPLIER), math.log(MAX_NOISE_MULTIPLIER)
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(math.exp(middle)) > epsilon else (low, middle)
    return math.exp(high)


def _least_noise(spent: Callable[[float], float], epsilon: float, start: float) -> float:
    """Search for the noise by secants between logarithms, where the curve is nearly straight, inside a shrinking bracket."""
    low, high = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    noise, slope = _round_up(start), -1.0
    previous: tuple[float, float] | None = None
    while high > low * (1 + 1e-3):
        log_ratio = math.log(max(spent(noise), 1e-12) / epsilon)
        if -TIGHTNESS <= log_ratio <= 0:
            return noise
        low, high = (noise, high) if log_ratio > 0 else (low, noise)
        if previous is not None and previous[0] != noise:
            slope = min(-0.2, (log_ratio - previous[1]) / math.log(noise / previous[0]))
        previous = (noise, log_ratio)
        noise = _round_up(noise * math.exp((-TIGHTNESS / 2 - log_ratio) / slope))
        if not low < noise < high:
            noise = _round_up(math.sqrt(low * high))
        if noise >= high:
            break
    if spent(high) > epsilon:
        raise CalibrationError(f"Even a noise multiplier of {high:g} spends more than epsilon {epsilon:g}.")
    return high


def _round_up(noise_multiplier: float) -> float:
    """Round up to 4 significant digits."""
    unit = 10.0 ** (math.floor(math.log10(noise_multiplier)) - 3)
    return float(f"{math.ceil(noise_multiplier / unit) * unit:.12g}")
