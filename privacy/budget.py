"""What epsilon and delta may be, before anything is spent."""

import math
from dataclasses import dataclass

from echofed.protocol.errors import PrivacyParameterError


@dataclass(frozen=True)
class Limits:
    """What a site allows to be spent on its patients; neighbouring data sets differ by one patient added or removed.

    Args:
        epsilon_per_cohort: for all studies together, at `delta`; finite, > 0.
        epsilon_per_study: for one study, at `study_delta`; finite, > 0.
        delta: in (0, 1), below 1 / patients of the cohort.
        study_delta: the delta at which the study's own epsilon is agreed, in (0, 1).
        allow_without_privacy: whether anything may be released without noise.

    Raises:
        PrivacyParameterError: a value lies outside its range.
    """

    epsilon_per_cohort: float
    epsilon_per_study: float
    delta: float
    study_delta: float
    allow_without_privacy: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        check_epsilon(self.epsilon_per_cohort)
        check_epsilon(self.epsilon_per_study)
        check_delta(self.delta)
        check_delta(self.study_delta)


def check_budget(epsilon: float, delta: float, patients: int) -> None:
    """Refuse a budget that promises nothing.

    A delta of 1 / patients or more would allow publishing one patient's record outright (Dwork and Roth (2014), sec. 2.3).

    Args:
        epsilon: finite, > 0.
        delta: > 0 and < 1 / patients.
        patients: patients the guarantee covers, >= 1.

    Raises:
        PrivacyParameterError: a value lies outside the range given.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if patients < 1:
        raise PrivacyParameterError(f"There are {patients} patients to protect.", "Register patients first.")
    if delta >= 1 / patients:
        raise PrivacyParameterError(
            f"delta {delta:g} protects nobody among {patients} patients.", f"Use a delta below {1 / patients:.2g}."
        )


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not finite and positive.

    Raises:
        PrivacyParameterError: it is not.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise PrivacyParameterError(f"epsilon is {epsilon}; it must be finite and positive.")


def check_delta(delta: float) -> None:
    """Refuse a delta outside (0, 1).

    Raises:
        PrivacyParameterError: it is outside.
    """
    if not 0 < delta < 1:
        raise PrivacyParameterError(f"delta is {delta}; it must lie between 0 and 1.")


def delta_for(patients: int, delta: float | None = None) -> float:
    """Return the delta of a study at a site: the one written, or 1 / (10 x patients).

    Args:
        patients: the site's training patients, >= 1.
        delta: what the study writes, if anything.

    Raises:
        PrivacyParameterError: there is no patient.
    """
    if patients < 1:
        raise PrivacyParameterError(f"There are {patients} patients to protect.", "Register patients first.")
    return delta if delta is not None else 1 / (10 * patients)
