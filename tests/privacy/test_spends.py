"""Composition over all studies on the same patients, and what is left of a budget."""

import random

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from echofed.client.splits import split_of
from echofed.privacy.accounting import Mechanism, epsilon_spent
from echofed.privacy.budget import Limits
from echofed.privacy.spends import (
    Spend,
    SpentSplit,
    SplitFractions,
    composed_epsilon,
    is_within,
    largest_further_epsilon,
    refuse_beyond,
    spend_in,
)
from echofed.protocol.errors import BudgetExceededError, PrivacyParameterError
from echofed.protocol.study import Evaluation
from tests.studies import PRIVATE, make_study

DELTA = 1e-4
HALVES, NO_TEST, OTHER_TEST = SplitFractions(0.5, 0.25), SplitFractions(0.5, 0.0), SplitFractions(0.25, 0.5)


def gaussian(
    noise: float, split: SpentSplit = "training", fractions: SplitFractions = HALVES, study: str = "a"
) -> Spend:
    return Spend(study * 64, split, fractions, Mechanism(noise, 1.0, 1))


def epsilon_of(*noises: float) -> float:
    return epsilon_spent([Mechanism(noise, 1.0, 1) for noise in noises], DELTA)


def test_nothing_costs_nothing() -> None:
    assert composed_epsilon([], DELTA) == 0.0
    assert composed_epsilon([Spend("a" * 64, "training", HALVES, Mechanism(1.0, 0.5, 0))], DELTA) == 0.0
    with pytest.raises(PrivacyParameterError):
        composed_epsilon([], 1.0)


def test_splits_of_the_same_fractions_cost_their_maximum() -> None:
    spends = [
        gaussian(3.0),
        gaussian(4.0, study="b"),
        gaussian(2.0, "validation"),
        gaussian(9.0, "validation", study="b"),
    ]
    assert composed_epsilon(spends, DELTA) == max(epsilon_of(3.0, 4.0), epsilon_of(2.0, 9.0))


