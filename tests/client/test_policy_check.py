"""What a hospital's policy forbids a study, line by line."""

from datetime import UTC, datetime
from typing import Any

import pytest

from echofed.client.ledger_chain import Entry
from echofed.client.policy import SitePolicy
from echofed.client.policy_check import policy_text, refuse_by_policy, violations
from echofed.client.yearly_budget import YearlyBudget, spends_of_last_year
from echofed.privacy.accounting import Mechanism
from echofed.privacy.spends import composed_epsilon, spend_in
from echofed.protocol.errors import BudgetExceededError, PolicyRefusalError
from echofed.protocol.study import Study
from tests.studies import PRIVATE, make_study

STUDY = make_study(privacy=PRIVATE)
BARE = make_study()
NOW = datetime(2030, 6, 1, tzinfo=UTC)


def policy(**fields: Any) -> SitePolicy:
    return SitePolicy.model_validate(fields)


@pytest.mark.parametrize(
    ("study", "allowing", "forbidding", "words"),
    [
        (STUDY, {"allowed_tasks": ("binary",)}, {"allowed_tasks": ("regression",)}, "the study's task is binary"),
        (
            STUDY,
            {"allowed_models": ("small_resnet",)},
            {"allowed_models": ()},
            "none; the study's model is small_resnet",
        ),
        (BARE, {"allow_without_privacy": True}, {}, "allow_without_privacy: false"),
        (STUDY, {"epsilon_per_study": 8.0}, {"epsilon_per_study": 7.9}, "epsilon_per_study: 7.9; the study asks for 8"),
        (STUDY, {"epsilon_per_year": 8.0}, {"epsilon_per_year": 2.0}, "epsilon_per_year: 2; the study asks for 8"),
        (STUDY, {"minimum_sites": 2}, {"minimum_sites": 3}, "minimum_sites: 3; the study publishes a round of 2"),
        (STUDY, {}, {"secure_aggregation_required": True}, "the study's secure aggregation is none"),
        (STUDY, {"metrics_allowed": ("auc",)}, {"metrics_allowed": ("dice",)}, "metrics_allowed: dice; .* by auc"),
        (STUDY, {"metrics_allowed": ("auc",)}, {"metrics_allowed": ()}, "metrics_allowed: none"),
        (STUDY, {"maximum_message_mb": 3.0}, {"maximum_message_mb": 2.0}, "the study's parameters have 3.0 MiB"),
    ],
)
def test_each_line_of_the_policy(
    study: Study, allowing: dict[str, Any], forbidding: dict[str, Any], words: str
) -> None:
    size = 3 * 2**20
    assert violations(policy(**allowing), study, size) == []
    (sentence,) = violations(policy(**forbidding), study, size)
    with pytest.raises(PolicyRefusalError, match=words) as raised:
        refuse_by_policy(policy(**forbidding), study, None, size)
    assert sentence in raised.value.what


def test_a_study_without_figures_tells_no_metric() -> None:
    silent = make_study(privacy=PRIVATE, evaluation={"figures": "none"})
    assert violations(policy(metrics_allowed=()), silent) == []


def test_secure_aggregation_satisfies_who_requires_it() -> None:
    secure = make_study(privacy=PRIVATE, secure_aggregation={"mode": "required"})
    assert violations(policy(secure_aggregation_required=True), secure) == []


def test_all_that_does_not_fit_is_said_at_once() -> None:
    strict = policy(allowed_tasks=(), minimum_sites=5, metrics_allowed=())
    assert len(violations(strict, BARE)) == 4


def test_outside_the_hours_a_study_waits() -> None:
    night = policy(hours="20:00-06:00")
    refuse_by_policy(night, STUDY)
    refuse_by_policy(night, STUDY, datetime(2030, 1, 1, 23, 0))
    with pytest.raises(PolicyRefusalError, match="at 20:00-06:00 only; it is 12:30 there") as raised:
        refuse_by_policy(night, STUDY, datetime(2030, 1, 1, 12, 30))
    assert "answers again" in raised.value.remedy


def test_the_policy_in_plain_words() -> None:
    text = policy_text(SitePolicy())
    assert len(text.splitlines()) == 12
    for words in (
        "no further bound for a year",
        "without privacy are refused",
        "Tasks: all. Models: all.",
        "at any time",
    ):
        assert words in text
    strict = policy(
        epsilon_per_year=3.0,
        delta=1e-5,
        allow_without_privacy=True,
        metrics_allowed=(),
        minimum_sites=3,
        secure_aggregation_required=True,
        hours="20:00-06:00",
        cores=2,
    )
    text = policy_text(strict)
    for words in (
        "up to epsilon 3.",
        "delta 1e-05",
        "NOTHING PROTECTS",
        "may leave: none",
        "at least 3 sites",
        "2 cores",
    ):
        assert words in text


def entry(number: int, written_at: str) -> Entry:
    return Entry.model_validate(
        {
            "ledger_id": "0" * 32,
            "number": number,
            "previous": "0" * 64,
            "written_at": written_at,
            "study_hash": STUDY.hash,
            "study_title": "A study",
            "round_number": number,
            "purpose": "training",
            "split": "training",
            "validation_fraction": 0.15,
            "test_fraction": 0.2,
            "mechanism": {"noise_multiplier": 5.0, "sampling_probability": 1.0, "steps": 1},
            "instruction": "d" * 64,
        }
    )


OLD = [entry(number, "2029-05-31T00:00:00+00:00") for number in range(1, 6)]
RECENT = [entry(number, "2029-06-02T00:00:00+00:00") for number in range(6, 11)]


def test_a_year_has_365_days() -> None:
    assert len(spends_of_last_year([*OLD, *RECENT], NOW)) == 5
    odd = [entry(1, "2031-01-01T00:00:00+00:00"), entry(2, "once upon a time"), entry(3, "2030-05-01T00:00:00")]
    assert len(spends_of_last_year(odd, NOW)) == 3


def test_the_years_bound_forgets_what_is_older() -> None:
    round_to_come = [spend_in(STUDY, "training", Mechanism(5.0, 1.0, 1))]
    six = composed_epsilon([one.spend for one in RECENT] + round_to_come, 1e-4)
    year = YearlyBudget()
    year.refuse_beyond([*OLD, *RECENT], round_to_come, six + 1e-9, 1e-4, NOW)
    year.refuse_beyond([*OLD, *RECENT], round_to_come, six + 1e-9, 1e-4, NOW)
    with pytest.raises(BudgetExceededError, match="releases of 365 days would reach epsilon"):
        year.refuse_beyond(RECENT, round_to_come * 2, six + 1e-9, 1e-4, NOW)
    with pytest.raises(BudgetExceededError):
        year.refuse_beyond([*OLD, *RECENT], round_to_come, six + 1e-9, 1e-4, NOW.replace(year=2029, month=7))
    with pytest.raises(BudgetExceededError):
        year.refuse_beyond(RECENT, round_to_come, six - 0.01, 1e-4, NOW)
