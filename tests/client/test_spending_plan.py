"""What a study will still release is its whole plan less what the ledger holds."""

from pathlib import Path

from echofed.client.ledger import open_ledger
from echofed.client.policy import SitePolicy
from echofed.client.registry import create_registry
from echofed.client.settings import SiteSettings
from echofed.client.spending_plan import spends_to_come
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import Limits
from echofed.privacy.spends import composed_epsilon, is_within, spend_in
from tests.studies import PRIVATE, make_study

EVALUATION = {"validation_fraction": 0.2, "every_rounds": 2}
STUDY = make_study(privacy=PRIVATE, federation={"rounds": 4}, evaluation=EVALUATION)
LIMITS = Limits(1000.0, 1000.0, 1e-3, 1e-3)
DIGEST = "d" * 64


def test_the_whole_of_a_study_costs_its_epsilon(tmp_path: Path) -> None:
    spends = spends_to_come(STUDY, 100, (), tmp_path)
    steps = [(spend.split, spend.mechanism.steps) for spend in spends if spend.mechanism]
    assert steps == [("training", 1), ("training", 4 * STUDY.training.local_steps), ("validation", STUDY.evaluations)]
    assert 7.9 < composed_epsilon(spends, 1e-3) <= 8.0


def test_what_is_in_the_ledger_is_not_planned_again(tmp_path: Path) -> None:
    create_registry(tmp_path, SiteSettings(name="a", data_folder=tmp_path))
    step = Mechanism(30.0, 0.5, 2)
    with open_ledger(tmp_path, SitePolicy()) as ledger:
        ledger.spend(STUDY, 0, "count", Mechanism(10.0, 1.0, 1), DIGEST, LIMITS)
        ledger.spend(STUDY, 1, "training", step, DIGEST, LIMITS)
        to_come = spends_to_come(STUDY, 100, ledger.entries(), tmp_path)
        assert spend_in(STUDY, "training", Mechanism(30.0, 0.5, 6)) in to_come  # with the noise it began with
        ledger.refuse_beyond(to_come, LIMITS)
        for number in (2, 3, 4):
            ledger.spend(STUDY, number, "training", step, DIGEST, LIMITS)
        left = spends_to_come(STUDY, 100, ledger.entries(), tmp_path)
    assert is_within(left, to_come)
    assert {spend.split for spend in left} == {"validation"}


def test_no_figures_without_validation_patients(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"evaluation": STUDY.evaluation.model_copy(update={"validation_fraction": 0.0})})
    assert {spend.split for spend in spends_to_come(study, 100, (), tmp_path)} == {"training"}


def test_a_study_without_privacy_releases_something_every_round(tmp_path: Path) -> None:
    study = make_study(federation={"rounds": 4}, evaluation=EVALUATION)
    spends = spends_to_come(study, 100, (), tmp_path)
    assert len(spends) == 1 + 4 + study.evaluations
    assert all(spend.mechanism is None for spend in spends)
