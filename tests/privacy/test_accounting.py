"""The accountants against others, against quadrature, and against themselves."""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.rdp import rdp_privacy_accountant
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from echofed.privacy.accounting import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    ORDERS,
    TIGHTNESS,
    Mechanism,
    epsilon_spent,
    noise_multiplier_for,
    prv_epsilon,
    rdp_epsilon,
)
from echofed.protocol.errors import CalibrationError, PrivacyParameterError

# (noise multiplier, sampling probability, steps)
SUBSAMPLED = [(1.2, 0.1, 500)]
TINY_SAMPLES = [(0.6, 0.01, 200)]
TWO_STUDIES = [(20.0, 1.0, 300), (1.2, 0.1, 100)]
COUNT_AND_TRAINING = [(10.0, 1.0, 1), (2.0, 0.3, 100)]
THREE_KINDS = [(3.0, 0.5, 100), (1.0, 0.05, 50), (1.5, 0.2, 10)]
FULL_BATCHES = [(5.0, 1.0, 10), (3.0, 1.0, 4)]
ALL = [SUBSAMPLED, TINY_SAMPLES, TWO_STUDIES, COUNT_AND_TRAINING, THREE_KINDS, FULL_BATCHES]


def mechanisms(*parts: tuple[float, float, int]) -> list[Mechanism]:
    return [Mechanism(*part) for part in parts]


def as_event(composed: Sequence[Mechanism]) -> dp_event.DpEvent:
    """Return the same composition in the words of dp-accounting."""
    events = []
    for one in composed:
        gaussian = dp_event.GaussianDpEvent(one.noise_multiplier)
        sampled = dp_event.PoissonSampledDpEvent(one.sampling_probability, gaussian)
        events.append(dp_event.SelfComposedDpEvent(gaussian if one.sampling_probability == 1 else sampled, one.steps))
    return dp_event.ComposedDpEvent(events)


def pld_epsilon(composed: Sequence[Mechanism], delta: float) -> float:
    accountant = pld_privacy_accountant.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(as_event(composed))
    return float(accountant.get_epsilon(delta))


def quadrature_epsilon(composed: Sequence[Mechanism], delta: float, orders: Sequence[float]) -> float:
    """Integrate each Renyi divergence (Mironov et al. (2019), eq. 2) and convert (Balle et al. (2020), Th. 21)."""
    best = math.inf
    for order in orders:
        divergence = 0.0
        for one in composed:
            x = np.linspace(-15, 15, 200_001) * one.noise_multiplier + order * np.linspace(0, 1, 200_001)
            ratio = np.logaddexp(
                np.log1p(-one.sampling_probability) if one.sampling_probability < 1 else -np.inf,
                np.log(one.sampling_probability) + (2 * x - 1) / (2 * one.noise_multiplier**2),
            )
            integrand = np.exp(order * ratio + norm.logpdf(x, scale=one.noise_multiplier))
            divergence += one.steps * math.log(np.trapezoid(integrand, x)) / (order - 1)
        converted = divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, converted)
    return best


@pytest.mark.parametrize("parts", ALL)
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_what_is_spent_is_what_dp_accountings_pld_says(parts: list[tuple[float, float, int]], delta: float) -> None:
    composed = mechanisms(*parts)
    other, numerical, spent = pld_epsilon(composed, delta), prv_epsilon(composed, delta), epsilon_spent(composed, delta)
    assert numerical is not None
    # Neither is below the truth, and ours gives the error of its grid on top.
    assert other - 1e-5 <= spent <= numerical <= other + 0.012
    assert spent == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("parts", ALL)
def test_renyi_bounds_are_those_of_opacus_and_dp_accounting(parts: list[tuple[float, float, int]]) -> None:
    composed, delta = mechanisms(*parts), 1e-5
    ours = rdp_epsilon(composed, delta)
    # dp-accounting leaves out some orders near 1, for which its series does not converge.
    other = rdp_privacy_accountant.RdpAccountant(list(ORDERS))
    other.compose(as_event(composed))
    assert other.get_epsilon(delta) * 0.99 <= ours <= other.get_epsilon(delta) + 1e-9
    opacus = RDPAccountant()
    opacus.history = parts
    assert ours == pytest.approx(opacus.get_epsilon(delta), rel=0.005)
    assert ours <= opacus.get_epsilon(delta) + 1e-12


@pytest.mark.parametrize("parts", [SUBSAMPLED, TWO_STUDIES, THREE_KINDS])
def test_renyi_bounds_are_the_integrals(parts: list[tuple[float, float, int]]) -> None:
    composed = mechanisms(*parts)
    assert rdp_epsilon(composed, 1e-5) == pytest.approx(quadrature_epsilon(composed, 1e-5, ORDERS[:60]), rel=1e-6)


