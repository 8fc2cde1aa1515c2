import math
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from echofed.privacy.accounting import (
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    Accountant,
    epsilon_spent,
    noise_multiplier_for,
)
from echofed.protocol.errors import CalibrationError, PrivacyParameterError


def test_reference_values() -> None:
    # Opacus' RDP and PRV accountants, and dp-accounting's PLD (11.96).
    assert epsilon_spent(1.2, 0.1, 500, 1e-5, "rdp") == pytest.approx(13.00, abs=0.005)
    assert epsilon_spent(1.2, 0.1, 500, 1e-5, "prv") == pytest.approx(11.97, abs=0.005)


def test_one_full_batch_step_is_the_gaussian_mechanism() -> None:
    # Balle and Wang (2018), Th. 8: delta of a Gaussian mechanism of sensitivity 1 and noise 2 at the epsilon found.
    epsilon = epsilon_spent(2.0, 1.0, 1, 1e-4, "prv")
    delta = norm.cdf(1 / 4 - 2 * epsilon) - math.exp(epsilon) * norm.cdf(-1 / 4 - 2 * epsilon)
    assert delta == pytest.approx(1e-4, rel=1e-5)
    assert delta <= 1e-4


def test_full_batch_steps_compose_as_one_with_less_noise() -> None:
    assert epsilon_spent(10.0, 1.0, 100, 1e-5, "prv") == pytest.approx(epsilon_spent(1.0, 1.0, 1, 1e-5, "prv"))


def test_full_batch_is_the_limit_of_sampling_nearly_all() -> None:
    assert epsilon_spent(8.0, 0.9999, 50, 1e-5, "prv") == pytest.approx(
        epsilon_spent(8.0, 1.0, 50, 1e-5, "prv"), rel=0.01
    )


def test_noise_that_hides_all_spends_nothing() -> None:
    assert epsilon_spent(1e6, 1.0, 1, 1e-4, "prv") == 0.0
    assert epsilon_spent(1.0, 0.5, 0, 1e-5) == 0.0


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_more_noise_spends_less_and_more_steps_spend_more(accountant: Accountant) -> None:
    spent = [epsilon_spent(noise, 0.2, 100, 1e-4, accountant) for noise in (1.0, 2.0, 4.0)]
    assert spent == sorted(spent, reverse=True)
    spent = [epsilon_spent(2.0, 0.2, steps, 1e-4, accountant) for steps in (1, 10, 100, 1000)]
    assert spent == sorted(spent)
    spent = [epsilon_spent(2.0, probability, 100, 1e-4, accountant) for probability in (0.1, 0.5, 1.0)]
    assert spent == sorted(spent)


@pytest.mark.parametrize(("noise", "probability", "steps"), [(0.9, 0.05, 300), (3.0, 0.5, 100), (20.0, 1.0, 400)])
def test_prv_is_never_above_rdp(noise: float, probability: float, steps: int) -> None:
    assert (
        0
        < epsilon_spent(noise, probability, steps, 1e-4, "prv")
        < epsilon_spent(noise, probability, steps, 1e-4, "rdp")
    )


def test_where_the_grid_cannot_be_afforded_prv_gives_way_to_rdp() -> None:
    for mechanism in ((0.3, 0.5, 10_000), (300.0, 0.5, 1_000_000)):
        assert epsilon_spent(*mechanism, 1e-4, "prv") == epsilon_spent(*mechanism, 1e-4, "rdp")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(
    ("epsilon", "delta", "probability", "steps"),
    [
        (8.0, 1e-4, 0.1, 300),
        (3.0, 3e-4, 0.5, 100),
        (1.0, 1e-3, 1.0, 200),
        (0.1, 1e-5, 0.01, 50),
        (30.0, 1e-3, 0.3, 1),
        (2.0, 1e-4, 0.5, 1_000_000),
    ],
)
def test_calibration_inverts_accounting(
    epsilon: float, delta: float, probability: float, steps: int, accountant: Accountant
) -> None:
    noise = noise_multiplier_for(epsilon, delta, probability, steps, accountant)
    spent = epsilon_spent(noise, probability, steps, delta, accountant)
    assert 0.99 * epsilon <= spent <= epsilon
    assert epsilon_spent(0.98 * noise, probability, steps, delta, accountant) > spent


def test_random_calibrations_hold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        epsilon, delta = float(np.exp(rng.uniform(-1, 3))), float(10 ** rng.uniform(-6, -3))
        probability, steps = float(rng.uniform(0.01, 0.3)), int(rng.integers(1, 2000))
        noise = noise_multiplier_for(epsilon, delta, probability, steps, "prv")
        assert 0.99 * epsilon <= epsilon_spent(noise, probability, steps, delta, "prv") <= epsilon


def test_a_budget_that_needs_no_noise_still_gets_some() -> None:
    assert noise_multiplier_for(1e6, 0.1, 0.001, 1, "rdp") == pytest.approx(MIN_NOISE_MULTIPLIER, rel=0.01)


def test_a_budget_out_of_reach_is_refused() -> None:
    # Renyi orders end at 1024, so RDP never reports less than about 0.01.
    with pytest.raises(CalibrationError, match=re.escape(f"{MAX_NOISE_MULTIPLIER:g}")):
        noise_multiplier_for(1e-4, 1e-5, 0.1, 100, "rdp")


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
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"accountant": "gdp"},
    ],
)
def test_parameters_without_meaning_are_refused(changed: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "sampling_probability": 0.1,
        "steps": 10,
        "delta": 1e-5,
        "accountant": "rdp",
    }
    assert epsilon_spent(**good) > 0
    with pytest.raises(PrivacyParameterError):
        epsilon_spent(**{**good, **changed})


@pytest.mark.parametrize(
    "changed", [{"epsilon": 0.0}, {"epsilon": math.inf}, {"epsilon": math.nan}, {"steps": 0}, {"delta": 1.0}]
)
def test_targets_without_meaning_are_refused(changed: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "epsilon": 1.0,
        "delta": 1e-5,
        "sampling_probability": 0.1,
        "steps": 10,
        "accountant": "rdp",
    }
    assert noise_multiplier_for(**good) > 0
    with pytest.raises(PrivacyParameterError):
        noise_multiplier_for(**{**good, **changed})


def test_importing_it_loads_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, echofed.privacy.accounting; print([m for m in ('torch', 'opacus', 'scipy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
