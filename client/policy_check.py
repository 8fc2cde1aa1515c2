"""Does a study fit a hospital's policy, and what does the policy mean in plain words?"""

from datetime import datetime

from echofed.client.policy import SitePolicy
from echofed.protocol.errors import PolicyRefusalError
from echofed.protocol.study import Study

_MIB = 2**20


def violations(policy: SitePolicy, study: Study, parameters_bytes: int = 0) -> list[str]:
    """Return a sentence for each line of the policy that the study does not fit; none if it may run.

    What it has spent already and the number of patients are not looked at: the ledger and the training do that, every round.

    Args:
        policy: the hospital's.
        study: any.
        parameters_bytes: size of its initial-parameters file; no update is larger.
    """
    checks = (*_of_task(policy, study), *_of_privacy(policy, study), *_of_messages(policy, study, parameters_bytes))
    return [sentence for broken, sentence in checks if broken]


def refuse_by_policy(
    policy: SitePolicy, study: Study, moment: datetime | None = None, parameters_bytes: int = 0
) -> None:
    """Refuse a study the policy does not allow, or not at this hour.

    Args:
        policy: the hospital's.
        study: any.
        moment: when it is to run, in the hospital's local time; None: at any time.
        parameters_bytes: size of its initial-parameters file.

    Raises:
        PolicyRefusalError: it says every line that the study does not fit.
    """
    if found := violations(policy, study, parameters_bytes):
        raise PolicyRefusalError(f"The hospital's policy does not allow this study: {' '.join(found)}")
    if moment is not None and not policy.runs_at(moment):
        raise PolicyRefusalError(
            f"The hospital's policy allows training at {policy.hours} only; it is {moment:%H:%M} there.",
            "Nothing is wrong: the site answers again when its hours begin.",
        )


def policy_text(policy: SitePolicy) -> str:
    """Return what a policy means, one line for each of its fields."""
    year = policy.epsilon_per_year
    delta = "1 / (10 x patients)" if policy.delta is None else f"{policy.delta:g}"
    lines = [
        f"All studies together may cost each patient up to epsilon {policy.epsilon_per_cohort:g}, at delta {delta}.",
        f"All releases of any 365 days may cost each patient up to epsilon {year:g}."
        if year is not None
        else "There is no further bound for a year.",
        f"One study may cost each patient up to epsilon {policy.epsilon_per_study:g}, at the study's delta.",
        "Studies without privacy are allowed: NOTHING PROTECTS SINGLE PATIENTS IN THEM."
        if policy.allow_without_privacy
        else "Studies without privacy are refused.",
        f"No number is told of fewer than {policy.minimum_patients} patients, and with fewer the site trains in no private "
        "study.",
        f"Tasks: {_listed(policy.allowed_tasks)}. Models: {_listed(policy.allowed_models)}.",
        f"Validation figures that may leave: {_listed(policy.metrics_allowed)}.",
        f"A round must need the updates of at least {policy.minimum_sites} "
        f"site{'' if policy.minimum_sites == 1 else 's'} before it is published.",
        "The coordinator may only see the sum of the sites' updates."
        if policy.secure_aggregation_required
        else "The coordinator may see the site's own update.",
        f"No file of parameters above {policy.maximum_message_mb:g} MiB is received or sent.",
        f"Training runs {'at any time' if policy.hours is None else f'at {policy.hours}, local time'}, on "
        f"{'all cores' if policy.cores is None else f'{policy.cores} core' + ('s' if policy.cores > 1 else '')}.",
        f"A witness of the ledger is kept in {policy.ledger_witness}."
        if policy.ledger_witness
        else "No witness of the ledger is kept: restoring the whole state folder from an old copy would go unnoticed.",
    ]
    return "\n".join(lines)


def _of_task(policy: SitePolicy, study: Study) -> list[tuple[bool, str]]:
    tasks, models = policy.allowed_tasks, policy.allowed_models
    return [
        (
            tasks is not None and study.task.kind not in tasks,
            f"allowed_tasks: {_listed(tasks)}; the study's task is {study.task.kind}.",
        ),
        (
            models is not None and study.model.name not in models,
            f"allowed_models: {_listed(models)}; the study's model is {study.model.name}.",
        ),
    ]


def _of_privacy(policy: SitePolicy, study: Study) -> list[tuple[bool, str]]:
    epsilon, year = study.privacy.epsilon or 0.0, policy.epsilon_per_year
    replies, mode = study.federation.minimum_replies, study.secure_aggregation.mode
    return [
        (
            not study.is_private and not policy.allow_without_privacy,
            "allow_without_privacy: false; the study protects no single patient.",
        ),
        (
            epsilon > policy.epsilon_per_study,
            f"epsilon_per_study: {policy.epsilon_per_study:g}; the study asks for {epsilon:g}.",
        ),
        (
            year is not None and epsilon > year,
            f"epsilon_per_year: {year or 0:g}; the study asks for {epsilon:g}.",
        ),
        (
            replies < policy.minimum_sites,
            f"minimum_sites: {policy.minimum_sites}; the study publishes a round of {replies}.",
        ),
        (
            policy.secure_aggregation_required and mode != "required",
            f"secure_aggregation_required: true; the study's secure aggregation is {mode}.",
        ),
    ]


def _of_messages(policy: SitePolicy, study: Study, parameters_bytes: int) -> list[tuple[bool, str]]:
    metrics = policy.metrics_allowed
    return [
        (
            metrics is not None and study.evaluations > 0 and study.metric not in metrics,
            f"metrics_allowed: {_listed(metrics)}; the study's sites say how well they do by {study.metric}.",
        ),
        (
            parameters_bytes > policy.maximum_message_mb * _MIB,
            f"maximum_message_mb: {policy.maximum_message_mb:g}; the study's parameters have "
            f"{parameters_bytes / _MIB:.1f} MiB.",
        ),
    ]


def _listed(names: tuple[str, ...] | None) -> str:
    return "all" if names is None else ", ".join(names) or "none"
