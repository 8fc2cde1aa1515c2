"""What a hospital allows: `policy.yaml` in the site's state folder, written by the hospital; read anew for every study and round.

A cohort is all patients registered in one state folder: every study of that site draws on one budget. Hospitals whose
registries share patients do not know of each other; their budgets add up.
"""

from datetime import datetime, time
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from echofed.privacy.budget import Limits, check_budget, delta_for
from echofed.protocol.document import Document
from echofed.protocol.errors import PrivacyParameterError, StudyError
from echofed.protocol.study import TaskKind
from echofed.protocol.yaml_text import read_document

FILE_NAME = "policy.yaml"
ModelName = Literal["scattering", "small_resnet", "densenet121", "efficientnet_b0", "basic_unet", "unet"]
MetricName = Literal["auc", "dice", "mean_absolute_error"]


class SitePolicy(Document):
    """The hospital's own limits; what is not written has the default."""

    epsilon_per_cohort: float = Field(default=10.0, gt=0, le=1000, description="for all studies together.")
    epsilon_per_study: float = Field(default=8.0, gt=0, le=1000, description="for one study, at the study's delta.")
    epsilon_per_year: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="for all releases of any 365 days, at the cohort's delta; null: the cohort's epsilon is the only bound.",
    )
    delta: float | None = Field(
        default=None, gt=0, lt=1, description="of the cohort's epsilon; absent: 1 / (10 x usable patients)."
    )
    minimum_patients: int = Field(
        default=10, ge=1, le=10**6, description="no number, and no part in a private study, from fewer patients."
    )
    allow_without_privacy: bool = Field(default=False, description="whether studies without privacy may be answered.")
    allowed_tasks: tuple[TaskKind, ...] | None = Field(default=None, description="tasks a study may have; null: all.")
    allowed_models: tuple[ModelName, ...] | None = Field(
        default=None, description="models a study may train; null: all that are installed."
    )
    minimum_sites: int = Field(
        default=1, ge=1, le=1000, description="smallest cohort: updates a round must need before it is published."
    )
    secure_aggregation_required: bool = Field(
        default=False, description="whether the coordinator may only ever see the sum of the sites' updates."
    )
    metrics_allowed: tuple[MetricName, ...] | None = Field(
        default=None,
        description="validation figures that may leave, each with its loss and number of patients; null: all, []: none.",
    )
    maximum_message_mb: float = Field(
        default=2000.0,
        gt=0,
        le=10**6,
        description="largest file of parameters that is received or sent, in MiB.",
    )
    hours: str | None = Field(
        default=None, description='when training may run, local time, as in "20:00-06:00"; null: always.'
    )
    cores: int | None = Field(
        default=None, ge=1, le=1024, description="processor cores that training may use; null: as many as there are."
    )
    ledger_witness: Path | None = Field(
        default=None,
        description="a file on another disk that also notes how far the ledger has got, so that restoring the whole "
        "state folder from an old copy is noticed.",
    )

    @field_validator("hours")
    @classmethod
    def _two_times(cls, hours: str | None) -> str | None:
        if hours is not None:
            _window(hours)
        return hours

    def runs_at(self, moment: datetime) -> bool:
        """Return whether training may run at a moment, given in the hospital's local time; the end is not part."""
        if self.hours is None:
            return True
        begin, end = _window(self.hours)
        now = moment.time()
        return begin <= now < end if begin < end else now >= begin or now < end


def _window(hours: str) -> tuple[time, time]:
    written = hours.split("-")
    try:
        begin, end = (datetime.strptime(part.strip(), "%H:%M").time() for part in written)
    except ValueError as error:
        raise ValueError('write hours as two times of the day, as in "20:00-06:00"') from error
    if begin == end:
        raise ValueError("hours begin and end at the same time; write null to let training run always")
    return begin, end


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
