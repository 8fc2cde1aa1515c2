"""Per-patient gradients against the plainest way to compute them: one patient, one item, one call, no engine."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from echofed.learning import batches as batches_module
from echofed.learning.evaluation import evaluate
from echofed.learning.examples import Examples
from echofed.learning.feature_gradients import feature_gradients
from echofed.learning.gradients import (
    PatientGradients,
    gradient_source,
    intra_op_threads,
    patient_gradient,
    trainable,
)
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel, build_model
from echofed.learning.tasks import item_losses
from echofed.protocol.study import Study
from tests.learning.example_sets import make_examples
from tests.studies import PRIVATE, make_study

TOLERANCE = 1e-12
"""Largest distance of two gradients, over the norm of the plain one."""
EXAM = {"unit": "exam"}
SEGMENTATION = {"kind": "segmentation", "labels": ("lesion",)}
SCATTERING = {"name": "scattering", "scales": 2, "angles": 2, "projection": None}
SMALL_HEAD = {**SCATTERING, "head": "small"}
SMALL_RESNET = {"name": "small_resnet", "width": 8, "blocks": 1}
IMAGES = [[1, 1, 1], [1], [1, 1, 1, 1, 1], [1, 1]]
EXAMS = [[3, 1], [2], [5, 1, 2], [1]]
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "scattering": SCATTERING,
    "scattering_small": SMALL_HEAD,
    "small_resnet": SMALL_RESNET,
    "small_resnet_frozen": {**SMALL_RESNET, "encoder": "frozen"},
    "densenet121": {"name": "densenet121"},
    "efficientnet_b0": {"name": "efficientnet_b0"},
}
SEGMENTERS: dict[str, dict[str, Any]] = {
    "basic_unet": {"name": "basic_unet", "width": 8},
    "unet": {"name": "unet", "width": 8},
}
SLOW = ("densenet121", "efficientnet_b0")
CATALOGUE = [(name, unit) for name in CLASSIFIERS for unit in ("image", "exam")] + [(n, "image") for n in SEGMENTERS]
FIXED_FEATURES = [
    (name, unit) for name in ("scattering", "scattering_small", "small_resnet_frozen") for unit in ("image", "exam")
]


def study_and_examples(name: str, unit: str) -> tuple[Study, Examples]:
    """Return a study with a model of the catalogue and a few patients of 1 to 8 images, or of 1 to 3 for large networks."""
    if name in SEGMENTERS:
        return make_study(model=SEGMENTERS[name], task=SEGMENTATION), make_examples(IMAGES, side=32, masks=True)
    sizes = IMAGES if unit == "image" else EXAMS
    if name in SLOW:
        sizes = [[1, 1], [1]] if unit == "image" else [[2, 1], [1]]
    return make_study(model=CLASSIFIERS[name], task={"unit": unit}), make_examples(sizes, side=32)


def randomised(study: Study) -> StudyModel:
    """Return the study's model in float64, every parameter away from its start, so that every gradient counts."""
    model = build_model(study).double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


def plain_gradient(model: StudyModel, examples: Examples, study: Study, patient: int) -> tuple[Tensor, float]:
    """Average the losses of a patient's items, each from a forward pass of its own; the gradient flat."""
    losses = []
    for item in examples.patient_items[patient]:
        rows = examples.item_images[item]
        of_item, targets = (
            torch.zeros(len(rows), dtype=torch.int64),
            torch.from_numpy(examples.targets[[item]]).double(),
        )
        masks = None if examples.masks is None else torch.from_numpy(examples.masks[rows])
        if examples.features is not None:
            logits = model.answer(torch.from_numpy(examples.features[rows]).double(), of_item, 1)
        else:
            logits = model(to_input(examples.images[rows], study.preprocessing).double(), of_item, 1)
        losses.append(item_losses(study.task, logits, targets, masks).squeeze())
    loss = torch.stack(losses).mean()
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trainable(model))])
    return gradient, float(loss.detach())


