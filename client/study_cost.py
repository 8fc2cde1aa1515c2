"""What a study would cost a site's patients: for `echofed site budget --study` and `echofed site show`."""

import math
from datetime import UTC, datetime
from pathlib import Path

from echofed.client.ledger_chain import Entry
from echofed.client.policy import SitePolicy, limits_for
from echofed.client.public_count import count_path
from echofed.client.site import open_site
from echofed.client.spending_plan import spends_to_come
from echofed.client.yearly_budget import YearlyBudget
from echofed.privacy.budget import delta_for
from echofed.privacy.spends import Spend, composed_epsilon, refuse_beyond
from echofed.protocol.errors import BudgetExceededError
from echofed.protocol.study import Study


def study_cost_lines(
    state_folder: Path, study: Study, policy: SitePolicy, patients: int, entries: tuple[Entry, ...]
) -> list[str]:
    """Return what the whole of a study would cost this site's patients, beyond what is in the ledger, and whether it fits.

    Args:
        state_folder: of a site with registered data.
        study: any.
        policy: the site's.
        patients: usable patients registered at the site.
        entries: of the site's ledger.

    Raises:
        PrivacyError: the study's privacy parameters have no meaning at a site of this size.
    """
    training = open_site(state_folder).count_patients(study)["training"]
    spends = [entry.spend for entry in entries]
    heading = f"With the whole of {study.title} ({study.hash[:12]})"
    if study.is_private and training < policy.minimum_patients:
        return [
            heading,
            f"Takes no part: {training} training patients, the site's minimum is {policy.minimum_patients}.",
        ]
    said = count_path(state_folder, study)
    if study.is_private and said.exists():
        training = int(said.read_text())
    to_come = spends_to_come(study, training, entries, state_folder)
    limits = limits_for(policy, patients, delta_for(training, study.privacy.delta) if study.is_private else None)
    own = [spend for spend in spends if spend.study_hash == study.hash] + to_come
    lines = [
        heading,
        f"To come   {mechanisms_text(to_come) or 'NOTHING THAT NOISE COVERS'}",
        f"Study     epsilon {'' if said.exists() else 'about '}{rounded_up(composed_epsilon(own, limits.study_delta))} "
        f"of {policy.epsilon_per_study:g} "
        f"at delta {limits.study_delta:.2g}",
        f"Together  epsilon {rounded_up(composed_epsilon([*spends, *to_come], limits.delta))} of {policy.epsilon_per_cohort:g} "
        f"at delta {limits.delta:.2g}",
    ]
    try:
        refuse_beyond(spends, to_come, limits)
        if policy.epsilon_per_year is not None:
            YearlyBudget().refuse_beyond(entries, to_come, policy.epsilon_per_year, limits.delta, datetime.now(UTC))
    except BudgetExceededError as error:
        return [*lines, f"Does not fit. {error.what}"]
    return [*lines, "Fits."]


def mechanisms_text(spends: list[Spend]) -> str:
    """Return what protects releases, those of the same noise together."""
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        if spend.mechanism is not None:
            kind = (spend.mechanism.noise_multiplier, spend.mechanism.sampling_probability)
            steps[kind] = steps.get(kind, 0) + spend.mechanism.steps
    return "; ".join(
        f"{count} x noise {noise:g}" + ("" if probability == 1 else f", sampling {probability:g}")
        for (noise, probability), count in steps.items()
    )


def rounded_up(epsilon: float) -> str:
    """Round up: a report never says less than was spent."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}"


def rounded_down(epsilon: float) -> str:
    """Round down: a report never says that more is left than is."""
    return f"{math.floor(epsilon * 100 + 1e-9) / 100:.2f}"