def test_other_fractions_meet_where_patients_change_their_split() -> None:
    # Positions: HALVES trains on [0.75, 1), validates on [0.25, 0.75); OTHER_TEST validates on [0.5, 0.75).
    both = [gaussian(3.0, "validation"), gaussian(4.0, "validation", OTHER_TEST, "b")]
    assert composed_epsilon(both, DELTA) == epsilon_of(3.0, 4.0)
    apart = [gaussian(3.0), gaussian(4.0, "validation", OTHER_TEST, "b")]
    assert composed_epsilon(apart, DELTA) == epsilon_of(3.0)
    # NO_TEST trains on [0.5, 1): some of its patients are validation patients of HALVES.
    across = [gaussian(3.0, "validation"), gaussian(4.0, "training", NO_TEST, "b")]
    assert composed_epsilon(across, DELTA) == epsilon_of(3.0, 4.0)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_patient_costs_more(data: st.DataObject) -> None:
    """Oracle: walk over patients, sort each into its splits as a site does, and compose what touched it."""
    fractions = st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.3, 0.4])
    touching: list[list[Mechanism]] = [[] for _ in range(300)]
    spends = []
    for study in "abc":
        cut = SplitFractions(data.draw(fractions), data.draw(fractions))
        noises: dict[str, list[float]] = {
            split: data.draw(st.lists(st.sampled_from([1.0, 2.5, 6.0]), max_size=2))
            for split in ("training", "validation")
        }
        spends += [gaussian(noise, "training", cut, study) for noise in noises["training"]]
        spends += [gaussian(noise, "validation", cut, study) for noise in noises["validation"]]
        evaluation = Evaluation(validation_fraction=cut.validation, test_fraction=cut.test)
        for patient, mechanisms in enumerate(touching):
            split = split_of(str(patient), bytes(32), evaluation)
            mechanisms += [Mechanism(noise, 1.0, 1) for noise in noises.get(split, [])]
    costs = {epsilon_spent(mechanisms, DELTA) for mechanisms in touching}
    assert composed_epsilon(spends, DELTA) == pytest.approx(max(costs), abs=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_mixed_studies_agree_with_another_accountant(delta: float) -> None:
    kinds = [(1.2, 0.2, 60), (0.9, 0.05, 150), (4.0, 1.0, 2)]
    spends = [
        Spend(str(number) * 64, "training", HALVES, Mechanism(noise, probability, steps))
        for number, (noise, probability, steps) in enumerate(kinds)
    ]
    other = PLDAccountant()
    for noise, probability, steps in kinds:
        event = PoissonSampledDpEvent(probability, GaussianDpEvent(noise))
        other.compose(SelfComposedDpEvent(event, steps))
    assert composed_epsilon(spends, delta) == pytest.approx(other.get_epsilon(delta), rel=0.01)


def test_thousands_of_entries_cost_as_much_as_one_of_their_steps() -> None:
    one = [Spend("a" * 64, "training", HALVES, Mechanism(6.0, 0.1, 9000))]
    many = [Spend("a" * 64, "training", HALVES, Mechanism(6.0, 0.1, 3))] * 3000
    assert composed_epsilon(many, DELTA) == composed_epsilon(one, DELTA)


def test_the_order_does_not_matter() -> None:
    spends = [gaussian(noise, study=study) for noise in (1.0, 2.0, 3.0) for study in "abc"]
    shuffled = random.Random(0).sample(spends, len(spends))
    assert composed_epsilon(shuffled, DELTA) == composed_epsilon(spends, DELTA)


def test_cuts_that_differ_by_rounding_only_are_one() -> None:
    spends = [
        gaussian(3.0, "validation", SplitFractions(0.2, 0.1)),
        gaussian(4.0, "training", SplitFractions(0.3, 0.0), "b"),
    ]
    assert 0.1 + 0.2 > 0.3
    assert composed_epsilon(spends, DELTA) == epsilon_of(3.0)


def test_releases_without_privacy_are_not_in_the_sum() -> None:
    bare = Spend("a" * 64, "training", HALVES, None)
    assert composed_epsilon([bare, gaussian(3.0), bare], DELTA) == epsilon_of(3.0)


def test_what_is_left_can_be_spent_and_no_more() -> None:
    spends, budget = [gaussian(2.0), gaussian(3.0, "validation")], 5.0
    left = largest_further_epsilon(spends, DELTA, budget)
    noises = np.geomspace(0.3, 30, 400)
    fits = [noise for noise in noises if composed_epsilon([*spends, gaussian(noise, study="b")], DELTA) <= budget]
    assert left == pytest.approx(epsilon_of(min(fits)), rel=0.02)
    assert left <= budget - epsilon_of(2.0) + 2.0  # Gaussians compose better than epsilons add
    assert left > budget - epsilon_of(2.0)


def test_what_is_left_of_all_and_of_nothing() -> None:
    assert largest_further_epsilon([], DELTA, 5.0) == 5.0
    assert largest_further_epsilon([gaussian(0.5)], DELTA, 5.0) == 0.0
    exactly = epsilon_of(2.0)
    assert largest_further_epsilon([gaussian(2.0)], DELTA, exactly) == 0.0
    subsampled = Spend("a" * 64, "training", HALVES, Mechanism(1.5, 0.1, 100))
    left = largest_further_epsilon([subsampled], DELTA, 5.0)
    assert 0 < left < 5.0
    with pytest.raises(PrivacyParameterError):
        largest_further_epsilon([], DELTA, 0.0)


def limits(cohort: float, study: float, *, bare: bool = False) -> Limits:
    return Limits(cohort, study, DELTA, DELTA, allow_without_privacy=bare)


def test_a_limit_reached_exactly_is_kept() -> None:
    exactly = epsilon_of(2.0, 3.0)
    refuse_beyond([gaussian(2.0)], [gaussian(3.0)], limits(exactly, exactly))
    for cohort, study in ((exactly * 0.999, exactly), (exactly, exactly * 0.999)):
        with pytest.raises(BudgetExceededError):
            refuse_beyond([gaussian(2.0)], [gaussian(3.0)], limits(cohort, study))


def test_a_refusal_says_what_is_asked_and_what_is_left() -> None:
    spent, asked = [gaussian(2.0)], [gaussian(1.0, study="b")]
    with pytest.raises(BudgetExceededError) as raised:
        refuse_beyond(spent, asked, limits(4.0, 8.0))
    left = largest_further_epsilon(spent, DELTA, 4.0)
    for number in (epsilon_of(1.0), epsilon_of(1.0, 2.0), left):
        assert f"{number:.3g}" in raised.value.what
    assert raised.value.code == "EF-404"


def test_each_study_is_judged_by_itself() -> None:
    spent = [gaussian(2.0), gaussian(2.0, study="b")]
    refuse_beyond(spent, [gaussian(50.0, study="b")], limits(100.0, epsilon_of(2.0, 40.0)))
    with pytest.raises(BudgetExceededError, match="study bbbbbbbbbbbb"):
        refuse_beyond(spent, [gaussian(2.0, study="b")], limits(100.0, epsilon_of(2.0, 40.0)))


def test_without_privacy_only_if_allowed() -> None:
    bare = [Spend("a" * 64, "training", HALVES, None)]
    with pytest.raises(BudgetExceededError):
        refuse_beyond([], bare, limits(5.0, 5.0))
    refuse_beyond([], bare, limits(5.0, 5.0, bare=True))


def test_part_of_what_fits_fits() -> None:
    whole = [Spend("a" * 64, "training", HALVES, Mechanism(2.0, 0.1, 10)), gaussian(3.0)]
    step = Spend("a" * 64, "training", HALVES, Mechanism(2.0, 0.1, 4))
    assert is_within([], [])
    assert is_within([step, step], whole)
    assert not is_within([step, step, step], whole)
    assert not is_within([gaussian(3.0, study="b")], whole)
    assert not is_within([gaussian(3.0, "validation")], whole)
    assert not is_within([Spend("a" * 64, "training", HALVES, None)], whole)


def test_a_studys_spend_carries_its_fractions() -> None:
    study = make_study(privacy=PRIVATE, evaluation={"validation_fraction": 0.1, "test_fraction": 0.3})
    mechanism = Mechanism(1.0, 1.0, 1)
    assert spend_in(study, "training", mechanism) == Spend(study.hash, "training", SplitFractions(0.1, 0.3), mechanism)
