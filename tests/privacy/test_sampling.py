import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from echofed.privacy.randomness import random_words
from echofed.privacy.sampling import poisson_sample
from echofed.protocol.errors import PrivacyParameterError

PATIENTS, PROBABILITY, DRAWS = 12, 0.3, 20_000
ALMOST_NEVER = 1e-5


def fixed_words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


@pytest.fixture(scope="module", params=[5, None], ids=["seeded", "deployed"])
def draws(request: pytest.FixtureRequest) -> NDArray[np.bool_]:
    """Who was drawn in each of many draws."""
    words = random_words(request.param, "draws")
    drawn = np.zeros((DRAWS, PATIENTS), bool)
    for row in drawn:
        row[poisson_sample(PATIENTS, PROBABILITY, words)] = True
    return drawn


def sizes_pvalue(draws: NDArray[np.bool_]) -> float:
    """Chi-square of the batches' sizes against the binomial."""
    sizes = np.arange(PATIENTS + 1)
    expected = DRAWS * stats.binom.pmf(sizes, PATIENTS, PROBABILITY)
    observed = np.bincount(draws.sum(axis=1), minlength=PATIENTS + 1)
    kept = expected >= 5
    merged = [np.append(counts[kept], counts[~kept].sum()) for counts in (observed, expected)]
    return float(stats.chisquare(*merged).pvalue)


def pairs_pvalue(draws: NDArray[np.bool_]) -> float:
    """The smallest p-value of chi-squares over what befalls two patients, times their number (Bonferroni)."""
    cells = DRAWS * np.outer([1 - PROBABILITY, PROBABILITY], [1 - PROBABILITY, PROBABILITY]).ravel()
    pairs = list(itertools.combinations(range(PATIENTS), 2))
    pvalues = [stats.chisquare(np.bincount(2 * draws[:, a] + draws[:, b], minlength=4), cells).pvalue for a, b in pairs]
    return float(min(pvalues)) * len(pairs)


def test_the_sizes_of_batches_are_binomial(draws: NDArray[np.bool_]) -> None:
    assert sizes_pvalue(draws) > ALMOST_NEVER


def test_any_two_patients_are_drawn_independently(draws: NDArray[np.bool_]) -> None:
    assert pairs_pvalue(draws) > ALMOST_NEVER


def test_draws_follow_each_other_independently(draws: NDArray[np.bool_]) -> None:
    now, then = draws[:-1].ravel(), draws[1:].ravel()
    assert stats.chi2_contingency(np.bincount(2 * now + then, minlength=4).reshape(2, 2)).pvalue > ALMOST_NEVER


def test_the_tests_tell_other_sampling_apart() -> None:
    rng = np.random.default_rng(0)
    fixed_size = np.zeros((DRAWS, PATIENTS), bool)
    fixed_size[:, : round(PATIENTS * PROBABILITY)] = True
    fixed_size = rng.permuted(fixed_size, axis=1)
    assert sizes_pvalue(fixed_size) < 1e-9
    assert pairs_pvalue(fixed_size) < 1e-9
    another_probability = rng.random((DRAWS, PATIENTS)) < PROBABILITY + 0.02
    assert sizes_pvalue(another_probability) < 1e-9
    in_couples = np.repeat(rng.random((DRAWS, PATIENTS // 2)) < PROBABILITY, 2, axis=1)
    assert pairs_pvalue(in_couples) < 1e-9


def test_the_probability_is_exact_and_never_rounded_up() -> None:
    # 0.3 as float64 is below 0.3; a patient is drawn when the word is below 2^64 times it.
    bound = int(0.3 * 2.0**64)
    assert poisson_sample(4, 0.3, lambda n: fixed_words(0, bound - 1, bound, 2**64 - 1)[:n]).tolist() == [0, 1]
    tiny = 2.0**-70
    assert poisson_sample(2, tiny, lambda n: fixed_words(0, 1)).tolist() == []
    almost_one = float(np.nextafter(1.0, 0.0))
    assert poisson_sample(2, almost_one, lambda n: fixed_words(2**64 - 2049, 2**64 - 2048)).tolist() == [0]


def test_probability_one_draws_all_and_no_patients_gives_none() -> None:
    words = random_words(0)
    assert poisson_sample(5, 1.0, words).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5, words).tolist() == []
    assert poisson_sample(0, 1.0, words).dtype == poisson_sample(0, 0.5, words).dtype == np.int64


def test_a_draw_can_be_empty_and_can_be_all() -> None:
    words = random_words(0)
    sizes = {len(poisson_sample(3, 0.4, words)) for _ in range(100)}
    assert sizes == {0, 1, 2, 3}


def test_the_draw_follows_the_words() -> None:
    one, same, other = (poisson_sample(1000, 0.5, random_words(seed)) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(PrivacyParameterError):
        poisson_sample(5, probability, random_words(0))
