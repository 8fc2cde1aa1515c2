"""What the hospital writes in its policy, and what that allows."""

from datetime import datetime
from pathlib import Path
from typing import get_args

import pytest

from echofed.client.policy import FILE_NAME, MetricName, ModelName, SitePolicy, limits_for, load_policy
from echofed.protocol.errors import PrivacyParameterError
from echofed.protocol.models import Model
from echofed.protocol.study import METRIC_OF_TASK


def test_a_site_without_a_policy_has_the_defaults(tmp_path: Path) -> None:
    policy = load_policy(tmp_path)
    assert policy == SitePolicy()
    assert (policy.epsilon_per_cohort, policy.epsilon_per_study) == (10.0, 8.0)
    assert (policy.minimum_patients, policy.allow_without_privacy) == (10, False)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("epsilon_per_cohort: 4\ndelta: 1e-5\nledger_witness: ../disk/a.head\n")
    policy = load_policy(tmp_path)
    assert policy.ledger_witness == tmp_path.parent.resolve() / "disk" / "a.head"
    limits = limits_for(policy, 200)
    assert (limits.epsilon_per_cohort, limits.epsilon_per_study) == (4.0, 8.0)
    assert (limits.delta, limits.study_delta) == (1e-5, 1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "epsilon_per_cohort: 0",
        "epsilon_per_cohort: -1",
        "epsilon_per_study: .inf",
        "epsilon_per_study: .nan",
        "epsilon_per_study: many",
        "delta: 1",
        "minimum_patients: 0",
        "allow_without_privacy: 1",
        "epsilon_per_cohrt: 4",
        "",
        "- 4",
    ],
)
def test_a_policy_without_meaning_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(PrivacyParameterError, match=FILE_NAME) as raised:
        load_policy(tmp_path)
    assert raised.value.remedy == "Correct the site's policy."


def test_the_cohorts_delta_follows_its_size() -> None:
    limits = limits_for(SitePolicy(), 400, study_delta=1e-3)
    assert limits.delta == pytest.approx(1 / 4000)
    assert limits.study_delta == 1e-3
    with pytest.raises(PrivacyParameterError, match="protects nobody among 400 patients"):
        limits_for(SitePolicy(delta=1 / 400), 400)
    with pytest.raises(PrivacyParameterError):
        limits_for(SitePolicy(), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("allowed_task: [binary]", "line 1: allowed_task: no such field; did you mean allowed_tasks"),
        ("cores: 2\nepsilon_per_yaer: 2", "line 2: epsilon_per_yaer: no such field; did you mean epsilon_per_year"),
        ("allowed_models: [unett]", "line 1: allowed_models.1: .*unett.* is not known; write one of: scattering, "),
        ("allowed_tasks: binary", "allowed_tasks: .* is not a list"),
        ("metrics_allowed: all", "metrics_allowed: .* is not a list"),
        ("metrics_allowed: [dise]", "is not known; write one of: auc, dice, mean_absolute_error"),
        ("hours: at night", "write hours as two times of the day"),
        ("hours: 20:00-25:00", "write hours as two times of the day"),
        ("hours: 20:00", "write hours as two times of the day"),
        ("hours: 20:00-20:00", "begin and end at the same time"),
        ("hours: 8", "hours: 8 is not text"),
        ("cores: 0", "at least 1"),
        ("minimum_sites: 0", "at least 1"),
        ("maximum_message_mb: 0", "more than 0"),
        ("epsilon_per_year: .inf", "not a number that can be used"),
        ("secure_aggregation_required: yes", "not true or false"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(PrivacyParameterError, match=words):
        load_policy(tmp_path)


def test_the_defaults_allow_what_they_always_did() -> None:
    policy = SitePolicy()
    assert (policy.allowed_tasks, policy.allowed_models, policy.metrics_allowed) == (None, None, None)
    assert (policy.minimum_sites, policy.secure_aggregation_required) == (1, False)
    assert (policy.epsilon_per_year, policy.hours, policy.cores) == (None, None, None)


def test_every_field_is_described_and_every_name_offered_exists() -> None:
    assert all(field.description for field in SitePolicy.model_fields.values())
    assert set(get_args(ModelName)) == {
        get_args(part.model_fields["name"].annotation)[0] for part in get_args(get_args(Model)[0])
    }
    assert set(get_args(MetricName)) == set(METRIC_OF_TASK.values())


@pytest.mark.parametrize(
    ("hours", "clock", "runs"),
    [
        (None, "12:00", True),
        ("20:00-06:00", "19:59", False),
        ("20:00-06:00", "20:00", True),
        ("20:00-06:00", "00:00", True),
        ("20:00-06:00", "05:59", True),
        ("20:00-06:00", "06:00", False),
        ("08:30 - 18:00", "08:30", True),
        ("08:30 - 18:00", "18:00", False),
        ("08:30 - 18:00", "03:00", False),
    ],
)
def test_hours(hours: str | None, clock: str, runs: bool) -> None:
    moment = datetime.fromisoformat(f"2030-01-02T{clock}:00+01:00")
    assert SitePolicy(hours=hours).runs_at(moment) is runs