def rows_of(found: PatientGradients) -> Tensor:
    """Return one flat gradient a row."""
    return torch.cat([gradient.flatten(1) for gradient in found.gradients], dim=1)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm()) <= TOLERANCE * float(expected.norm())


@pytest.mark.parametrize(("name", "unit"), CATALOGUE)
@pytest.mark.parametrize("images_at_once", [2, 100])
def test_a_patients_gradient_is_that_of_the_mean_loss(
    name: str, unit: str, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", images_at_once * 32**2)
    study, examples = study_and_examples(name, unit)
    model = randomised(study)
    for patient in range(examples.patients):
        expected, loss = plain_gradient(model, examples, study, patient)
        found = patient_gradient(model, examples, study, patient, 0)
        assert_equal(rows_of(found)[0], expected)
        assert found.loss_sum == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize(("name", "unit"), CATALOGUE)
def test_gradients_from_two_threads_are_those_of_each(name: str, unit: str) -> None:
    study, examples = study_and_examples(name, unit)
    model = randomised(study)
    patients = np.arange(examples.patients)[::-1]
    with gradient_source(model, examples, study, 2) as gradients_of:
        found = list(gradients_of(patients, [0] * len(patients)))
    assert len(found) == len(patients)
    for gradients, patient in zip(found, patients, strict=True):
        expected, loss = plain_gradient(model, examples, study, int(patient))
        assert_equal(rows_of(gradients)[0], expected)
        assert gradients.loss_sum == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize(("name", "unit"), FIXED_FEATURES)
def test_gradients_on_features_are_those_of_each_patient(name: str, unit: str) -> None:
    study = make_study(model=CLASSIFIERS[name], task={"unit": unit})
    model = randomised(study)
    head = model.head[0] if isinstance(model.head, torch.nn.Sequential) else model.head
    examples = make_examples(IMAGES * 2 if unit == "image" else EXAMS * 2, side=32, features=head.in_features)
    patients = np.array([0, 1, 2, 4, 7])
    found = list(feature_gradients(model, examples, study)(patients, [0] * len(patients)))
    for gradients, patient in zip(found, patients, strict=True):
        expected, loss = plain_gradient(model, examples, study, int(patient))
        assert_equal(rows_of(gradients)[0], expected)
        assert gradients.loss_sum == pytest.approx(loss, rel=TOLERANCE)


@pytest.mark.parametrize(("name", "unit"), [("scattering", "image"), ("small_resnet_frozen", "exam")])
def test_features_computed_beforehand_give_the_gradients_of_their_images(name: str, unit: str) -> None:
    study, examples = study_and_examples(name, unit)
    model = randomised(study)
    with torch.no_grad():
        features = model.encode(to_input(examples.images, study.preprocessing).double()).float().numpy()
    fixed = Examples(examples.images, None, examples.targets, examples.item_images, examples.patient_items, features)
    found = [rows_of(part) for part in feature_gradients(model, fixed, study)(np.array([2]), [0])]
    expected, _ = plain_gradient(model, examples, study, 2)
    # Features are kept in float32.
    torch.testing.assert_close(torch.cat(found)[0], expected, rtol=1e-5, atol=1e-6)


def test_augmented_copies_are_averaged() -> None:
    augmentation = {"gain": 0.4, "speckle": 0.2, "copies": 3}
    study = make_study(training={"augmentation": augmentation})
    model, examples = randomised(study), make_examples([[1, 1]], side=32)
    once = make_study(training={"augmentation": {**augmentation, "copies": 1}})
    found = rows_of(patient_gradient(model, examples, study, 0, 5))
    # The same images drawn with the same generator, as the items of one patient.
    tripled = Examples(
        examples.images, None, np.tile(examples.targets, (3, 1)), examples.item_images * 3, (np.arange(6),)
    )
    assert_equal(found, rows_of(patient_gradient(model, tripled, once, 0, 5)))
    assert not torch.equal(found, rows_of(patient_gradient(model, examples, study, 0, 6)))


@pytest.fixture
def one_thread_an_operation() -> Iterator[None]:
    """As `train` sees to: sums of an operation spread over threads depend on their number."""
    with intra_op_threads(1):
        yield


@pytest.mark.usefixtures("one_thread_an_operation")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_give_the_same_gradients_in_the_same_order(threads: int) -> None:
    study = make_study()
    model, examples = randomised(study).float(), make_examples([[1] * (1 + n % 3) for n in range(9)], side=32)
    patients = np.array([8, 0, 5, 6, 1, 2, 3])
    with gradient_source(model, examples, study, threads) as gradients_of:
        found = list(gradients_of(patients, [0] * len(patients)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        after_a_step = list(gradients_of(patients[:1], [0]))
    assert torch.equal(rows_of(after_a_step[0]), rows_of(patient_gradient(model, examples, study, 8, 0)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    for gradients, patient in zip(found, patients, strict=True):
        expected = patient_gradient(model, examples, study, int(patient), 0)
        assert torch.equal(rows_of(gradients), rows_of(expected))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_that_is_not_a_number_stays_with_its_patient(threads: int) -> None:
    study = make_study()
    model, examples = randomised(study), make_examples([[1], [1], [1]], side=8)
    examples.targets[1] = np.nan
    with gradient_source(model, examples, study, threads) as gradients_of:
        finite = [bool(rows_of(found).isfinite().all()) for found in gradients_of(np.arange(3), [0] * 3)]
    assert finite == [True, False, True]


def test_features_that_are_not_numbers_stay_with_their_patient() -> None:
    study = make_study(model=SCATTERING)
    model = randomised(study)
    examples = make_examples([[1], [1], [1]], features=model.head.in_features)
    assert examples.features is not None
    examples.features[examples.item_images[1]] = np.inf
    found = feature_gradients(model, examples, study)(np.arange(3), [0] * 3)
    assert [bool(rows_of(one).isfinite().all()) for one in found] == [True, False, True]


def test_gradients_leave_nothing_behind() -> None:
    study = make_study()
    model = randomised(study)
    patient_gradient(model, make_examples([[1, 1]], side=32), study, 0, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("others", [11, 12, 15, 27, 39])
def test_a_patients_numbers_do_not_depend_on_who_else_is_there(others: int) -> None:
    """Parameters at right angles to all features, so that answers are rounding error alone, and large, so that it counts."""
    dimensions = 128
    study = make_study(
        model={"name": "scattering", "scales": 3, "angles": 4, "projection": dimensions},
        preprocessing={"image_size_px": 32},
        privacy=PRIVATE,
    )
    model = build_model(study)
    everyone = make_examples([[1]] * (others + 1), side=8, features=dimensions)
    fewer = replace(
        everyone,
        targets=everyone.targets[:others],
        item_images=everyone.item_images[:others],
        patient_items=everyone.patient_items[:others],
    )
    assert everyone.features is not None
    directions = np.linalg.svd(everyone.features.astype(np.float64))[2][others + 1 :]
    weight = 1e9 * np.random.default_rng(0).normal(size=len(directions)) @ directions
    model.get_parameter("head.weight").data.copy_(torch.from_numpy(weight)[None])
    answers = everyone.features @ weight.astype(np.float32)
    assert 1 < np.abs(answers).max() < 1e6  # of terms of 1e9 and more
    told = []
    for examples in (everyone, fewer):
        patients = np.arange(examples.patients)
        given = feature_gradients(model, examples, study)(patients, [0] * len(patients))
        told.append(torch.cat([rows_of(one) for one in given])[:others])
        told.append(torch.from_numpy(evaluate(model, examples, study).scores[:others]))
    assert torch.equal(told[0], told[2])
    assert torch.equal(told[1], told[3])
