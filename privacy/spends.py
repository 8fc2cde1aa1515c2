"""The rules of a site's ledger: what was released of its patients, what that costs them all together, and what is left.

Neighbouring data sets differ by one patient, with all exams, added or removed. A site puts every patient at a fixed position
in [0, 1), a keyed hash of the id, and a study's fractions cut this line into test, validation and training. What a study
releases of one split therefore costs only the patients at its positions: two splits of a study are disjoint (parallel
composition, McSherry (2009), Th. 4), and all that falls on one position is composed by one accountant.

The bounds hold for studies whose noise and number of steps do not depend on what earlier studies released. A site that accepts
studies designed in sight of the earlier models relies on the accountant beyond its theorem (Rogers et al. (2016)).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from echofed.privacy.accounting import Mechanism, epsilon_spent, noise_multiplier_for
from echofed.privacy.budget import Limits, check_delta, check_epsilon
from echofed.protocol.errors import BudgetExceededError, CalibrationError
from echofed.protocol.study import Study

SpentSplit = Literal["training", "validation"]

SAME_CUT = 1e-12
"""0.1 + 0.2 and 0.3 are one cut: that a patient falls between them is far less likely than any delta."""


class SplitFractions(NamedTuple):
    """How a study cuts the line of positions: test, then validation, then training."""

    validation: float
    test: float


@dataclass(frozen=True)
class Spend:
    """One release of something about a site's patients.

    Args:
        study_hash: of the study it was released in, 64 hexadecimal digits.
        split: whose patients it touched.
        split_fractions: of that study.
        mechanism: what protected them; None: nothing did.
    """

    study_hash: str
    split: SpentSplit
    split_fractions: SplitFractions
    mechanism: Mechanism | None


class _Kind(NamedTuple):
    """Spends that differ in their number of steps only."""

    study_hash: str
    split: SpentSplit
    split_fractions: SplitFractions
    noise_multiplier: float | None
    sampling_probability: float | None


def spend_in(study: Study, split: SpentSplit, mechanism: Mechanism | None) -> Spend:
    """Return a release of a study."""
    fractions = SplitFractions(study.evaluation.validation_fraction, study.evaluation.test_fraction)
    return Spend(study.hash, split, fractions, mechanism)


def composed_epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Return an upper bound on the epsilon that all releases together cost any one patient.

    It is the largest composition over all positions a patient may have. Releases without privacy are not in it: no epsilon
    bounds them, and whoever shows the sum must show them too. No release costs nothing. The order does not matter.

    Args:
        spends: all releases of the site, of any studies.
        delta: in (0, 1).

    Raises:
        PrivacyParameterError: delta is outside its range.
    """
    check_delta(delta)
    return max((epsilon_spent(mechanisms, delta) for mechanisms in _by_position(spends)), default=0.0)


def largest_further_epsilon(spends: Sequence[Spend], delta: float, budget: float) -> float:
    """Return the largest epsilon a further study could have so that all together stay within the budget.

    The further study is taken as one Gaussian mechanism on every patient: exact for studies that draw all patients in each
    step, a good guide for others, whose epsilon composes a little differently. Never more than could be spent; up to 1% less.
    0 if nothing is left.

    Args:
        spends: all releases so far.
        delta: of the budget and of the further study, in (0, 1).
        budget: epsilon that may be reached, finite, > 0.

    Raises:
        PrivacyParameterError: delta or the budget is outside its range.
    """
    check_epsilon(budget)
    check_delta(delta)
    noises: list[float] = []
    for mechanisms in _by_position(spends):
        if epsilon_spent(mechanisms, delta) >= budget:
            return 0.0
        try:
            noises.append(noise_multiplier_for(budget, delta, 1.0, 1, mechanisms))
        except CalibrationError:
            return 0.0
    return min(budget, epsilon_spent([Mechanism(max(noises), 1.0, 1)], delta)) if noises else budget


def refuse_beyond(spends: Sequence[Spend], to_come: Sequence[Spend], limits: Limits) -> None:
    """Refuse releases that would exceed what a site allows.

    A limit that is reached exactly is kept.

    Args:
        spends: all releases so far.
        to_come: what is asked for.
        limits: what the site allows.

    Raises:
        BudgetExceededError: the site allows none without privacy, or an epsilon would be exceeded; it says what is left.
    """
    if any(spend.mechanism is None for spend in to_come) and not limits.allow_without_privacy:
        raise BudgetExceededError(
            "The site's policy allows no release without privacy.",
            "Run the study with privacy.unit: patient, or set allow_without_privacy in the site's policy.",
        )
    for study in sorted({spend.study_hash for spend in to_come}):
        own = [spend for spend in spends if spend.study_hash == study]
        asked = [spend for spend in to_come if spend.study_hash == study]
        _refuse(f"study {study[:12]}", own, asked, limits.study_delta, limits.epsilon_per_study)
    _refuse("all studies on these patients", spends, to_come, limits.delta, limits.epsilon_per_cohort)


def is_within(spends: Sequence[Spend], others: Sequence[Spend]) -> bool:
    """Return whether the first releases are some of the others, or fewer steps of them; they then cost no more."""
    return _steps(spends) <= _steps(others)


def _refuse(whose: str, spends: Sequence[Spend], to_come: Sequence[Spend], delta: float, limit: float) -> None:
    total = composed_epsilon([*spends, *to_come], delta)
    if total <= limit:
        return
    asked, left = composed_epsilon(to_come, delta), largest_further_epsilon(spends, delta, limit)
    raise BudgetExceededError(
        f"This costs epsilon {asked:.3g}, with which {whose} would reach {total:.3g}; the site allows {limit:g}, "
        f"of which {left:.3g} is left."
    )


def _steps(spends: Sequence[Spend]) -> Counter[_Kind]:
    steps: Counter[_Kind] = Counter()
    for spend in spends:
        where, mechanism = (spend.study_hash, spend.split, spend.split_fractions), spend.mechanism
        if mechanism is None:
            steps[_Kind(*where, None, None)] += 1
        else:
            steps[_Kind(*where, mechanism.noise_multiplier, mechanism.sampling_probability)] += mechanism.steps
    return steps


def _by_position(spends: Sequence[Spend]) -> list[tuple[Mechanism, ...]]:
    """Return the mechanisms that meet at each position, without those that are part of others."""
    steps = _steps(spends)
    fractions = {kind.split_fractions for kind in steps}
    cuts = sorted({0.0, 1.0} | {one.test for one in fractions} | {one.test + one.validation for one in fractions})
    groups: list[Counter[tuple[float, float]]] = []
    for position in (low for low, high in pairwise(cuts) if high - low > SAME_CUT):
        group: Counter[tuple[float, float]] = Counter()
        for kind, count in steps.items():
            if kind.noise_multiplier is None or kind.sampling_probability is None:
                continue
            if kind.split == _split_at(position, kind.split_fractions):
                group[kind.noise_multiplier, kind.sampling_probability] += count
        groups.append(group)
    largest: list[Counter[tuple[float, float]]] = []
    for group in sorted(groups, key=Counter.total, reverse=True):
        if group and not any(group <= other for other in largest):
            largest.append(group)
    return [tuple(Mechanism(*of, count) for of, count in sorted(group.items())) for group in largest]


def _split_at(position: float, fractions: SplitFractions) -> SpentSplit | None:
    """Return the split of a position, None for the test; as `client.splits.split_of` cuts."""
    if position < fractions.test:
        return None
    return "validation" if position < fractions.test + fractions.validation else "training"