@pytest.mark.parametrize("parts", [SUBSAMPLED, THREE_KINDS])
def test_numerical_composition_is_opacus(parts: list[tuple[float, float, int]]) -> None:
    opacus = PRVAccountant()
    opacus.history = parts
    assert prv_epsilon(mechanisms(*parts), 1e-5) == pytest.approx(opacus.get_epsilon(1e-5, eps_error=0.01), abs=1e-3)


def test_reference_values() -> None:
    assert rdp_epsilon(mechanisms(*SUBSAMPLED), 1e-5) == pytest.approx(13.00, abs=0.005)
    assert prv_epsilon(mechanisms(*SUBSAMPLED), 1e-5) == pytest.approx(11.97, abs=0.005)
    # A full-batch study and a sampled one on the same patients; PLD says 5.6056.
    assert epsilon_spent(mechanisms(*TWO_STUDIES), 1e-4) == pytest.approx(5.616, abs=0.001)


@pytest.mark.parametrize(("noise", "probability"), [(1.0, 0.1), (3.0, 0.5), (0.7, 0.02)])
def test_one_sampled_step_is_its_exact_curve(noise: float, probability: float) -> None:
    # Both directions: the mixture against the Gaussian, and the Gaussian against the mixture.
    def excess(epsilon: float, threshold: float) -> float:
        mixture = (1 - probability) * norm.sf(threshold / noise) + probability * norm.sf((threshold - 1) / noise)
        return float(mixture - math.exp(epsilon) * norm.sf(threshold / noise))

    def delta_of(epsilon: float) -> float:
        odds = (math.exp(epsilon) - 1 + probability) / probability
        removed = excess(epsilon, noise**2 * math.log(odds) + 0.5)
        rest = (math.exp(-epsilon) - 1 + probability) / probability
        if rest <= 0:
            return removed
        threshold = noise**2 * math.log(rest) + 0.5
        mixture = (1 - probability) * norm.cdf(threshold / noise) + probability * norm.cdf((threshold - 1) / noise)
        return max(removed, float(norm.cdf(threshold / noise) - math.exp(epsilon) * mixture))

    exact = brentq(lambda epsilon: delta_of(epsilon) - 1e-4, 0, 20)
    spent = prv_epsilon(mechanisms((noise, probability, 1)), 1e-4)
    assert spent is not None
    assert exact <= spent <= exact + 0.012


def test_full_batch_steps_are_the_gaussian_mechanism() -> None:
    # Balle and Wang (2018), Th. 8: delta of a Gaussian mechanism of sensitivity 1 and noise 2 at the epsilon found.
    epsilon = epsilon_spent(mechanisms((2.0, 1.0, 1)), 1e-4)
    delta = norm.cdf(1 / 4 - 2 * epsilon) - math.exp(epsilon) * norm.cdf(-1 / 4 - 2 * epsilon)
    assert delta == pytest.approx(1e-4, rel=1e-5)
    assert delta <= 1e-4
    for same in ([(20.0, 1.0, 100)], [(4.0, 1.0, 2), (8.0, 1.0, 8)]):
        assert epsilon_spent(mechanisms(*same), 1e-4) == pytest.approx(epsilon, rel=1e-9)


def test_full_batch_is_the_limit_of_sampling_nearly_all() -> None:
    nearly, all_ = (epsilon_spent(mechanisms((8.0, probability, 50)), 1e-5) for probability in (0.9999, 1.0))
    assert nearly == pytest.approx(all_, rel=0.01)


def test_noise_that_hides_all_spends_nothing_and_so_does_no_step() -> None:
    assert epsilon_spent(mechanisms((1e6, 1.0, 1)), 1e-4) == 0.0
    for none in ([], mechanisms((1.0, 0.5, 0), (1.0, 1.0, 0))):
        assert epsilon_spent(none, 1e-5) == rdp_epsilon(none, 1e-5) == prv_epsilon(none, 1e-5) == 0.0


def test_more_noise_spends_less_and_more_steps_spend_more() -> None:
    spent = [epsilon_spent(mechanisms((noise, 0.2, 100)), 1e-4) for noise in (1.0, 2.0, 4.0)]
    assert spent == sorted(spent, reverse=True)
    spent = [epsilon_spent(mechanisms((2.0, 0.2, steps)), 1e-4) for steps in (1, 10, 100, 1000)]
    assert spent == sorted(spent)
    spent = [epsilon_spent(mechanisms((2.0, probability, 100)), 1e-4) for probability in (0.1, 0.5, 1.0)]
    assert spent == sorted(spent)
    spent = [epsilon_spent(mechanisms(*TWO_STUDIES[:n], *THREE_KINDS[:n]), 1e-4) for n in range(3)]
    assert spent == sorted(set(spent))


