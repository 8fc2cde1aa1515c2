"""The least noise: no honest calibration lies below it, and it lies not far below."""

import pytest

from echofed.privacy.accounting import noise_multiplier_for
from echofed.strategies.noise_floor import least_noise
from tests.studies import PRIVATE, make_study


@pytest.mark.parametrize(
    ("epsilon", "probability", "local_steps", "rounds", "least"),
    [(1.0, 0.1, 10, 20, 0.97), (8.0, 0.5, 5, 20, 0.97), (3.0, 1.0, 1, 4, 0.97), (50.0, 0.02, 20, 10, 0.2)],
)
def test_no_honest_calibration_lies_below_it(
    epsilon: float, probability: float, local_steps: int, rounds: int, least: float
) -> None:
    study = make_study(
        training={"sampling_probability": probability, "local_steps": local_steps},
        privacy={**PRIVATE, "epsilon": epsilon},
        federation={"rounds": rounds},
    )
    honest = noise_multiplier_for(epsilon, 1e-3, probability, study.steps)
    assert least * honest <= least_noise(study, 1e-3) <= honest
