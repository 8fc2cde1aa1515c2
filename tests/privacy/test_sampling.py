import numpy as np
import pytest
from scipy import stats

from echofed.privacy.sampling import poisson_sample
from echofed.protocol.errors import PrivacyParameterError


def test_each_patient_is_drawn_independently_with_the_probability() -> None:
    rng = np.random.default_rng(0)
    draws = np.zeros((4000, 20), bool)
    for row in draws:
        row[poisson_sample(20, 0.3, rng)] = True
    assert stats.binomtest(int(draws.sum()), draws.size, 0.3).pvalue > 1e-3
    # A batch of fixed size would have no variance; this one must have a binomial's.
    assert draws.sum(1).var() == pytest.approx(20 * 0.3 * 0.7, rel=0.1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(20)).max() < 0.08


def test_probability_one_draws_all_and_no_patients_gives_none() -> None:
    rng = np.random.default_rng(0)
    assert poisson_sample(5, 1.0, rng).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5, rng).tolist() == []


def test_a_draw_can_be_empty() -> None:
    rng = np.random.default_rng(0)
    assert any(len(poisson_sample(3, 0.1, rng)) == 0 for _ in range(50))


def test_the_draw_follows_the_generator() -> None:
    one, same, other = (poisson_sample(1000, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyParameterError):
        poisson_sample(5, probability, np.random.default_rng(0))
