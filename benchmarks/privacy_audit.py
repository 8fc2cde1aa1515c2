"""Attack on the training engine: what one run betrays, against what is claimed for it (Steinke, Nasr and Jagielski (2023)).

Thousands of canary patients, each in the site's data by a fair coin, have features that no other patient has, so that each
moves a coordinate of its own of a linear head, and by as much as clipping allows. The auditor knows all but the coins: the
canaries, the noise multiplier and the parameters after every step. The score of a canary is the exact log-likelihood ratio of
what its coordinate did; the auditor guesses on the 5% of canaries with the highest and lowest scores.

An honest engine must stay below its claim. Four broken ones, made of the engine's own parts, must be caught above it; the
distance to the accountant's epsilon of what really ran is what this attack leaves unseen.

    python -m benchmarks.privacy_audit [--quick]
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel
from echofed.learning.randomness import generator
from echofed.privacy.accounting import Mechanism, epsilon_spent
from echofed.privacy.audit import audited_epsilon, correct_guesses
from echofed.privacy.budget import delta_for
from echofed.privacy.randomness import random_words
from echofed.protocol.study import Study

CANARIES = 10_000
QUICK_CANARIES = 2_000
GUESSED_SHARE = 0.05
CLIPPING_NORM, LEARNING_RATE = 1.0, 0.01
FEATURE_LENGTH = 16.0
"""A patient's gradient is half as long as long as the answers are even: far above the clipping norm."""


@dataclass(frozen=True)
class Case:
    """An engine and what is claimed for it.

    Args:
        name: of the row.
        claimed: what the engine is said to be, with one patient's exams clipped together.
        noise_multiplier, sampling_probability, steps: with which it runs.
        images: of each canary, equal.
        clips_images: the engine treats every image as a patient.
        is_honest: the claim is true.
        is_quick: few canaries are enough.
    """

    name: str
    claimed: Mechanism
    noise_multiplier: float
    sampling_probability: float
    steps: int
    images: int = 1
    clips_images: bool = False
    is_honest: bool = False
    is_quick: bool = True

    @property
    def most(self) -> int:
        """The most a patient moves a sum, in clipping norms."""
        return self.images if self.clips_images else 1

    @property
    def ran(self) -> Mechanism:
        """The true mechanism, for patients."""
        return Mechanism(self.noise_multiplier / self.most, self.sampling_probability, self.steps)


def _honest(name: str, claimed: Mechanism, images: int = 1) -> Case:
    noise, probability, steps = claimed.noise_multiplier, claimed.sampling_probability, claimed.steps
    return Case(name, claimed, noise, probability, steps, images, is_honest=True)


CASES = (
    _honest("honest, all patients in each step", Mechanism(5.0, 1.0, 4)),
    _honest("honest, patients drawn by chance", Mechanism(1.5, 0.1, 50)),
    _honest("honest, four images a patient", Mechanism(5.0, 1.0, 4), images=4),
    Case("noise halved", Mechanism(5.0, 1.0, 4), 2.5, 1.0, 4, is_quick=False),
    Case("clipped per image, not per patient", Mechanism(5.0, 1.0, 4), 5.0, 1.0, 4, images=4, clips_images=True),
    Case("steps not composed", Mechanism(2.5, 1.0, 1), 2.5, 1.0, 25),
    Case("all patients taken, sampling claimed", Mechanism(2.5, 0.1, 25), 2.5, 1.0, 25),
)


@dataclass(frozen=True)
class Row:
    """What the audit of a case found.

    Args:
        case: the engine.
        delta: at which all epsilons are.
        claimed_epsilon: what is claimed.
        spent_epsilon: the accountant's, of what really ran.
        measured_epsilon: lower bound, right with 95% confidence.
        canaries: number of coins.
        guesses: made.
        correct: of them.
    """

    case: Case
    delta: float
    claimed_epsilon: float
    spent_epsilon: float
    measured_epsilon: float
    canaries: int
    guesses: int
    correct: int

    @property
    def is_as_expected(self) -> bool:
        """An honest claim stands, a false one is refuted."""
        return (self.measured_epsilon <= self.claimed_epsilon) == self.case.is_honest


