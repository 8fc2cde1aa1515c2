"""What a hospital allows to be spent on its patients: `policy.yaml` in the site's state folder, written by the hospital.

A cohort is all patients registered in one state folder: every study of that site draws on one budget. Hospitals whose
registries share patients do not know of each other; their budgets add up.
"""

from pathlib import Path

from pydantic import Field

from echofed.privacy.budget import Limits, check_budget, delta_for
from echofed.protocol.document import Document
from echofed.protocol.errors import PrivacyParameterError, StudyError
from echofed.protocol.yaml_text import read_document

FILE_NAME = "policy.yaml"


class SitePolicy(Document):
    """The hospital's own limits; what is not written has the default."""

    epsilon_per_cohort: float = Field(default=10.0, gt=0, le=1000, description="for all studies together.")
    epsilon_per_study: float = Field(default=8.0, gt=0, le=1000, description="for one study, at the study's delta.")
    delta: float | None = Field(
        default=None, gt=0, lt=1, description="of the cohort's epsilon; absent: 1 / (10 x usable patients)."
    )
    minimum_patients: int = Field(
        default=10, ge=1, le=10**6, description="no number, and no part in a private study, from fewer patients."
    )
    allow_without_privacy: bool = Field(default=False, description="whether studies without privacy may be answered.")
    ledger_witness: Path | None = Field(
        default=None,
        description="a file on another disk that also notes how far the ledger has got, so that restoring the whole "
        "state folder from an old copy is noticed.",
    )


def load_policy(state_folder: Path) -> SitePolicy:
    """Return the site's policy, the defaults if it has written none; a relative witness lies in the state folder.

    Raises:
        PrivacyParameterError: the file cannot be read or its content is not sound.
    """
    path = state_folder / FILE_NAME
    if not path.exists():
        return SitePolicy()
    try:
        policy = read_document(path, SitePolicy)
    except StudyError as error:
        raise PrivacyParameterError(error.what, remedy="Correct the site's policy.") from error
    if policy.ledger_witness is None:
        return policy
    return policy.model_copy(update={"ledger_witness": (state_folder / policy.ledger_witness).resolve()})


def limits_for(policy: SitePolicy, cohort_patients: int, study_delta: float | None = None) -> Limits:
    """Return what a policy allows at a site of this size.

    Args:
        policy: the site's.
        cohort_patients: usable patients registered at the site, >= 1.
        study_delta: the delta at which the study's epsilon is agreed; absent: the cohort's.

    Raises:
        PrivacyParameterError: there is no patient, or a delta protects nobody.
    """
    delta = delta_for(cohort_patients, policy.delta)
    check_budget(policy.epsilon_per_cohort, delta, cohort_patients)
    return Limits(
        epsilon_per_cohort=policy.epsilon_per_cohort,
        epsilon_per_study=policy.epsilon_per_study,
        delta=delta,
        study_delta=delta if study_delta is None else study_delta,
        allow_without_privacy=policy.allow_without_privacy,
    )
