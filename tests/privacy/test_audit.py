"""The audit's bound where the truth is known, and a small audit of the training engine."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.privacy_audit import CASES, Case, audit
from echofed.client.public_count import noisy_count
from echofed.privacy.accounting import Mechanism, epsilon_spent
from echofed.privacy.audit import audited_epsilon, correct_guesses, guessing_probability
from echofed.privacy.randomness import random_words
from echofed.protocol.errors import PrivacyParameterError

CANARIES = 1000


def test_without_delta_it_is_the_binomial_bound() -> None:
    # All right: exp(epsilon) / (1 + exp(epsilon)) to the power of the guesses is 5%.
    success = 0.05 ** (1 / 100)
    assert audited_epsilon(1000, 100, 100, 0.0) == pytest.approx(math.log(success / (1 - success)), abs=2e-4)
    assert guessing_probability(1000, 100, 90, 1.5, 0.0) == pytest.approx(binom.sf(89, 100, 1 / (1 + math.exp(-1.5))))


@given(data=st.data(), epsilon=st.floats(0, 8), delta=st.floats(0, 1e-2))
def test_it_is_theorem_5_2(data: st.DataObject, epsilon: float, delta: float) -> None:
    guesses = data.draw(st.integers(1, 60))
    correct = data.draw(st.integers(0, guesses))
    canaries = guesses + data.draw(st.integers(0, 100))
    chances = [float(binom.pmf(right, guesses, 1 / (1 + math.exp(-epsilon)))) for right in range(guesses + 1)]
    steepest = max(sum(chances[max(correct - i, 0) : correct]) / i for i in range(1, canaries + 1))
    expected = min(1.0, sum(chances[correct:]) + 2 * canaries * delta * steepest)
    assert guessing_probability(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, abs=1e-9)


@given(guesses=st.integers(2, 200), share=st.floats(0, 1), delta=st.floats(0, 1e-3))
def test_the_bound_is_the_last_epsilon_refuted(guesses: int, share: float, delta: float) -> None:
    correct = round(share * guesses)
    found = audited_epsilon(200, guesses, correct, delta)
    if found > 0:
        assert guessing_probability(200, guesses, correct, found, delta) <= 0.05
    assert guessing_probability(200, guesses, correct, found + 2e-4, delta) > 0.05
    assert audited_epsilon(200, guesses, max(correct - 1, 0), delta) <= found
    assert audited_epsilon(200, guesses, correct, delta + 1e-4) <= found
    assert audited_epsilon(200, guesses, correct, delta, confidence=0.99) <= found


@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_it_errs_as_seldom_as_it_says_and_finds_most_of_what_is_there(delta: float) -> None:
    # Randomised response is exactly (1, 0) private; telling the truth outright with probability delta adds just that.
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        included = rng.random(CANARIES) < 0.5
        truthful = rng.random(CANARIES) < 1 / (1 + math.exp(-1.0))
        told = np.where(truthful | (rng.random(CANARIES) < delta), included, ~included)
        found.append(audited_epsilon(CANARIES, CANARIES, int((told == included).sum()), delta))
    assert np.mean(np.array(found) > 1.0) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert np.mean(found) > (0.85 if delta == 0 else 0.5)


def test_guesses_go_to_both_ends() -> None:
    scores = np.array([0.1, 5.0, -3.0, 0.0, 2.0, -1.0])
    included = np.array([True, True, False, True, False, True])
    assert correct_guesses(scores, included, 2) == 2
    assert correct_guesses(scores, included, 4) == 2
    assert correct_guesses(scores, included, 0) == 0
    assert correct_guesses(-scores, ~included, 4) == 2


def test_guesses_without_knowledge_prove_nothing() -> None:
    assert audited_epsilon(1000, 500, 250, 1e-5) == 0.0
    assert audited_epsilon(1000, 0, 0, 1e-5) == 0.0


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "epsilon", "delta"),
    [(10, 11, 5, 1.0, 0.0), (10, 5, 6, 1.0, 0.0), (10, 5, -1, 1.0, 0.0), (10, 5, 5, -1.0, 0.0), (10, 5, 5, 1.0, 1.0)],
)
def test_numbers_that_contradict_each_other_are_refused(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    with pytest.raises(PrivacyParameterError):
        guessing_probability(canaries, guesses, correct, epsilon, delta)


# Half the noise takes 10,000 canaries to tell: `make audit`.
@pytest.mark.parametrize("case", [case for case in CASES if case.is_quick], ids=lambda case: case.name)
def test_honest_training_stands_and_broken_training_is_caught(case: Case) -> None:
    row = audit(case, CANARIES)
    assert row.canaries >= 1000
    assert row.is_as_expected
    assert row.measured_epsilon <= row.spent_epsilon
    assert row.measured_epsilon > 0.1


def test_there_are_four_broken_engines_and_no_honest_one_claims_less_than_it_spends() -> None:
    assert sum(not case.is_honest for case in CASES) == 4
    for case in CASES:
        assert (case.ran == case.claimed) == case.is_honest
        if not case.is_honest:
            assert epsilon_spent([case.ran], 1e-5) > 1.5 * epsilon_spent([case.claimed], 1e-5)


def test_the_noisy_count_of_patients_keeps_its_claim() -> None:
    # One coin for each of many sites: does the count include one patient more?
    rng, sites, stddev = np.random.default_rng(0), 4000, 1.0
    included = rng.random(sites) < 0.5
    words = random_words(0, "counts")
    scores = np.array([noisy_count(100 + int(one), stddev, 10, words) - 100.0 for one in included])
    # Counts are whole numbers: ties are told apart by lot.
    scores += rng.uniform(-0.5, 0.5, sites)
    correct = correct_guesses(scores, included, 200)
    claimed = epsilon_spent([Mechanism(stddev, 1.0, 1)], 1e-5)
    assert 1.0 < audited_epsilon(sites, 200, correct, 1e-5) < claimed
    assert audited_epsilon(sites, 200, correct, 1e-5) > epsilon_spent([Mechanism(4 * stddev, 1.0, 1)], 1e-5)
