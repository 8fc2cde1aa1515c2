"""A site's part in a study: rounds, layers of its own, calibration kept, and what it refuses."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echofed.client.calibration import FILE_NAME, count_mechanism, noise_multiplier
from echofed.client.participation import Participation
from echofed.client.personal import read_personal, write_personal
from echofed.client.site import Site, open_site
from echofed.learning.models import build_model, initial_parameters
from echofed.privacy.accounting import Mechanism, epsilon_spent
from echofed.privacy.budget import delta_for
from echofed.protocol.errors import (
    ArraysError,
    LedgerError,
    NonFiniteLossError,
    ParametersError,
    PrivacyParameterError,
    TooFewPatientsError,
    WireError,
)
from echofed.protocol.messages import NoisyFigures
from echofed.protocol.shared_layers import shared_parameters
from echofed.protocol.study import Study
from echofed.simulations.phantoms import random_phantoms
from tests.client.conftest import Hospital
from tests.studies import PRIVATE, make_study

SCATTERING = {"name": "scattering", "scales": 2, "angles": 2, "projection": 16}


@pytest.fixture
def site(hospital: Hospital) -> Site:
    hospital.fill(20, images=2)
    return hospital.registered()


def take_part(study: Study, site: Site, seed: int | None = 0) -> tuple[Participation, dict[str, Any]]:
    images = random_phantoms(20, 32, 0) if study.model.name == "scattering" else None
    initial, metadata = initial_parameters(study, 0, images)
    participation = Participation(study, build_model(study), initial, metadata, site, seed)
    return participation, shared_parameters(study, initial, metadata)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first | second)


def test_a_round_is_a_function_of_the_seed_the_round_and_the_parameters(site: Site) -> None:
    part, shared = take_part(make_study(privacy=PRIVATE), site)
    other, _ = take_part(make_study(privacy=PRIVATE), site, seed=1)
    part.train({name: array + 1 for name, array in shared.items()}, 2)
    update = part.train(shared, 1).update
    assert same(update, part.train(shared, 1).update)
    assert not same(update, part.train(shared, 2).update)
    assert not same(update, other.train(shared, 1).update)


def test_without_a_seed_no_two_trainings_are_alike(site: Site) -> None:
    part, shared = take_part(make_study(privacy=PRIVATE), site, seed=None)
    assert not same(part.train(shared, 1).update, part.train(shared, 1).update)


def test_the_spent_privacy_adds_up_to_the_epsilon_agreed(site: Site) -> None:
    study = make_study(privacy=PRIVATE, federation={"rounds": 5})
    part, shared = take_part(study, site)
    spent = part.train(shared, 5).spent
    assert spent is not None
    assert spent.steps == study.steps == 10
    training = Mechanism(spent.noise_multiplier, spent.sampling_probability, spent.steps)
    assert 0.95 * 8 < epsilon_spent([count_mechanism(study), training], spent.delta) <= 8
    one_round = part.training_mechanism
    assert one_round == Mechanism(spent.noise_multiplier, spent.sampling_probability, study.training.local_steps)


def test_the_figures_of_all_evaluated_rounds_cost_the_epsilon_agreed(site: Site) -> None:
    study = make_study(privacy=PRIVATE, federation={"rounds": 10}, evaluation={"every_rounds": 4})
    part, _ = take_part(study, site)
    mechanism = part.figures_mechanism
    assert mechanism is not None
    assert study.evaluations == 3
    delta = delta_for(part.training_patients or 0)
    assert 0.95 * 8 < epsilon_spent([mechanism] * 3, delta) <= 8


def test_the_number_of_patients_a_private_study_hears_is_noisy_and_drawn_once(site: Site) -> None:
    true = site.count_patients(make_study())["training"]
    said = []
    for seed in range(20):
        part, _ = take_part(make_study(privacy=PRIVATE), site, seed=seed)
        assert part.training_patients == part.training_patients
        assert part.describe() == {"training": part.training_patients}
        said.append(part.training_patients)
    assert len(set(said)) > 5
    assert min(count or 0 for count in said) >= 1
    # Without a seed it is drawn from the operating system, and kept.
    study = make_study(privacy=PRIVATE, title="Another")
    first = take_part(study, site, seed=None)[0].training_patients
    again = take_part(study, open_site(site.state_folder), seed=None)[0].training_patients
    assert first == again
    assert take_part(make_study(), site)[0].training_patients == true


def test_a_damaged_count_is_not_drawn_again(site: Site) -> None:
    study = make_study(privacy=PRIVATE)
    part, _ = take_part(study, site, seed=None)
    assert part.training_patients
    (site.state_folder / "counts" / study.hash).write_text("")
    with pytest.raises(LedgerError, match="does not hold a number"):
        assert part.training_patients


@pytest.mark.parametrize("minimum", [14, 100])
def test_numbers_under_the_minimum_are_not_told(site: Site, minimum: int) -> None:
    part, _ = take_part(make_study(evaluation={"minimum_patients": minimum}), site)
    counts = site.count_patients(part.study)
    assert part.describe() == {split: count for split, count in counts.items() if count >= minimum}
    assert part.training_patients == max(minimum, counts["training"])


def test_a_site_under_the_minimum_takes_no_part_in_a_private_study(site: Site) -> None:
    study = make_study(privacy=PRIVATE, evaluation={"minimum_patients": 100})
    part, shared = take_part(study, site)
    assert part.describe() is None
    for ask in (part.train, part.figures):
        with pytest.raises(TooFewPatientsError) if ask == part.train else nullcontext():
            assert ask(shared, 1) is None


def test_noisy_figures_are_near_the_exact_ones(hospital: Hospital) -> None:
    hospital.fill(400)
    site = hospital.registered()
    study = make_study(privacy=PRIVATE, evaluation={"validation_fraction": 0.5, "every_rounds": 2})
    part, shared = take_part(study, site)
    figures = part.figures(shared, 2)
    assert isinstance(figures, NoisyFigures)
    patients = site.count_patients(study)["validation"]
    assert abs(sum(figures.sums) - patients) < 4 * figures.noise_stddev * len(figures.sums) ** 0.5
    with pytest.raises(WireError, match="does not evaluate"):
        part.figures(shared, 1)


def test_calibration_is_worked_out_once(site: Site, hospital: Hospital) -> None:
    study = make_study(privacy=PRIVATE)
    sigma = noise_multiplier(study, "training", 12, hospital.state)
    path = hospital.state / FILE_NAME
    known = json.loads(path.read_text())
    assert list(known.values()) == [sigma]
    path.write_text(json.dumps(dict.fromkeys(known, 3.5)))
    assert noise_multiplier(study, "training", 12, hospital.state) == 3.5
    assert noise_multiplier(study, "training", 13, hospital.state) != 3.5


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": -1.0}'])
def test_a_damaged_calibration_is_worked_out_again(site: Site, hospital: Hospital, damage: str) -> None:
    study = make_study(privacy=PRIVATE)
    sigma = noise_multiplier(study, "training", 12, hospital.state)
    (hospital.state / FILE_NAME).write_text(damage)
    assert noise_multiplier(study, "training", 12, hospital.state) == sigma


def test_a_fixed_encoder_gives_the_same_with_and_without_its_cache(site: Site) -> None:
    study = make_study(model=SCATTERING)
    part, shared = take_part(study, site)
    first = part.train(shared, 1).update
    assert list(site.state_folder.glob("cache/features-*.rows"))
    fresh, _ = take_part(study, site)
    assert same(first, fresh.train(shared, 1).update)
    augmented, _ = take_part(make_study(model=SCATTERING, training={"augmentation": {"flip": True}}), site)
    assert augmented.examples("training").features is None


def test_own_layers_are_taken_from_the_round_before(site: Site) -> None:
    study = make_study(strategy={"preset": "FedBN"})
    part, shared = take_part(study, site)
    first = part.train(shared, 1).update
    second = part.train(shared, 2).update
    after_two = read_personal(site.state_folder, study, 2)
    # Repeating a round after a crash starts from the layers of the round before, not from its own.
    assert same(second, part.train(shared, 2).update)
    assert same(first, part.train(shared, 1).update)
    assert after_two is not None
    assert not same(after_two, read_personal(site.state_folder, study, 1) or {})
    # A site that missed a round goes on with what it has.
    assert same(read_personal(site.state_folder, study, 9) or {}, after_two)


def test_own_layers_of_another_study_are_not_used(site: Site) -> None:
    study, other = make_study(strategy={"preset": "FedBN"}), make_study(title="Other", strategy={"preset": "FedBN"})
    write_personal(site.state_folder, study, 1, {"norm": np.ones(2, np.float32)})
    assert read_personal(site.state_folder, other, 1) is None
    assert read_personal(site.state_folder, study, 0) is None
    kept = read_personal(site.state_folder, study, 1)
    assert kept is not None
    np.testing.assert_array_equal(kept["norm"], 1)
    assert len(list(site.state_folder.rglob("personal/*/*"))) == 1


def test_what_was_not_agreed_is_refused(site: Site) -> None:
    part, shared = take_part(make_study(), site)
    for round_number in (0, -1, 3):
        with pytest.raises(WireError, match="not one of the study's 2"):
            part.train(shared, round_number)
    with pytest.raises(ArraysError, match="NaN"):
        part.train({name: np.full_like(array, np.inf) for name, array in shared.items()}, 1)
    with pytest.raises(ArraysError, match="missing"):
        part.train({}, 1)


def test_a_promise_that_cannot_be_kept_is_refused_when_asked_first(site: Site) -> None:
    part, shared = take_part(make_study(privacy={**PRIVATE, "delta": 0.5}), site)
    with pytest.raises(PrivacyParameterError, match="protects nobody"):
        part.describe()
    with pytest.raises(PrivacyParameterError, match="protects nobody"):
        part.train(shared, 1)


def test_a_loss_that_is_not_finite_is_an_error(site: Site) -> None:
    part, shared = take_part(make_study(), site)
    huge = {name: np.full_like(array, 1e30) for name, array in shared.items()}
    with pytest.raises(NonFiniteLossError):
        part.train(huge, 1)
    with pytest.raises(NonFiniteLossError):
        part.evaluate(huge, 1)
    # The model is set anew before each use, so one bad round spoils no other.
    assert part.train(shared, 1).update


def test_nothing_made_of_a_private_patient_is_an_error(site: Site) -> None:
    """An error in place of an answer would tell whether a patient took part."""
    part, shared = take_part(make_study(privacy=PRIVATE, evaluation={"validation_fraction": 0.4}), site)
    huge = {name: np.full_like(array, 1e30) for name, array in shared.items()}
    assert isinstance(part.figures(huge, 1), NoisyFigures)
    assert part.train(huge, 1).update


def test_a_site_with_no_usable_patient_describes_itself_and_cannot_train(site: Site) -> None:
    task = {"kind": "binary", "labels": ("cyst", "solid")}
    for privacy in ({"unit": "none"}, PRIVATE):
        part, shared = take_part(make_study(task=task, privacy=privacy), site)
        assert part.describe() is None
        with pytest.raises(TooFewPatientsError):
            part.train(shared, 1)


def test_parameters_of_another_model_are_refused(site: Site) -> None:
    initial, metadata = initial_parameters(make_study(), 0)
    study = make_study(model={"name": "small_resnet", "width": 16, "blocks": 1})
    part = Participation(study, build_model(study), initial, metadata, site, 0)
    with pytest.raises(ParametersError):
        part.train(shared_parameters(study, initial, metadata), 1)


def test_the_cache_of_calibrations_is_private_to_the_site(site: Site, hospital: Hospital) -> None:
    noise_multiplier(make_study(privacy=PRIVATE), "training", 12, hospital.state)
    assert [path.name for path in hospital.state.glob(f"{FILE_NAME}*")] == [Path(FILE_NAME).name]
