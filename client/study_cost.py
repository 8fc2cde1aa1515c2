"""What a study would cost a site's patients: for `echofed site budget --study` and `echofed site show`."""

import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from echofed.client.held_studies import approved_studies
from echofed.client.ledger_chain import Entry
from echofed.client.policy import SitePolicy, limits_for
from echofed.client.public_count import count_path
from echofed.client.site import open_site
from echofed.client.spending_plan import spends_to_come
from echofed.client.yearly_budget import YearlyBudget
from echofed.privacy.budget import Limits, delta_for
from echofed.privacy.spends import Spend, composed_epsilon, refuse_beyond
from echofed.protocol.errors import BudgetExceededError, PrivacyError
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
    heading = f"With the whole of {study.title} ({study.hash[:12]})"
    if study.is_private and training < policy.minimum_patients:
        return [
            heading,
            f"Takes no part: {training} training patients, the site's minimum is {policy.minimum_patients}.",
        ]
    training, is_said = _said_patients(state_folder, study, training)
    to_come = spends_to_come(study, training, entries, state_folder)
    limits = limits_for(policy, patients, delta_for(training, study.privacy.delta) if study.is_private else None)
    spends = [entry.spend for entry in entries]
    own = [spend for spend in spends if spend.study_hash == study.hash] + to_come
    lines = [
        heading,
        f"To come   {mechanisms_text(to_come) or 'NOTHING THAT NOISE COVERS'}",
        f"Study     epsilon {'' if is_said else 'about '}{rounded_up(composed_epsilon(own, limits.study_delta))} "
        f"of {policy.epsilon_per_study:g} "
        f"at delta {limits.study_delta:.2g}",
        f"Together  epsilon {rounded_up(composed_epsilon([*spends, *to_come], limits.delta))} of {policy.epsilon_per_cohort:g} "
        f"at delta {limits.delta:.2g}",
    ]
    try:
        refuse_beyond(spends, to_come, limits)
        _refuse_beyond_year(entries, to_come, policy, limits)
    except BudgetExceededError as error:
        return [*lines, f"Does not fit. {error.what}"]
    return lines + _with_approved(state_folder, study, policy, entries, to_come, limits)


def _with_approved(
    state_folder: Path,
    study: Study,
    policy: SitePolicy,
    entries: tuple[Entry, ...],
    to_come: list[Spend],
    limits: Limits,
) -> list[str]:
    """Return whether a study that fits by itself also fits beside what approved studies are still to spend."""
    others = _approved_to_come(state_folder, study, policy, entries)
    if not others:
        return ["Fits."]
    planned = [*to_come, *(spend for _, spends in others for spend in spends)]
    reached = composed_epsilon([*(entry.spend for entry in entries), *planned], limits.delta)
    line = f"Approved  with what is approved already: about {rounded_up(reached)} of {policy.epsilon_per_cohort:g}"
    try:
        _refuse_beyond_year(entries, planned, policy, limits)
        fits = reached <= policy.epsilon_per_cohort
    except BudgetExceededError:
        fits = False
    if fits:
        return [line, "Fits."]
    names = " or ".join(f"{one.title} ({one.hash[:12]})" for one, _ in others)
    return [line, f"Fits only if {names} stops before its end."]


def _approved_to_come(
    state_folder: Path, study: Study, policy: SitePolicy, entries: tuple[Entry, ...]
) -> list[tuple[Study, list[Spend]]]:
    """Return what the other approved studies are still to spend; those that could not run here are left out."""
    found = []
    for other in approved_studies(state_folder):
        training = open_site(state_folder).count_patients(other)["training"]
        if not other.is_private or other.hash == study.hash or training < policy.minimum_patients:
            continue
        with suppress(PrivacyError):
            training, _ = _said_patients(state_folder, other, training)
            if spends := spends_to_come(other, training, entries, state_folder):
                found.append((other, spends))
    return found


def _said_patients(state_folder: Path, study: Study, training: int) -> tuple[int, bool]:
    """Return the number of training patients a study is planned with, and whether the site has said it already."""
    said = count_path(state_folder, study)
    if study.is_private and said.exists():
        return int(said.read_text()), True
    return training, False


def _refuse_beyond_year(entries: tuple[Entry, ...], to_come: list[Spend], policy: SitePolicy, limits: Limits) -> None:
    if policy.epsilon_per_year is not None:
        YearlyBudget().refuse_beyond(entries, to_come, policy.epsilon_per_year, limits.delta, datetime.now(UTC))


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
