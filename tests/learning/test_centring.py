"""Centring: the first rounds learn the mean of the features, within the privacy agreed, and the head then sees it taken out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from echofed.learning.centring import CENTRE, FEATURE_NORM, Centring, patient_means
from echofed.learning.engine import PatientPrivacy, train
from echofed.learning.examples import Examples
from echofed.learning.models import StudyModel, build_model, initial_parameters, trainable_names
from echofed.learning.randomness import generator
from echofed.privacy.randomness import random_words
from echofed.protocol.study import Study
from echofed.simulations.phantoms import random_phantoms
from tests.learning.example_sets import make_examples
from tests.studies import PRIVATE, make_study

SIZES = [[1, 1, 1], [2], [1, 3], [1]]
DIMENSIONS = 16


def centred_study(**parts: Any) -> Study:
    changes: dict[str, Any] = {
        "model": {"name": "scattering", "scales": 2, "angles": 2, "projection": DIMENSIONS},
        "federation": {"rounds": 10},
        "training": {"sampling_probability": 1.0, "local_steps": 1, "centring_rounds": 3, **parts.pop("training", {})},
    }
    return make_study(**changes, **parts)


def featured(sizes: list[list[int]] = SIZES) -> Examples:
    examples = make_examples(sizes, side=32, features=DIMENSIONS)
    assert examples.features is not None
    offset = examples.features + 1
    return replace(examples, features=FEATURE_NORM * offset / np.linalg.norm(offset, axis=1, keepdims=True))


def parameters(model: StudyModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_the_first_rounds_set_the_centre_to_the_mean_and_nothing_else() -> None:
    study, examples = centred_study(), featured()
    model = build_model(study)
    before = parameters(model)
    assert train(model, examples, study, rng=generator(0), privacy=None, steps=3) is None
    np.testing.assert_allclose(model.get_parameter(CENTRE), patient_means(examples).mean(0), atol=1e-6)
    after = parameters(model)
    assert all(torch.equal(before[name], after[name]) for name in before if name != CENTRE)


def test_later_rounds_leave_the_centre_and_train_the_head() -> None:
    study, examples = centred_study(), featured([[1, 1], [1], [1, 1, 1], [1]])
    model = build_model(study)
    train(model, examples, study, rng=generator(0), privacy=None, steps=1)
    before = parameters(model)
    assert train(model, examples, study, rng=generator(0), privacy=None, steps_before=3) is not None
    after = parameters(model)
    assert torch.equal(before[CENTRE], after[CENTRE])
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("head.1"))


def test_a_patient_counts_once_and_is_no_longer_than_one() -> None:
    examples = featured()
    assert examples.features is not None
    means = patient_means(examples)
    assert (np.linalg.norm(means, axis=1) <= 1 + 1e-6).all()
    rows = [examples.features[examples.item_images[item]].mean(0) for item in examples.patient_items[2]]
    np.testing.assert_allclose(means[2], np.mean(rows, axis=0) / FEATURE_NORM, rtol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 3 / 2])
def test_private_rounds_average_noisy_means_of_the_scale_accounted(factor: float) -> None:
    study = centred_study(privacy={**PRIVATE, "clipping_norm": 0.7})
    examples, steps, noise = featured([[1]] * 50), 3, 4.0
    deviations = []
    for seed in range(40):
        model = build_model(study)
        privacy = PatientPrivacy(noise, 50, random_words(seed))
        train(model, examples, study, rng=generator(0), privacy=privacy, steps=steps)
        deviations.append(model.get_parameter(CENTRE).detach().numpy() - patient_means(examples).mean(0))
    # The mean of three sums, each with noise of standard deviation noise x C, on contributions scaled to C, over 50 patients.
    expected = factor * noise / 50 / np.sqrt(steps)
    spread = float(np.concatenate(deviations).std())
    assert (abs(spread / expected - 1) < 0.1) == (factor == 1.0)


def test_what_is_centred_is_as_long_as_before_and_the_gradient_stops() -> None:
    layer = Centring(DIMENSIONS)
    with torch.no_grad():
        layer.centre.copy_(torch.linspace(-0.2, 0.3, DIMENSIONS))
    features = torch.from_numpy(featured().features)
    torch.testing.assert_close(layer(features).norm(dim=1), torch.full((len(features),), FEATURE_NORM))
    assert not layer(features).requires_grad
    torch.testing.assert_close(layer(FEATURE_NORM * (layer.centre[None] + 1)), torch.full((1, DIMENSIONS), 2.0))


def test_the_centre_travels_with_the_head() -> None:
    study = centred_study()
    parameters, metadata = initial_parameters(study, 0, random_phantoms(20, 32, 0))
    assert CENTRE in trainable_names(build_model(study))
    assert f'"{CENTRE}"' in metadata["trainable"]
    assert not parameters[CENTRE].any()
    assert CENTRE not in trainable_names(build_model(centred_study(training={"centring_rounds": 0})))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"name": "small_resnet"}}, "goes with model: scattering"),
        ({"training": {"augmentation": {"flip": True}}}, "without augmentation"),
        ({"strategy": {"preset": "FedAdam"}}, "plain server optimizer"),
        ({"federation": {"rounds": 3}}, "no round to train the head"),
    ],
)
def test_studies_it_does_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    content = centred_study().model_dump()
    for part, values in changes.items():
        content[part] = values if part == "model" else {**content[part], **values}
    if "strategy" in changes:
        content["strategy"] = changes["strategy"]
    with pytest.raises(ValidationError, match=says):
        Study.model_validate(content)
