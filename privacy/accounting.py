"""How much privacy a study spends, and the noise a budget needs.

The mechanism is the Poisson-subsampled Gaussian: each step draws every patient with the same probability, clips each
patient's gradient and adds Gaussian noise; neighbouring data sets differ by one patient added or removed. The accountants
are Opacus'. Nothing else in `privacy` needs Opacus or SciPy, and both are imported only when a number is asked for.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from echofed.privacy.budget import check_delta, check_epsilon
from echofed.protocol.errors import CalibrationError, PrivacyParameterError

Accountant = Literal["prv", "rdp"]

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


@lru_cache(maxsize=1024)
def epsilon_spent(
    noise_multiplier: float, sampling_probability: float, steps: int, delta: float, accountant: Accountant = "prv"
) -> float:
    """Return an upper bound on the epsilon spent by `steps` steps.

    `prv` is Gopi et al. (2021), within 0.01 (0.25% below epsilon 4); it gives way to `rdp` (Mironov et al. (2019)), larger but
    as valid, where its grid would exceed MAX_GRID_POINTS or its exponentials overflow. If every step draws every patient,
    `prv` is the exact curve of one Gaussian mechanism (Balle and Wang (2018), Th. 8). No step spends nothing.

    Args:
        noise_multiplier: standard deviation of the noise over the clipping norm, > 0, finite.
        sampling_probability: in (0, 1].
        steps: number of steps, >= 0.
        delta: in (0, 1).
        accountant: "prv" or "rdp".

    Raises:
        PrivacyParameterError: an argument is outside its range.
    """
    _check_mechanism(sampling_probability, steps, accountant)
    check_delta(delta)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PrivacyParameterError(
            f"The noise multiplier is {noise_multiplier}.", "Use a finite noise multiplier above 0."
        )
    if steps == 0:
        return 0.0
    if accountant == "prv" and sampling_probability == 1:
        return _gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    if accountant == "prv":
        epsilon = _prv_epsilon(noise_multiplier, sampling_probability, steps, delta)
        if epsilon is not None:
            return epsilon
    return _rdp_epsilon(noise_multiplier, sampling_probability, steps, delta, ORDERS)


@lru_cache(maxsize=256)
def noise_multiplier_for(
    epsilon: float, delta: float, sampling_probability: float, steps: int, accountant: Accountant = "prv"
) -> float:
    """Return the least noise multiplier, to 4 digits, with which `steps` steps spend at most epsilon.

    The value returned has itself been passed through `epsilon_spent`: it spends no more than epsilon, and no less than
    (1 - TIGHTNESS) epsilon unless the accountant jumps there or MIN_NOISE_MULTIPLIER already does.

    Args:
        epsilon: finite, > 0.
        delta: in (0, 1).
        sampling_probability: in (0, 1].
        steps: steps of the whole study, rounds x local steps, >= 1.
        accountant: "prv" or "rdp".

    Raises:
        PrivacyParameterError: an argument is outside its range.
        CalibrationError: even MAX_NOISE_MULTIPLIER spends more than epsilon.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    _check_mechanism(sampling_probability, steps, accountant)
    if steps == 0:
        raise PrivacyParameterError("There is no step to add noise to.", "Calibrate for at least one step.")

    def spent(noise_multiplier: float) -> float:
        return epsilon_spent(noise_multiplier, sampling_probability, steps, delta, accountant)

    def roughly_spent(noise_multiplier: float) -> float:
        return _rdp_epsilon(noise_multiplier, sampling_probability, steps, delta, SEARCH_ORDERS)

    return _least_noise(spent, epsilon, _bisect(roughly_spent, epsilon))


def _check_mechanism(sampling_probability: float, steps: int, accountant: str) -> None:
    if not 0 < sampling_probability <= 1:
        raise PrivacyParameterError(
            f"The sampling probability is {sampling_probability}.", "Use a probability above 0 and up to 1."
        )
    if steps < 0:
        raise PrivacyParameterError(f"The number of steps is {steps}.", "Use a number of steps of 0 or more.")
    if accountant not in ("prv", "rdp"):
        raise PrivacyParameterError(f"There is no accountant '{accountant}'.", "Use prv or rdp.")


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


def _rdp_epsilon(
    noise_multiplier: float, sampling_probability: float, steps: int, delta: float, orders: Sequence[float]
) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sampling_probability, steps)]
    with warnings.catch_warnings():
        # At the first or last order the bound is looser than it could be, and no less valid.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(orders))))


def _prv_epsilon(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float | None:
    """Return the PRV bound, or None where the grid it needs cannot be afforded."""
    from opacus.accountants import PRVAccountant

    mechanism = (noise_multiplier, sampling_probability)
    rough = _rdp_epsilon(*mechanism, steps, delta, SEARCH_ORDERS)
    error, delta_error = min(max(rough / 400, 1e-3), 1e-2), delta / 1000
    largest_loss = 3 + max(
        _rdp_epsilon(*mechanism, steps, delta_error / 4, SEARCH_ORDERS),
        _rdp_epsilon(*mechanism, 1, delta_error / (8 * steps), SEARCH_ORDERS),
    )
    mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
    if largest_loss > MAX_PRIVACY_LOSS or 2 * largest_loss / mesh > MAX_GRID_POINTS:
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sampling_probability, steps)]
    with warnings.catch_warnings():
        # The orders only bound the grid here.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return max(0.0, float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error)))


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
