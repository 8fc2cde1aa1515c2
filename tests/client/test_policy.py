"""What the hospital writes in its policy, and what that allows."""

from pathlib import Path

import pytest

from echofed.client.policy import FILE_NAME, SitePolicy, limits_for, load_policy
from echofed.protocol.errors import PrivacyParameterError


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
