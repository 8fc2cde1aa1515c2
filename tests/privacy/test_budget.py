import math

import pytest

from echofed.privacy.budget import Limits, check_budget, delta_for
from echofed.protocol.errors import PrivacyParameterError


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_epsilon_without_meaning_is_refused(epsilon: float) -> None:
    with pytest.raises(PrivacyParameterError):
        check_budget(epsilon, 1e-5, 100)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 0.01, 0.02, math.nan])
def test_delta_that_protects_nobody_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyParameterError):
        check_budget(1.0, delta, 100)


def test_delta_just_below_one_in_patients_is_accepted() -> None:
    check_budget(1.0, 0.0099, 100)
    with pytest.raises(PrivacyParameterError):
        check_budget(1.0, 0.0099, 102)


def test_a_site_without_patients_is_refused() -> None:
    with pytest.raises(PrivacyParameterError):
        check_budget(1.0, 1e-5, 0)
    with pytest.raises(PrivacyParameterError):
        delta_for(0)


@pytest.mark.parametrize("patients", [1, 7, 1000])
def test_default_delta_is_accepted_by_the_check(patients: int) -> None:
    assert delta_for(patients) == pytest.approx(1 / (10 * patients))
    check_budget(1.0, delta_for(patients), patients)


def test_a_written_delta_wins() -> None:
    assert delta_for(100, 1e-6) == 1e-6


@pytest.mark.parametrize(
    "numbers", [(0.0, 8.0, 1e-4, 1e-4), (10.0, math.inf, 1e-4, 1e-4), (10.0, 8.0, 1.0, 1e-4), (10.0, 8.0, 1e-4, 0.0)]
)
def test_limits_without_meaning_are_refused(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(PrivacyParameterError):
        Limits(*numbers)


def test_limits_allow_nothing_without_privacy_unless_they_say_so() -> None:
    assert not Limits(10.0, 8.0, 1e-4, 1e-4).allow_without_privacy
