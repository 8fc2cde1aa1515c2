"""Per-patient gradients against the plainest way to compute them: one patient, one call, no engine."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from echofed.learning import batches as batches_module
from echofed.learning import feature_gradients as feature_gradients_module
from echofed.learning.examples import Examples
from echofed.learning.feature_gradients import feature_gradients
from echofed.learning.gradients import gradient_source, intra_op_threads, patient_gradient, trainable
from echofed.learning.images import to_input
from echofed.learning.models import StudyModel, build_model
from echofed.learning.tasks import item_losses
from echofed.protocol.errors import NonFiniteLossError
from echofed.protocol.study import Study
from tests.learning.example_sets import make_examples
from tests.studies import make_study

EXAM = {"unit": "exam"}
SEGMENTATION = {"kind": "segmentation", "labels": ("lesion",)}
SCATTERING = {"name": "scattering", "scales": 2, "angles": 2, "projection": None}
UNET = {"name": "basic_unet", "width": 8}
IMAGES = [[1, 1, 1], [1], [1, 1, 1, 1, 1], [1, 1]]
EXAMS = [[3, 1], [2], [5, 1, 2], [1]]
CASES: list[tuple[dict[str, Any], list[list[int]], bool]] = [
    ({}, IMAGES, False),
    ({"task": EXAM}, EXAMS, False),
    ({"model": SCATTERING}, IMAGES, False),
    ({"model": SCATTERING, "task": EXAM}, EXAMS, False),
    ({"model": {"name": "small_resnet", "width": 8, "blocks": 1, "encoder": "frozen"}}, IMAGES, False),
    ({"model": UNET, "task": SEGMENTATION}, IMAGES, True),
]


def randomised(study: Study) -> StudyModel:
    model = build_model(study).double()
    source = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    return model


def plain_gradient(model: StudyModel, examples: Examples, study: Study, patient: int) -> tuple[list[Tensor], float]:
    """Average the losses of a patient's items, each from a forward pass of its own."""
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
    return list(torch.autograd.grad(loss, trainable(model))), float(loss.detach())


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("parts", "sizes", "masks"), CASES)
@pytest.mark.parametrize("images_at_once", [2, 100])
def test_a_patients_gradient_is_that_of_the_mean_loss(
    parts: dict[str, Any], sizes: list[list[int]], masks: bool, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", images_at_once * 32**2)
    study = make_study(**parts)
    model, examples = randomised(study), make_examples(sizes, side=32, masks=masks)
    for patient in range(examples.patients):
        expected, loss = plain_gradient(model, examples, study, patient)
        found = patient_gradient(model, examples, study, patient, 0)
        assert_equal([gradient[0] for gradient in found.gradients], expected)
        assert found.loss_sum == pytest.approx(loss, abs=1e-12)
        assert float(found.norms) == pytest.approx(float(torch.cat([g.flatten() for g in expected]).norm()), rel=1e-12)


@pytest.mark.parametrize("head", ["linear", "small"])
@pytest.mark.parametrize("unit", ["image", "exam"])
@pytest.mark.parametrize("numbers_at_once", [1, 2**23])
def test_gradients_of_many_patients_at_once_are_those_of_each(
    head: str, unit: str, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_gradients_module, "MAX_GRADIENT_NUMBERS", numbers_at_once)
    study = make_study(model={**SCATTERING, "head": head}, task={"unit": unit})
    model = randomised(study)
    dimensions = model.head[0].in_features if head == "small" else model.head.in_features
    examples = make_examples(IMAGES * 2 if unit == "image" else EXAMS * 2, side=32, features=dimensions)
    patients = np.array([0, 1, 2, 4, 7])
    found = list(feature_gradients(model, examples, study)(patients, [0] * len(patients)))
    expected = [plain_gradient(model, examples, study, int(patient)) for patient in patients]
    ours = torch.cat([torch.cat([g.flatten(1) for g in part.gradients], dim=1) for part in found])
    theirs = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients, _ in expected])
    # Patients come in groups of similar size: whose row is whose is told by its first number.
    ours, theirs = ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert sum(part.loss_sum for part in found) == pytest.approx(sum(loss for _, loss in expected), abs=1e-11)
    for part in found:
        flat = torch.cat([gradient.flatten(1) for gradient in part.gradients], dim=1)
        torch.testing.assert_close(part.norms, flat.norm(dim=1), rtol=1e-12, atol=0)


def test_augmented_copies_are_averaged() -> None:
    augmentation = {"gain": 0.4, "speckle": 0.2, "copies": 3}
    study = make_study(training={"augmentation": augmentation})
    model, examples = randomised(study), make_examples([[1, 1]], side=32)
    once = make_study(training={"augmentation": {**augmentation, "copies": 1}})
    found = patient_gradient(model, examples, study, 0, 5)
    # The same images drawn with the same generator, as the items of one patient.
    tripled = Examples(
        examples.images, None, np.tile(examples.targets, (3, 1)), examples.item_images * 3, (np.arange(6),)
    )
    expected = patient_gradient(model, tripled, once, 0, 5)
    assert_equal([*found.gradients], [*expected.gradients])
    assert not torch.equal(found.gradients[0], patient_gradient(model, examples, study, 0, 6).gradients[0])


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
    halved = patient_gradient(model, examples, study, 8, 0)
    assert torch.equal(after_a_step[0].gradients[0], halved.gradients[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    for gradients, patient in zip(found, patients, strict=True):
        expected = patient_gradient(model, examples, study, int(patient), 0)
        assert all(torch.equal(a, b) for a, b in zip(gradients.gradients, expected.gradients, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_loss_that_is_not_a_number_stops_training_without_naming_the_patient(threads: int) -> None:
    study = make_study()
    model, examples = randomised(study), make_examples([[1]] * 12345 + [[1]], side=8)
    examples.targets[examples.patient_items[12345]] = np.nan
    with gradient_source(model, examples, study, threads) as gradients_of, pytest.raises(NonFiniteLossError) as caught:
        list(gradients_of(np.array([0, 12345]), [0, 0]))
    assert "1234" not in str(caught.value)


def test_features_that_are_not_numbers_stop_training() -> None:
    study = make_study(model=SCATTERING)
    model = randomised(study)
    examples = make_examples([[1], [1]], features=model.head.in_features)
    assert examples.features is not None
    examples.features[0] = np.inf
    with pytest.raises(NonFiniteLossError):
        list(feature_gradients(model, examples, study)(np.array([0, 1]), [0, 0]))


def test_gradients_leave_nothing_behind() -> None:
    study = make_study()
    model = randomised(study)
    patient_gradient(model, make_examples([[1, 1]], side=32), study, 0, 0)
    assert all(parameter.grad is None for parameter in model.parameters())