def audit(case: Case, canaries: int = CANARIES, seed: int | None = 0) -> Row:
    """Train once and return what the attack proves.

    Args:
        case: the engine.
        canaries: coins tossed; fewer for patients of several images, or their features would fill the memory.
        seed: of coins and noise; None takes the noise from the operating system, as in deployment.
    """
    canaries = min(canaries, 2 * CANARIES // case.images)
    included = generator(seed, "coins", case.name).random(canaries) < 0.5
    scores = np.zeros(canaries)
    for movement in _movements(case, included, seed):
        scores += _log_likelihood_ratio(case, movement)
    delta, guesses = delta_for(canaries // 2), 2 * int(GUESSED_SHARE * canaries / 2)
    correct = correct_guesses(scores, included, guesses)
    return Row(
        case,
        delta,
        epsilon_spent([case.claimed], delta),
        epsilon_spent([case.ran], delta),
        audited_epsilon(canaries, guesses, correct, delta),
        canaries,
        guesses,
        correct,
    )


def _movements(case: Case, included: NDArray[np.bool_], seed: int | None) -> Iterator[NDArray[np.float64]]:
    """Train step by step; yield what each moved along each canary's gradient, in clipping norms."""
    canaries = len(included)
    head = nn.Linear(canaries, 1, bias=False)
    nn.init.zeros_(head.weight)
    model = StudyModel(nn.Identity(), head, None, frozen=True, segments=False)
    study, examples = _study(case.sampling_probability), _examples(case, included)
    privacy = PatientPrivacy(case.noise_multiplier, canaries // 2, random_words(seed, "noise", case.name))
    rng = generator(seed, "augmentation")
    before = np.zeros(canaries)
    for _ in range(case.steps):
        train(model, examples, study, rng=rng, privacy=privacy, steps=1)
        after = head.weight.detach().numpy()[0].astype(np.float64)
        yield (after - before) * case.sampling_probability * privacy.patients / (LEARNING_RATE * CLIPPING_NORM)
        before = after


def _log_likelihood_ratio(case: Case, movement: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log P(movement | canary in) / P(movement | canary out), the strongest test there is (Neyman and Pearson)."""
    drawn = case.most * (movement - case.most / 2) / case.noise_multiplier**2
    probability = case.sampling_probability
    if probability == 1:
        return drawn
    ratio: NDArray[np.float64] = np.logaddexp(np.log1p(-probability), np.log(probability) + drawn)
    return ratio


def _study(sampling_probability: float) -> Study:
    return Study.model_validate(
        {
            "schema_version": 1,
            "title": "Privacy audit",
            "purpose": "benchmark",
            "contact": "benchmark",
            "task": {"kind": "binary", "labels": ("benign", "malignant")},
            "model": {"name": "scattering"},
            "training": {
                "learning_rate": LEARNING_RATE,
                "local_steps": 1,
                "sampling_probability": sampling_probability,
            },
            # The noise is given by the case: this epsilon calibrates nothing.
            "privacy": {"unit": "patient", "epsilon": 1.0, "clipping_norm": CLIPPING_NORM},
            "federation": {"rounds": 1, "minimum_sites": 1, "minimum_replies": 1},
        }
    )


def _examples(case: Case, included: NDArray[np.bool_]) -> Examples:
    """Return the site's data: the canaries whose coin said so, each malignant on a feature of its own."""
    coordinates = np.repeat(np.flatnonzero(included), case.images)
    images = len(coordinates)
    features = np.zeros((images, len(included)), np.float32)
    features[np.arange(images), coordinates] = FEATURE_LENGTH
    owned = np.arange(images).reshape(-1, 1 if case.clips_images else case.images)
    return Examples(
        images=np.zeros((images, 1, 1), np.uint8),
        masks=None,
        targets=np.ones((images, 1), np.float32),
        item_images=tuple(np.arange(images).reshape(-1, 1)),
        patient_items=tuple(owned),
        features=features,
    )


def run(quick: bool = False, seed: int | None = 0) -> list[Row]:
    """Audit every engine.

    Args:
        quick: with fewer canaries, which are too few to tell half the noise: that row is left out.
        seed: of `audit`.
    """
    canaries = QUICK_CANARIES if quick else CANARIES
    return [audit(case, canaries, seed) for case in CASES if case.is_quick or not quick]


def main() -> None:
    """Print the table; exit with 1 if an honest engine was refuted or a broken one was not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    rows = run(parser.parse_args().quick)
    print(f"{'engine':38}{'delta':>9}{'claim':>8}{'spent':>8}{'measured':>10}{'right':>16}")
    for row in rows:
        right = f"{row.correct} of {row.guesses}"
        verdict = "" if row.is_as_expected else "  NOT AS EXPECTED"
        print(
            f"{row.case.name:38}{row.delta:9.1e}{row.claimed_epsilon:8.2f}{row.spent_epsilon:8.2f}"
            f"{row.measured_epsilon:10.2f}{right:>16}{verdict}"
        )
    print(
        "claim, spent: the accountant's epsilon of what is said and of what ran; measured: at least, with 95% confidence."
    )
    sys.exit(0 if all(row.is_as_expected for row in rows) else 1)


if __name__ == "__main__":
    main()