def test_order_and_how_steps_are_written_down_do_not_matter() -> None:
    split = [*SUBSAMPLED, (20.0, 1.0, 100), *TWO_STUDIES, (7.0, 1.0, 3)]
    spent = epsilon_spent(mechanisms(*split), 1e-5)
    assert epsilon_spent(mechanisms(*reversed(split)), 1e-5) == spent
    together = [(1.2, 0.1, 600), (20.0, 1.0, 400), (7.0, 1.0, 3)]
    assert epsilon_spent(mechanisms(*together), 1e-5) == pytest.approx(spent, rel=1e-9)


def test_where_the_grid_cannot_be_afforded_prv_gives_way_to_rdp() -> None:
    for part in ((0.3, 0.5, 10_000), (300.0, 0.5, 1_000_000)):
        assert prv_epsilon(mechanisms(part), 1e-4) is None
        assert epsilon_spent(mechanisms(part), 1e-4) == rdp_epsilon(mechanisms(part), 1e-4) > 0


@pytest.mark.parametrize(
    ("epsilon", "delta", "probability", "steps", "beside"),
    [
        (8.0, 1e-4, 0.1, 300, []),
        (3.0, 3e-4, 0.5, 100, []),
        (1.0, 1e-3, 1.0, 200, []),
        (0.1, 1e-5, 0.01, 50, []),
        (30.0, 1e-3, 0.3, 1, []),
        (2.0, 1e-4, 0.5, 1_000_000, []),
        (8.0, 1e-4, 0.1, 300, COUNT_AND_TRAINING),
        (3.0, 1e-4, 0.2, 100, [(10.0, 1.0, 1)]),
        (3.0, 1e-4, 1.0, 100, [(10.0, 1.0, 1), (4.0, 1.0, 3)]),
    ],
)
def test_calibration_inverts_accounting(
    epsilon: float, delta: float, probability: float, steps: int, beside: list[tuple[float, float, int]]
) -> None:
    others = mechanisms(*beside)
    noise = noise_multiplier_for(epsilon, delta, probability, steps, others)
    spent = epsilon_spent([*others, Mechanism(noise, probability, steps)], delta)
    assert (1 - TIGHTNESS) * epsilon <= spent <= epsilon
    assert epsilon_spent([*others, Mechanism(0.98 * noise, probability, steps)], delta) > spent
    if beside:
        assert noise > noise_multiplier_for(epsilon, delta, probability, steps)


def test_random_calibrations_hold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        epsilon, delta = float(np.exp(rng.uniform(-1, 3))), float(10 ** rng.uniform(-6, -3))
        probability, steps = float(rng.uniform(0.01, 0.3)), int(rng.integers(1, 2000))
        noise = noise_multiplier_for(epsilon, delta, probability, steps)
        assert 0.99 * epsilon <= epsilon_spent([Mechanism(noise, probability, steps)], delta) <= epsilon


def test_a_budget_that_needs_no_noise_still_gets_some() -> None:
    assert noise_multiplier_for(1e6, 0.1, 0.001, 1) == pytest.approx(MIN_NOISE_MULTIPLIER, rel=0.01)


def test_a_budget_out_of_reach_is_refused() -> None:
    # Renyi orders end at 1024 and the grid's error is 0.001, so sampled steps never spend less than that.
    with pytest.raises(CalibrationError, match=re.escape(f"{MAX_NOISE_MULTIPLIER:g}")):
        noise_multiplier_for(1e-4, 1e-5, 0.1, 100)
    with pytest.raises(CalibrationError):
        noise_multiplier_for(1.0, 1e-4, 0.1, 100, mechanisms((1.0, 1.0, 4)))


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.01},
        {"sampling_probability": math.nan},
        {"steps": -1},
    ],
)
def test_mechanisms_without_meaning_are_refused(changed: dict[str, Any]) -> None:
    good: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_probability": 0.1, "steps": 10}
    assert epsilon_spent([Mechanism(**good)], 1e-5) > 0
    with pytest.raises(PrivacyParameterError):
        Mechanism(**{**good, **changed})


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_without_meaning_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyParameterError):
        epsilon_spent(mechanisms(*SUBSAMPLED), delta)


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.inf},
        {"epsilon": math.nan},
        {"steps": 0},
        {"delta": 1.0},
        {"sampling_probability": 0.0},
    ],
)
def test_targets_without_meaning_are_refused(changed: dict[str, Any]) -> None:
    good: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-5, "sampling_probability": 1.0, "steps": 10}
    assert noise_multiplier_for(**good) > 0
    with pytest.raises(PrivacyParameterError):
        noise_multiplier_for(**{**good, **changed})


def test_importing_it_loads_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, echofed.privacy.accounting; print([m for m in ('torch', 'opacus', 'scipy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
