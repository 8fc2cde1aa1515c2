"""What an attack on one training run proves: a lower bound on its epsilon, from how often the attack guessed right.

The auditor puts canaries among the patients, each by a fair coin of its own, trains once, and guesses from what was published
which canaries took part, or abstains. Privacy bounds how many guesses can be right, so many right ones refute a claim.
Steinke, Nasr and Jagielski (2023).
"""

import numpy as np
from numpy.typing import NDArray

from echofed.protocol.errors import PrivacyParameterError

LARGEST_EPSILON = 50.0
PRECISION = 1e-4


def correct_guesses(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int) -> int:
    """Guess that the canaries of the highest scores took part and those of the lowest did not; count what is right.

    Args:
        scores: what the attack says of each canary, higher for more likely, [canaries].
        included: what the coins said, [canaries].
        guesses: number of guesses, even, at most the canaries; half of them are `took part`. It must be chosen without
            looking at the scores.
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(included[order[len(order) - half :]].sum() + (~included[order[:half]]).sum())


def audited_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95) -> float:
    """Return a lower bound on the epsilon of what was attacked, at this delta; wrong with a chance of 1 - confidence at most.

    It is the largest epsilon whose `guessing_probability` is at most 1 - confidence, rounded down; 0 if there is none.

    Args:
        canaries: m, each included by a fair coin.
        guesses: r, not counting abstentions, <= canaries.
        correct: v, guesses that were right, <= guesses.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1).
    """
    low, high = 0.0, LARGEST_EPSILON
    if guessing_probability(canaries, guesses, correct, low, delta) > 1 - confidence:
        return 0.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        refuted = guessing_probability(canaries, guesses, correct, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def guessing_probability(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the chance that so many guesses are right if the mechanism is (epsilon, delta) private for each canary.

    With X binomial of r trials and success exp(epsilon) / (1 + exp(epsilon)), that of randomised response, it is
    P[X >= v] + 2 m delta max over i of P[v > X >= v - i] / i. Steinke, Nasr and Jagielski (2023), Th. 5.2 and App. D.

    Args:
        canaries: m.
        guesses: r.
        correct: v.
        epsilon: >= 0.
        delta: in [0, 1).

    Raises:
        PrivacyParameterError: the numbers contradict each other.
    """
    from scipy.special import expit
    from scipy.stats import binom

    if not (0 <= correct <= guesses <= canaries and epsilon >= 0 and 0 <= delta < 1):
        raise PrivacyParameterError(
            f"{correct} right of {guesses} guesses on {canaries} canaries at epsilon {epsilon}, delta {delta} cannot be.",
            "Give correct <= guesses <= canaries, epsilon >= 0 and delta in [0, 1).",
        )
    success = expit(epsilon)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, success))
    steepest = float(np.max(below / np.arange(1, correct + 1), initial=0.0))
    return min(1.0, float(binom.sf(correct - 1, guesses, success)) + 2 * canaries * delta * steepest)
